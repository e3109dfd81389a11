"""Sampling from a denoising network: schedulers for few steps, the loop, and the class-conditional pipeline.

An unconditional network is published as a stock `diffusers.DDPMPipeline`; [`denoise`] samples from that one too.
"""

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    ImagePipelineOutput,
    PNDMScheduler,
    SchedulerMixin,
    UNet2DModel,
)
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from diffusers.utils.torch_utils import randn_tensor

from hfgen.pipelines.base import SteppedPipeline, at_least, check_generators
from hfgen.pipelines.classes import Generators

FEW_STEPS = 20  # the default of the second-order samplers
FIRST_ORDER_STEPS = 50  # that of DDIM; DDPM takes all the steps of its training
LEAST_LOG_SNR, MOST_LOG_SNR = -5.1, 4.6  # log(alpha / sigma) where images are made: earlier is noise, later is sharp
NOISE_FROM = 10  # steps on which fresh noise in each is worth it

# thresholding with a maximum of 1 clamps the predicted clean image to [-1, 1], as clip_sample does for the others.
_SOLVER = {"timestep_spacing": "trailing", "thresholding": True, "sample_max_value": 1.0}
SAMPLERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sde-dpmsolver++": (
        DPMSolverMultistepScheduler,
        {**_SOLVER, "solver_order": 2, "algorithm_type": "sde-dpmsolver++"},
    ),
    "dpmsolver++": (DPMSolverMultistepScheduler, {**_SOLVER, "solver_order": 2, "algorithm_type": "dpmsolver++"}),
    # DDIM's formula. Of DDIMScheduler's 50 steps, evenly spaced in time, 0.87 (cosine schedule) or 0.74 (linear) of a
    # deviation of 0.1 comes back, and 0.95 of these; and it ends too early if the steps do not divide the timesteps.
    "ddim": (DPMSolverMultistepScheduler, {**_SOLVER, "solver_order": 1, "algorithm_type": "dpmsolver++"}),
    "ddpm": (DDPMScheduler, {"timestep_spacing": "trailing", "clip_sample": True}),
}


def default_sampler(steps: int | None = None) -> str:
    """Returns the sampler that suits a number of steps: without noise, if they are fewer than 10."""
    return "dpmsolver++" if steps is not None and steps < NOISE_FROM else "sde-dpmsolver++"


# Timesteps below which a scheduler loses a tenth of fine detail, being evenly spaced in time, or makes noise.
_BLURRED = {"DDIMScheduler": 100, "DDPMScheduler": 250}
_NOISY = {"HeunDiscreteScheduler": 5, "KDPM2AncestralDiscreteScheduler": 9, "SASolverScheduler": 10}


def shortage(scheduler: SchedulerMixin) -> tuple[str, int] | None:
    """Says of the timesteps of a scheduler what is wrong if they are too few, and how many are enough; `None` where
    they are.

    What is enough was measured with exact networks: see `benchmarks/steps.py` and
    `tests/pipelines/test_schedulers.py`.
    """
    steps, config, name = len(scheduler.timesteps), scheduler.config, type(scheduler).__name__
    if config.get("algorithm_type") == "sde-dpmsolver++" and steps < NOISE_FROM:
        return "are too few for fresh noise in each", NOISE_FROM
    least = FIRST_ORDER_STEPS if config.get("solver_order") == 1 else _BLURRED.get(name, 0)
    if steps < min(0.9 * least, config.num_train_timesteps):  # some of 50 may fall on one timestep
        return "lose fine detail", least
    if steps < _NOISY.get(name, 0):
        return "are too few, and give noise", _NOISY[name]
    return None


