"""The adapters of denoising networks: the stock `DDPMPipeline`, and ours with classes."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import SchedulerMixin

from hfgen.objectives import elbo
from hfgen.objectives.denoising import PREDICTION_TYPES, clean
from hfgen.objectives.probability_flow import amplitudes, drift, expected, flow_log_prob, integrate, last_step
from hfgen.pipelines.base import at_least, read_mask
from hfgen.pipelines.ddpm_sampling import (
    FEW_STEPS,
    advice,
    check_guidance,
    check_noise_levels,
    default_sampler,
    denoise,
    log_ratios,
    sampling_scheduler,
    set_timesteps,
    shortage,
)
from hfgen.pipelines.diffusion_restoration import (
    METHODS,
    STEPS,
    Denoiser,
    grays,
    holes,
    img2img,
    remove_noise,
    restore,
    shrunk,
)
from hfgen.runtime.errors import UserError
from hfgen.runtime.notes import note
from hfgen.sampling.capabilities import Adapter, Density, Encodes, HasDensity, HasSteps, Restores, Slider, Step, evenly
from hfgen.sampling.config import DDPMSamplingConfig
from hfgen.sampling.restoring import shape_for

MOST_STEPS = 100  # of a slider
FLOW_STEPS = 25  # of the probability flow: 0.004 bits per dimension too few at most, with networks without errors
MOST_SAMPLES = 10  # of an image: each costs 100 evaluations of the network and of its derivative
CODE_STEPS = 16  # of the probability flow, to the noise of an image and back
TRIED = 8  # noise levels at which classes are compared
FLOW_VALUES = 2**16  # pixels times channels that go through the network at once


class DDPMAdapter(HasSteps, HasDensity, Encodes, Restores):
    """Speaks for a `diffusers.DDPMPipeline`."""

    options = DDPMSamplingConfig
    kind = "DDPM"
    usual_images = 250

    def obstacle(self, capability: type[Adapter]) -> str | None:
        if capability is HasDensity and (lack := self.no_flow()) is not None:
            return f"{lack}, so that its likelihood is not known"
        if capability is Encodes and (lack := self.no_flow()) is not None:
            return f"{lack}, so that no noise belongs to an image"
        if capability is HasSteps and (lack := self.obstacle_to_steps()) is not None:
            return lack
        if capability is Restores and (lack := self.no_expectation()) is not None:
            return f"{lack}, so that it restores no images"
        return super().obstacle(capability)

    def no_expectation(self) -> str | None:
        """Says why it is not known what clean images it expects of noisy ones; `None` if it is."""
        unet, scheduler = self.pipe.unet.config, self.pipe.scheduler
        try:
            check_noise_levels(scheduler)
        except ValueError:
            return f"has a {type(scheduler).__name__} with noise levels of its own"
        if scheduler.config.prediction_type not in PREDICTION_TYPES:
            return f"predicts {scheduler.config.prediction_type}, none of {', '.join(PREDICTION_TYPES)}"
        if unet.out_channels != unet.in_channels:
            return f"makes {unet.out_channels} channels of {unet.in_channels}: more than the noise"
        return None

    def no_flow(self) -> str | None:
        """Says why it has no probability flow that can be computed; `None` if it has one."""
        if (lack := self.no_expectation()) is not None:
            return lack
        unet, scheduler = self.pipe.unet.config, self.pipe.scheduler
        if scheduler.config.num_train_timesteps < 2:
            return "has a single timestep, and no flow"
        if not log_ratios(scheduler).isfinite().all():
            return "has timesteps without noise"
        if unet.get("time_embedding_type") == "learned":
            return "knows whole timesteps alone, and nothing between them"
        return None

    @property
    def null_class(self) -> int | None:
        """The class that stands for "no class", which guidance needs."""
        return None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        config = self.pipe.unet.config
        height, width = (config.sample_size,) * 2 if isinstance(config.sample_size, int) else config.sample_size
        return config.out_channels, height, width

    def guidance(self, options: DDPMSamplingConfig) -> float | None:
        """Returns the guidance that the options stand for; `None` for a model without classes."""
        return options.guidance_scale

    def sampler(self, options: DDPMSamplingConfig) -> str:
        """Returns the sampler that the options stand for."""
        return options.sampler or default_sampler(options.num_inference_steps)

    def scheduler(self, options: DDPMSamplingConfig) -> SchedulerMixin:
        """Makes a scheduler of the options' kind, with its timesteps.

        Raises:
            UserError: If the checkpoint's own is of a kind that none can be made from, or knows fewer timesteps.
        """
        steps, trained = options.num_inference_steps, self.pipe.scheduler.config.num_train_timesteps
        if steps is not None and steps > trained:
            raise UserError(
                f"`num_inference_steps` {steps} is out of range: this model was trained with {trained} timesteps. Use "
                f"{trained} or fewer."
            )
        try:
            scheduler = sampling_scheduler(self.pipe.scheduler, self.sampler(options))
            set_timesteps(scheduler, options.num_inference_steps)
        except ValueError as error:
            raise UserError(str(error)) from error
        return scheduler

    def check(self, options: DDPMSamplingConfig) -> None:
        if options.guidance_scale not in (None, 1):
            raise UserError(f"`guidance_scale` {options.guidance_scale}: this model knows no classes. Leave it out.")
        self.check_steps(options)

    def check_steps(self, options: DDPMSamplingConfig) -> None:
        """Tells once, by the names of the options, what [`denoise`] would warn of with each batch.

        Raises:
            UserError: See [`scheduler`].
        """
        scheduler = self.scheduler(options)
        short, better = shortage(scheduler), advice(scheduler)
        if short is not None:
            wrong, least = short
            better = f"`num_inference_steps` {len(scheduler.timesteps)} of `sampler` {self.sampler(options)} {wrong}: "
            better += f"use {least} or more, or leave `sampler` out."
        if better is not None:
            note(better)

    def settings(self, options: DDPMSamplingConfig) -> dict[str, Any]:
        return {
            "sampler": self.sampler(options),
            "num_inference_steps": len(self.scheduler(options).timesteps),
            "guidance_scale": self.guidance(options),
        }

    def passes(self, options: DDPMSamplingConfig) -> int:
        return len(self.scheduler(options).timesteps) * (1 + (self.guidance(options) not in (None, 1)))

    def fastest(self, options: DDPMSamplingConfig) -> DDPMSamplingConfig:
        return dataclasses.replace(options, num_inference_steps=1)

    def generate(
        self, generators: Sequence[torch.Generator], labels: torch.Tensor | None, options: DDPMSamplingConfig
    ) -> torch.Tensor:
        return self._denoise(self.scheduler(options), generators, labels, options)

    def _denoise(
        self,
        scheduler: SchedulerMixin,
        generators: Sequence[torch.Generator],
        labels: torch.Tensor | None,
        options: DDPMSamplingConfig,
        **more: Any,
    ) -> torch.Tensor:
        guidance = self.guidance(options)
        return denoise(
            self.pipe.unet,
            scheduler,
            len(generators),
            generators,
            options.num_inference_steps,
            self.labels_for(generators, labels),
            self.null_class,
            1.0 if guidance is None else guidance,
            warn=False,
            **more,
        )

    def labels_for(self, generators: Sequence[torch.Generator], labels: torch.Tensor | None) -> torch.Tensor | None:
        """Returns the classes to make: those given, or what is made without."""
        return labels

    # HasSteps

    def obstacle_to_steps(self) -> str | None:
        """Says why the predicted images cannot be told; `None` if they can."""
        kind = self.pipe.scheduler.config.prediction_type
        return None if kind in PREDICTION_TYPES else f"predicts {kind}, none of {', '.join(PREDICTION_TYPES)}"

    def steps(
        self,
        generators: Sequence[torch.Generator],
        labels: torch.Tensor | None,
        options: DDPMSamplingConfig,
        most: int,
    ) -> tuple[str, list[Step]]:
        scheduler = self.scheduler(options)
        count, kind = len(scheduler.timesteps), scheduler.config.prediction_type
        chosen, steps = evenly(count, most - 1), []

        def look(step: int, timestep: torch.Tensor, noisy: torch.Tensor, output: torch.Tensor) -> None:
            if step in chosen:
                share = scheduler.alphas_cumprod[int(timestep)].to(noisy).expand(len(noisy))
                images = {"noisy": noisy, "expected": clean(kind, output, noisy, share)}
                shown = {name: (image / 2 + 0.5).clamp(0, 1) for name, image in images.items()}
                steps.append(Step(f"{step + 1} of {count}", shown))

        images = self._denoise(scheduler, generators, labels, options, on_prediction=look)
        steps.append(Step("image", {"noisy": images, "expected": images}))
        return "the noisy images, and the clean ones that the network expects of them, before each step", steps

    # HasDensity

    def samples(self, asked: int | None) -> int:
        return min(asked or 1, MOST_SAMPLES)

    def log_prob(
        self,
        images: torch.Tensor,
        labels: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        num_samples: int = 1,
    ) -> Density:
        if images.shape[1:] != self.image_shape:
            raise ValueError(
                f"images has shape {tuple(images.shape)}, but must be (B, {', '.join(map(str, self.image_shape))})."
            )
        elbo.check_images(images, "logistic")
        if labels is None and self.null_class is not None:
            labels = torch.full((len(images),), self.null_class, device=images.device)
        # Each image has a generator of its own, so that it does not matter which ones are computed together.
        seeds = torch.randint(2**62, (len(images),), generator=generator).tolist()
        size = max(1, FLOW_VALUES // images[0].numel())
        parts = []
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
            classes = None if labels is None else labels[part]
            draws = [self._flow_bound(images[part], classes, generators) for _ in range(num_samples)]
            parts.append(torch.stack(draws).mean(0))
        nats = torch.cat(parts)
        return Density(nats, nats)

    def _flow_bound(
        self, images: torch.Tensor, labels: torch.Tensor | None, generators: Sequence[torch.Generator]
    ) -> torch.Tensor:
        """Draws an unbiased estimate of the bound of [`~objectives.probability_flow`]: `(B,)`, nats."""
        kind, ratios = self.pipe.scheduler.config.prediction_type, log_ratios(self.pipe.scheduler)
        first, last = ratios[0].item(), ratios[-1].item()
        alpha, sigma = amplitudes(first)
        predict = self._predictor(labels)

        def drift_at(noisy: torch.Tensor, log_ratio: float) -> torch.Tensor:
            return drift(kind, predict(noisy, log_ratio), noisy, log_ratio)

        def draw_probe() -> torch.Tensor:
            signs = [torch.randint(2, images.shape[1:], generator=each) for each in generators]
            return torch.stack(signs).to(images) * 2 - 1

        noise = torch.stack([torch.randn(images.shape[1:], generator=each) for each in generators]).to(images)
        noisy = alpha * images + sigma * noise
        density = flow_log_prob(drift_at, noisy, first, last, FLOW_STEPS, draw_probe)
        with torch.no_grad():
            return density + last_step(kind, predict(noisy, first), noisy, noise, images, first)

    def _predictor(self, labels: torch.Tensor | None) -> Callable[[torch.Tensor, float], torch.Tensor]:
        """Returns what the network predicts of noisy images and their `log(alpha / sigma)`."""
        ratios, unet = log_ratios(self.pipe.scheduler), self.pipe.unet

        def predict(noisy: torch.Tensor, log_ratio: float) -> torch.Tensor:
            timestep = torch.tensor(timestep_of(ratios, log_ratio), device=noisy.device)
            return unet(noisy.to(unet.dtype), timestep, class_labels=labels).sample.float()

        return predict

    def details(self, num_samples: int) -> dict[str, Any]:
        sigma = amplitudes(log_ratios(self.pipe.scheduler)[0].item())[1]
        return {
            "kind": "estimate",
            "bound": f"probability flow in {FLOW_STEPS} Runge-Kutta steps, and a variational bound for its last step, "
            "so that the true value is rather lower",
            "steps": FLOW_STEPS,
            "evaluations": 4 * FLOW_STEPS * num_samples,
            "probes": num_samples,
            "dequantisation": f"the least noise of the schedule, of deviation {sigma:.3g}, drawn with each probe",
        }

    # Encodes

    def encode(
        self, images: torch.Tensor, labels: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Carries images to noise along the probability flow (DDIM inversion, https://huggingface.co/papers/2010.02502,
        section 4.3, by a method of higher order)."""
        first = log_ratios(self.pipe.scheduler)[0].item()
        alpha, _ = amplitudes(first)
        labels, *_ = self.condition(len(images), labels, None, None)
        return self._carry(alpha * (2 * images.to(self.pipe.device) - 1), labels, backwards=False)

    def decode(self, latents: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        kind, first = self.pipe.scheduler.config.prediction_type, log_ratios(self.pipe.scheduler)[0].item()
        labels, *_ = self.condition(len(latents), labels, None, None)
        noisy = self._carry(latents.to(self.pipe.device), labels, backwards=True)
        with torch.no_grad():
            clean = expected(kind, self._predictor(labels)(noisy, first), noisy, first)
        return (clean / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def _carry(self, images: torch.Tensor, labels: torch.Tensor | None, backwards: bool) -> torch.Tensor:
        """Carries noisy images along the probability flow, from the least noise to the most, or backwards."""
        kind, ratios = self.pipe.scheduler.config.prediction_type, log_ratios(self.pipe.scheduler)
        predict, first, last = self._predictor(labels), ratios[0].item(), ratios[-1].item()
        if backwards:
            first, last = last, first

        def slope(noisy: torch.Tensor, log_ratio: float) -> tuple[torch.Tensor]:
            return (drift(kind, predict(noisy, log_ratio), noisy, log_ratio),)

        return integrate(slope, (images.float(),), first, last, CODE_STEPS)[0]

    def classes_of(self, images: torch.Tensor) -> torch.Tensor | None:
        """Finds the classes under which the network predicts the noise best (https://huggingface.co/papers/2303.16203):
        their densities would take a hundred times as long."""
        if self.classes is None:
            return None
        scheduler, generator, noisy = self.pipe.scheduler, torch.Generator().manual_seed(0), []
        for timestep in torch.linspace(0.1, 0.9, TRIED).mul(scheduler.config.num_train_timesteps).long().tolist():
            noise = torch.randn(images.shape, generator=generator).to(images.device)
            noisy.append((timestep, scheduler.alphas_cumprod[timestep].item(), noise))
        errors = []
        for number in range(len(self.classes.names)):
            labels = torch.full((len(images),), number, device=images.device)
            errors.append(torch.stack([self._error(images, labels, *each) for each in noisy]).sum(0))
        return torch.stack(errors).argmin(0)

    @torch.no_grad()
    def _error(
        self, images: torch.Tensor, labels: torch.Tensor, timestep: int, share: float, noise: torch.Tensor
    ) -> torch.Tensor:
        """Returns the mean squared error of the noise that the network sees in noisy images: `(B,)`."""
        unet, kind = self.pipe.unet, self.pipe.scheduler.config.prediction_type
        noisy = share**0.5 * (2 * images - 1) + (1 - share) ** 0.5 * noise
        output = unet(noisy.to(unet.dtype), timestep, class_labels=labels).sample.float()
        shares = torch.full((len(images),), share, device=images.device)
        error = (clean(kind, output, noisy, shares) - (2 * images - 1)).square().flatten(1).mean(1)
        return error * share / (1 - share)

    # Restores

    @property
    def tasks(self) -> tuple[str, ...]:
        colours = ("colorize",) if self.image_shape[0] in (3, 4) else ()
        return ("inpaint", "super_resolve", "denoise", *colours, "img2img")

    def restore_settings(self, task: str) -> dict[str, Any]:
        self.require_task(task)
        own: dict[str, Any] = {}
        if task in ("inpaint", "super_resolve", "colorize"):
            own = {"method": METHODS[0], "resamples": 1}
        steps = 1 if task == "denoise" else min(STEPS, self.pipe.scheduler.config.num_train_timesteps)
        damage = {"inpaint": {"mask": None}, "denoise": {"noise_level": None}, "img2img": {"strength": 0.5}}
        return {**damage.get(task, {}), **own, "steps": steps, "guidance_scale": None}  # type: ignore[dict-item]

    def restore(
        self,
        task: str,
        images: torch.Tensor,
        labels: torch.Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        **settings: Any,
    ) -> torch.Tensor:
        """Restores images by what the network expects, see [`~pipelines.diffusion_restoration`]; of the settings,
        `steps` are those of sampling, and pixels and `noise_level` are those of [0, 1]."""
        given = self.restore_settings(task) | settings
        shape, size = shape_for(self, task, images), self.image_shape[1:]
        if images.shape[1:] != shape:
            expected = ", ".join(map(str, shape))
            raise ValueError(f"images has shape {tuple(images.shape)}, but must have (B, {expected}).")
        images = 2 * images.to(self.pipe.device) - 1
        denoiser = Denoiser(
            self.pipe.unet,
            self.pipe.scheduler,
            *self.condition(len(images), labels, generator, given.pop("guidance_scale")),
        )
        own = {"generator": generator, "num_inference_steps": given.pop("steps")}
        own |= {"progress_bar": self.pipe.progress_bar}
        if task == "img2img":
            made = img2img(denoiser, images, given["strength"], **own)
        elif task == "denoise":
            made = remove_noise(denoiser, images, self.noise_deviation(given["noise_level"]), **own)
        else:
            if task == "inpaint":
                if given["mask"] is None:
                    raise ValueError("mask is missing: say what to paint.")
                seen = holes(images, read_mask(given["mask"], size, len(images)).to(images.device))
            else:
                seen = grays(images) if task == "colorize" else shrunk(images, size[0] // images.shape[2])
            made = restore(denoiser, seen, method=given["method"], resamples=given["resamples"], **own)
        return (made / 2 + 0.5).clamp(0, 1)

    def noise_deviation(self, noise_level: float | None) -> float:
        """Returns the deviation of noise for pixels in [-1, 1] from that for pixels in [0, 1].

        Raises:
            ValueError: If it is missing, none, or more than there was in training.
        """
        if noise_level is None:
            raise ValueError("noise_level is missing: give the standard deviation of the noise, for pixels in [0, 1].")
        at_least("noise_level", noise_level, 0, whole=False)
        most = (-log_ratios(self.pipe.scheduler)[-1]).exp().item() / 2
        if not 0 < noise_level <= most:
            raise ValueError(
                f"noise_level is {noise_level}, but must be above 0 and at most {most:.3g}, the noise of training."
            )
        return 2 * noise_level

    def condition(
        self, count: int, labels: torch.Tensor | None, generator: Any, guidance: float | None
    ) -> tuple[torch.Tensor | None, int | None, float]:
        """Returns the classes of images that are restored, the one that stands for "no class", and the guidance."""
        if guidance not in (None, 1):
            raise ValueError(f"guidance_scale is {guidance}, but this model knows no classes: leave it out.")
        return None, None, 1.0

    def sliders(self) -> dict[str, Slider]:
        most = min(MOST_STEPS, self.pipe.scheduler.config.num_train_timesteps)
        return {"num_inference_steps": Slider("Steps", 1, most, 1, min(FEW_STEPS, most))}


class ClassConditionalDDPMAdapter(DDPMAdapter):
    """Speaks for a [`ClassConditionalDDPMPipeline`]."""

    @property
    def null_class(self) -> int | None:
        return self.pipe.null_class

    @property
    def without_classes(self) -> bool:
        return self.null_class is not None

    def guidance(self, options: DDPMSamplingConfig) -> float | None:
        return self.pipe.config.guidance_scale if options.guidance_scale is None else options.guidance_scale

    def check(self, options: DDPMSamplingConfig) -> None:
        guidance = self.guidance(options)
        if guidance != 1 and self.null_class is None:
            raise UserError(f"`guidance_scale` {guidance} needs a model trained with `label_dropout`: leave it out.")
        self.check_steps(options)

    def labels_for(self, generators: Sequence[torch.Generator], labels: torch.Tensor | None) -> torch.Tensor | None:
        return self.pipe.class_numbers(None, len(generators), generators) if labels is None else labels  # groups

    def condition(
        self, count: int, labels: torch.Tensor | None, generator: Any, guidance: float | None
    ) -> tuple[torch.Tensor | None, int | None, float]:
        if labels is not None:
            guidance = self.pipe.config.guidance_scale if guidance is None else guidance
            check_guidance(guidance, self.null_class)
            return labels, self.null_class, guidance
        if self.null_class is None:  # groups are drawn; without them it says that the class is missing
            return self.pipe.class_numbers(None, count, generator), None, 1.0
        nothing = torch.full((count,), self.null_class, device=self.pipe.device)
        return nothing, self.null_class, 1.0

    def details(self, num_samples: int) -> dict[str, Any]:
        details = super().details(num_samples)
        if self.pipe.config.guidance_scale != 1:
            details["bound"] += "; of the model without guidance"
        return details

    def sliders(self) -> dict[str, Slider]:
        sliders = super().sliders()
        if self.null_class is not None:
            usual = self.pipe.config.guidance_scale
            sliders["guidance_scale"] = Slider("Guidance", 0, max(10, usual), 0.1, usual)
        return sliders


def timestep_of(log_ratios: torch.Tensor, log_ratio: float) -> float:
    """Returns the timestep, which may lie between two trained ones, at which a schedule has `log(alpha / sigma)`.

    Args:
        log_ratios (`torch.Tensor` of shape `(T,)`): Those of its timesteps, descending.
        log_ratio (`float`): One between the first and the last.
    """
    below = min(max(int((log_ratios > log_ratio).sum()) - 1, 0), len(log_ratios) - 2)
    high, low = log_ratios[below].item(), log_ratios[below + 1].item()
    return below + min(max((high - log_ratio) / (high - low), 0.0), 1.0)