def advice(scheduler: SchedulerMixin) -> str | None:
    """Says what would be better than a scheduler with its timesteps; `None` where they are good: see [`shortage`]."""
    steps, config, name = len(scheduler.timesteps), scheduler.config, type(scheduler).__name__
    if config.get("use_beta_sigmas"):
        return (
            f"use_beta_sigmas gives {name} hardly a step where images are made, and so images without detail: take "
            "use_karras_sigmas or use_exponential_sigmas instead."
        )
    short = shortage(scheduler)
    if short is None:
        return None
    wrong, least = short
    if config.get("algorithm_type") == "sde-dpmsolver++" and steps < NOISE_FROM:
        return f"{steps} steps {wrong}: take 'dpmsolver++', or {least} or more."
    if config.get("solver_order") == 1 and config.get("algorithm_type") == "dpmsolver++":
        name = f"DDIM ({name} of first order)"  # whose formula that is: see SAMPLERS
    better = f"or sampling_scheduler(pipe.scheduler, {default_sampler(steps)!r})"
    return f"{steps} steps of {name} {wrong}: take {least} or more, {better}."


def sampling_scheduler(
    scheduler: SchedulerMixin, sampler: str | type[SchedulerMixin] = "sde-dpmsolver++", **options: Any
) -> SchedulerMixin:
    """Makes a scheduler that samples what `scheduler` trained.

    Args:
        scheduler (`SchedulerMixin`): The scheduler of the checkpoint: its noise schedule and prediction type are kept.
        sampler (`str` or `type`, *optional*, defaults to `"sde-dpmsolver++"`): See below; or a class of schedulers of
            diffusers. That one gets the noise schedule even if it does not know it by name, and its own algorithm,
            where `from_config` alone fails: a `DEISMultistepScheduler` or `SASolverScheduler` in place of a
            `"sde-dpmsolver++"` needs `from_config(pipe.scheduler.config, algorithm_type="deis")` or
            `"data_prediction"`.
        options: More arguments of the scheduler: `use_karras_sigmas=True`, ...

    The samplers, with the share of the deviation of fine detail (0.1, pixels in [-1, 1]) that an exact network gives
    back, and the mean error of pixels in 8-bit levels where they are dark or light, for the cosine schedule:

    | `sampler` | steps | detail | levels |
    |---|---|---|---|
    | `"sde-dpmsolver++"`, the default | 20 | 1.012 | 3.24 |
    | `"dpmsolver++"`, the default of fewer than 10 steps | 8 | 0.967 | 7.08 |
    | `"ddim"` | 50 | 0.952 | 1.70 |
    | `"ddpm"` | 1000 | 0.985 | 1.00 |

    The first is DPM-Solver++ of second order (https://huggingface.co/papers/2211.01095) with fresh noise in each step,
    by which later steps fix errors of earlier ones; the second leaves the noise out. DDIM
    (https://huggingface.co/papers/2010.02502) is DPM-Solver++ of first order. `python benchmarks/steps.py` measures
    all of them, at other steps and for other schedules, too.

    Raises:
        ValueError: For an unknown sampler, or a scheduler without a noise schedule.
    """
    if isinstance(sampler, str) and sampler not in SAMPLERS:
        raise ValueError(f"sampler is {sampler!r}, but must be one of {', '.join(SAMPLERS)}.")
    check_noise_levels(scheduler)
    config = dict(scheduler.config)
    kind, own = SAMPLERS[sampler] if isinstance(sampler, str) else (sampler, {"timestep_spacing": "trailing"})
    if not isinstance(sampler, str):
        config.pop("algorithm_type", None)
    if config.get("beta_schedule") == "sigmoid" and not issubclass(kind, DDPMScheduler):  # which alone knows it
        own = {**own, "beta_schedule": "linear", "trained_betas": scheduler.betas.tolist()}
    return kind.from_config(config, **{**own, **options})


def check_noise_levels(scheduler: SchedulerMixin) -> None:
    """Raises `ValueError` for a scheduler whose noise levels are not from a schedule of betas."""
    flow = " with use_flow_sigmas" if scheduler.config.get("use_flow_sigmas") else ""
    if not hasattr(scheduler, "alphas_cumprod") or flow:
        raise ValueError(
            f"{type(scheduler).__name__}{flow} has noise levels of its own, but this network knows only those of the "
            "schedule that it was trained with: use another scheduler."
        )


def limited_alphas(scheduler: SchedulerMixin) -> torch.Tensor:
    """Returns `alphas_cumprod` of the schedule that the network was trained with, for schedulers that go by the ratio
    of noise to signal: with no more noise than images need.

    The cosine schedule ends with 20,000 times as much noise as signal, and zero terminal SNR with infinitely more.
    Steps spread over such a range leave none to make the image. And not all of diffusers' schedulers know
    `rescale_betas_zero_snr`, with which the network may have been trained.

    Returns:
        `torch.Tensor` of shape `(T,)`: float32, descending; beyond `LEAST_LOG_SNR` by almost nothing.
    """
    return log_ratios(scheduler).mul(2).sigmoid().float()


def log_ratios(scheduler: SchedulerMixin) -> torch.Tensor:
    """Returns `log(alpha / sigma)` of [`limited_alphas`]: `(T,)`, float64, descending."""
    betas, kind = scheduler.betas, type(scheduler)
    knows = "rescale_betas_zero_snr" in inspect.signature(kind.__init__).parameters
    if scheduler.config.get("rescale_betas_zero_snr") and not knows:
        betas = rescale_zero_terminal_snr(betas)
    lambdas = (1 - betas.double()).cumprod(0).logit() / 2
    beyond = lambdas < LEAST_LOG_SNR
    return torch.where(beyond, LEAST_LOG_SNR - 1e-3 * beyond.cumsum(0), lambdas)


def log_snr_timesteps(
    scheduler: SchedulerMixin, steps: int, low: float = LEAST_LOG_SNR, high: float = MOST_LOG_SNR
) -> list[int]:
    """Spreads timesteps evenly in `log(alpha / sigma)` between `low` and `high`, the range in which the image is made.

    Steps spread evenly in time jump from a noise level of about 0.2 straight to 0, which erases all detail finer than
    that. Spread like this, 20 steps keep it (DPM-Solver, https://huggingface.co/papers/2206.00927, section 3.4). A
    schedule that ends in pure noise (`rescale_betas_zero_snr`) is sampled from there on.

    Args:
        scheduler (`SchedulerMixin`): One with `alphas_cumprod`.
        steps (`int`): How many steps; a few less come back where several fall on the same integer.

    Returns:
        `list[int]`: Timesteps, descending.
    """
    alphas = scheduler.alphas_cumprod.double().clamp(1e-20, 1 - 1e-12)
    lambdas = 0.5 * (alphas.log() - (1 - alphas).log())
    grid = torch.linspace(max(low, lambdas.min().item()), min(high, lambdas.max().item()), steps, dtype=torch.float64)
    timesteps = {int((lambdas - value).abs().argmin()) for value in grid}
    if scheduler.config.get("rescale_betas_zero_snr"):
        timesteps = {*sorted(timesteps)[:-1], len(lambdas) - 1}
    return sorted(timesteps, reverse=True)


def set_timesteps(scheduler: SchedulerMixin, steps: int | None = None, device: torch.device | str = "cpu") -> None:
    """Sets the timesteps of a scheduler, spaced as suits it; see [`denoise`] for `steps`.

    Raises:
        ValueError: For a scheduler that does not fit the network, or cannot take so many steps.
    """
    check_noise_levels(scheduler)
    if scheduler.config.get("thresholding") and scheduler.config.sample_max_value == 1:
        # That is a clamp, but diffusers sorts all pixels for it: most of the time of a step.
        scheduler._threshold_sample = _clamp
    trained = scheduler.config.num_train_timesteps
    if steps is None:
        first_order = scheduler.config.get("solver_order") == 1
        usual = trained if isinstance(scheduler, DDPMScheduler) else FIRST_ORDER_STEPS if first_order else FEW_STEPS
        steps = min(usual, trained)
    check_steps(steps, trained)
    own_spacing = any(scheduler.config.get(f"use_{kind}") for kind in _OWN_SPACINGS)
    if isinstance(scheduler, (DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler)) and not own_spacing:
        scheduler.set_timesteps(timesteps=log_snr_timesteps(scheduler, steps), device=device)
    else:
        if hasattr(scheduler, "sigmas") or isinstance(scheduler, PNDMScheduler):
            scheduler.alphas_cumprod = limited_alphas(scheduler)
        try:
            scheduler.set_timesteps(steps, device=device)
            if float(getattr(scheduler, "sigmas", [0.0])[-1]) > 1:
                raise ValueError("it would end in noise")
        except (ValueError, IndexError, RuntimeError, ZeroDivisionError) as error:
            raise ValueError(
                f"num_inference_steps is {steps}, which {type(scheduler).__name__} cannot take ({error}): use more."
            ) from error
    if hasattr(scheduler, "set_begin_index"):
        # Noise levels that differ may share a timestep: looked up by it, the first step would be taken for the second.
        scheduler.set_begin_index(0)


def check_steps(steps: int, trained: int) -> None:
    """Raises `ValueError` for a number of steps that a network of so many timesteps cannot take."""
    at_least("num_inference_steps", steps, 1)
    if steps > trained:
        raise ValueError(
            f"num_inference_steps is {steps}, but this network was trained with {trained} timesteps: use {trained} or "
            "fewer."
        )


def _clamp(sample: torch.Tensor) -> torch.Tensor:
    return sample.clamp(-1, 1)


_OWN_SPACINGS = ("karras_sigmas", "lu_lambdas", "exponential_sigmas", "beta_sigmas")


@torch.no_grad()
def denoise(
    unet: UNet2DModel,
    scheduler: SchedulerMixin,
    batch_size: int = 1,
    generator: Generators = None,
    num_inference_steps: int | None = None,
    class_labels: torch.Tensor | None = None,
    null_class: int | None = None,
    guidance_scale: float | Callable[[], float] = 1.0,
    progress_bar: Callable[[Any], Any] = iter,
    device: torch.device | None = None,
    on_step_end: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    latents: torch.Tensor | None = None,
    to_images: bool = True,
    warn: bool = True,
    on_prediction: Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Turns noise into images.

    Args:
        unet (`UNet2DModel`): The denoising network.
        scheduler (`SchedulerMixin`): Any diffusers scheduler that fits the network; see [`sampling_scheduler`].
        batch_size (`int`, *optional*, defaults to 1): Number of images.
        generator (*optional*): One `torch.Generator`, or one per image: then an image depends on its own alone.
        num_inference_steps (`int`, *optional*): Steps, at most as many as the training has timesteps; by default 20,
            50 for a solver of first order, and all for a `DDPMScheduler`. A warning says if they are too few.
        class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
        null_class (`int`, *optional*): The class that stands for "no class", which guidance needs.
        guidance_scale (`float` or `Callable`, *optional*, defaults to 1.0): Classifier-free guidance
            (https://huggingface.co/papers/2207.12598): 1 is no guidance, more follows the class more closely. A
            function without arguments is asked before each step.
        progress_bar (*optional*): Wraps the timesteps.
        device (`torch.device`, *optional*): Where to sample; by default where the network is.
        on_step_end (`Callable`, *optional*): Given a step's number, its timestep and the images after it, noisy and
            `(B, C, H, W)`, returns those to go on with.
        latents (`torch.Tensor` of shape `(B, C, H, W)`, *optional*): The noise to begin with, standard normal and
            float32, instead of drawing it.
        to_images (`bool`, *optional*, defaults to `True`): Whether to bring what the last step gives to [0, 1].
        warn (`bool`, *optional*, defaults to `True`): Whether to warn of too few steps.
        on_prediction (`Callable`, *optional*): Is given, in each step, its number, its timestep, the noisy images and
            what the network predicts of them, guided, both `(B, C, H, W)`.

    Returns:
        `torch.Tensor` of shape `(B, C, H, W)`: Images, float32 in [0, 1], or about [-1, 1] as the last step left them.

    Raises:
        ValueError: For a scheduler that does not fit, or guidance without a class for "no class".
    """
    size = unet.config.sample_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    shape = (batch_size, unet.config.in_channels, *size)
    device = device or unet.device
    generator = check_generators(generator, batch_size)
    if latents is None:
        # Drawn in float32 and on the generator's device: the same noise whatever the network's precision and device.
        latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
    set_timesteps(scheduler, num_inference_steps, device)
    better = advice(scheduler)
    if warn and better is not None:
        warnings.warn(better, stacklevel=3)  # of the caller, who is behind torch.no_grad
    labels: Any
    null: Any = null_class
    extra = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}

    sample = latents * scheduler.init_noise_sigma
    for step, timestep in enumerate(progress_bar(scheduler.timesteps)):
        scale = guidance_scale() if callable(guidance_scale) else guidance_scale
        scaled, labels = scheduler.scale_model_input(sample, timestep), class_labels
        guided = labels is not None and scale != 1.0
        if guided:
            check_guidance(scale, null_class)
            scaled, labels = torch.cat([scaled, scaled]), torch.cat([labels, torch.full_like(labels, null)])
        output = unet(scaled.to(unet.dtype), timestep, class_labels=labels).sample.float()
        if guided:
            conditional, unconditional = output.chunk(2)
            output = unconditional + scale * (conditional - unconditional)
        if on_prediction is not None:
            on_prediction(step, timestep, sample, output)
        sample = scheduler.step(output, timestep, sample, **extra).prev_sample
        if on_step_end is not None:
            sample = on_step_end(step, timestep, sample)
    return (sample / 2 + 0.5).clamp(0, 1) if to_images else sample


def check_guidance(guidance_scale: float, null_class: int | None) -> None:
    """Raises `ValueError` for guidance that is none, and of a network that has no class for "no class"."""
    at_least("guidance_scale", guidance_scale, 0, whole=False)
    if guidance_scale != 1.0 and null_class is None:
        raise ValueError(
            f"guidance_scale is {guidance_scale}, but this network was trained without label dropout: leave it out."
        )


class ClassConditionalDDPMPipeline(SteppedPipeline):
    r"""
    Pipeline for class-conditional image generation with classifier-free guidance.

    This model inherits from [`DiffusionPipeline`]. Check the superclass documentation for the generic methods
    implemented for all pipelines (downloading, saving, running on a particular device, etc.).

    Parameters:
        unet ([`UNet2DModel`]):
            A class-conditional `UNet2DModel`. If it has one class more than `id2label`, the last one stands for
            "no class", as guidance needs it.
        scheduler ([`SchedulerMixin`]):
            Any diffusers scheduler with a schedule of betas: made by [`sampling_scheduler`], or by the `from_config`
            of its class, which for `DEISMultistepScheduler` and `SASolverScheduler` must be told `algorithm_type`.
        id2label (`dict[int, str]`, *optional*):
            Names of the classes.
        class_shares (`list[float]` or `dict[int, float]`, *optional*):
            How often each class is in the data, and so how often it is drawn where no `class_labels` are given.
        guidance_scale (`float`, *optional*, defaults to 1.0):
            The guidance that suits the network: the default of a call.
        class_kind (`str`, *optional*):
            `"labels"`, or `"groups"` for classes without a meaning (groups of similar images found by clustering);
            by default groups if there are `class_shares`, which is what checkpoints of version 0.1 mean.
    """

    model_cpu_offload_seq = "unet"
    network_name = "unet"

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: SchedulerMixin,
        id2label: dict | None = None,
        class_shares: Sequence[float] | dict | None = None,
        guidance_scale: float = 1.0,
        class_kind: str | None = None,
    ):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self._register_classes(self._check_names(id2label, unnamed=1), class_shares, class_kind)
        self.register_to_config(guidance_scale=guidance_scale)
        self._guidance_scale = guidance_scale

    @property
    def null_class(self) -> int | None:
        """The number that stands for "no class", or `None` if the network was trained without."""
        count = len(self.class_names)
        return count if count < (self.unet.config.num_class_embeds or 0) else None

    def _classes_without_labels(self, batch_size: int, generator: Generators) -> torch.Tensor:
        """Returns drawn classes, or where their shares are not known, "no class" for each image."""
        if self.config.class_shares:
            return super()._classes_without_labels(batch_size, generator)
        if self.null_class is None:
            raise ValueError("class_labels is missing: this network cannot make images of no particular class.")
        return torch.full((batch_size,), self.null_class)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        guidance_scale: float | None = None,
        generator: Generators = None,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["ClassConditionalDDPMPipeline", int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        latents: torch.Tensor | None = None,
    ) -> ImagePipelineOutput | tuple:
        r"""
        The call function to the pipeline for generation.

        Args:
            batch_size (`int`, *optional*):
                Number of images; by default as many as there are `latents` or `class_labels`, or 1.
            class_labels (`int`, `str`, list of them or `torch.Tensor`, *optional*):
                Class of each image, by number or by name; one for all, or one per image. Without it, they are drawn
                as `class_shares` says; without these, images of no particular class.
            guidance_scale (`float`, *optional*):
                How closely to follow the class: 1 is no guidance, 1.5 to 3 trade diversity for it, and 0 makes images
                of no particular class. By default what the pipeline was saved with.
            generator (`torch.Generator` or list of them, *optional*):
                Makes the images repeatable; with one per image, each depends on its own alone.
            num_inference_steps (`int`, *optional*):
                Steps, at most as many as the training has timesteps; by default 20, 50 for a solver of first order,
                and all for a `DDPMScheduler`. A warning says if they are too few.
            output_type (`str`, *optional*, defaults to `"pil"`):
                `"pil"`, `"np"` (float32 in [0, 1], `(B, H, W, C)`) or `"pt"` (float32 in [0, 1], `(B, C, H, W)`); or
                `"latent"`, for what the last step gives, float32 `(B, C, H, W)` in about [-1, 1].
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return an [`ImagePipelineOutput`] instead of a tuple.
            callback_on_step_end (`Callable`, *optional*):
                Called as `callback_on_step_end(pipe, step, timestep, callback_kwargs)` after each step. It returns
                `callback_kwargs`, whose tensors may be others than those given; the images are made of them. If it
                returns nothing, they stay. If it sets `pipe._guidance_scale`, the next steps are guided by that; if
                it sets `pipe._interrupt = True`, the step was the last.
            callback_on_step_end_tensor_inputs (`list[str]`, *optional*, defaults to `("latents",)`):
                What `callback_kwargs` holds: `"latents"` are the noisy images, float32 `(B, C, H, W)`.
            latents (`torch.Tensor` of shape `(B, C, H, W)`, *optional*):
                The noise to begin with, instead of drawing it from the standard normal distribution.

        Raises:
            ValueError: For classes that the network does not know, guidance that it was not trained for, a scheduler
                that does not fit it, tensors that callbacks cannot have, or an argument of the wrong kind, shape or
                length.

        Example:

        ```py
        >>> from hfgen import ClassConditionalDDPMPipeline

        >>> pipe = ClassConditionalDDPMPipeline.from_pretrained("out/ddpm-mnist")
        >>> images = pipe(class_labels=[0, 1, 2, 3], guidance_scale=1.5).images
        ```
        """
        self._check_output(output_type, latents=True)
        step_end = self._step_end(callback_on_step_end, callback_on_step_end_tensor_inputs)
        batch_size = self._batch_size(batch_size, latents, class_labels)
        check_generators(generator, batch_size)
        if num_inference_steps is not None:
            check_steps(num_inference_steps, self.scheduler.config.num_train_timesteps)
        guided = class_labels is not None or bool(self.config.class_shares)
        self._begin(self.config.guidance_scale if guidance_scale is None else guidance_scale, guided)
        check_guidance(self.guidance_scale, self.null_class)
        if latents is not None:
            latents = self._given_latents(latents, (batch_size, *self.image_shape), "the noise of each image")
        with self._running():
            labels = self.class_numbers(class_labels, batch_size, generator)
            images = denoise(
                self.unet,
                self.scheduler,
                batch_size,
                generator,
                num_inference_steps,
                labels,
                self.null_class,
                lambda: self.guidance_scale if self.do_classifier_free_guidance else 1.0,
                self._steps,
                self._execution_device,
                step_end,
                latents,
                to_images=output_type != "latent",
            )
        output = self._export(images, output_type)
        return ImagePipelineOutput(images=output) if return_dict else (output,)
