"""Sampling from a denoising network: schedulers for few steps, the loop, and the class-conditional pipeline.

An unconditional network is published as a stock `diffusers.DDPMPipeline`; [`denoise`] samples from that one too.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    ImagePipelineOutput,
    SchedulerMixin,
    UNet2DModel,
)
from diffusers.utils.torch_utils import randn_tensor

from hfgen.pipelines.base import check_generators
from hfgen.pipelines.classes import ClassPipeline, Generators

FEW_STEPS = 20  # the default of every sampler but DDPM, which takes all the steps of its training

# thresholding with a maximum of 1 clamps the predicted clean image to [-1, 1], as clip_sample does for the others.
_SECOND_ORDER = {"solver_order": 2, "timestep_spacing": "trailing", "thresholding": True, "sample_max_value": 1.0}
SAMPLERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sde-dpmsolver++": (DPMSolverMultistepScheduler, {**_SECOND_ORDER, "algorithm_type": "sde-dpmsolver++"}),
    "dpmsolver++": (DPMSolverMultistepScheduler, {**_SECOND_ORDER, "algorithm_type": "dpmsolver++"}),
    "ddim": (DDIMScheduler, {"timestep_spacing": "trailing", "clip_sample": True}),
    "ddpm": (DDPMScheduler, {"timestep_spacing": "trailing", "clip_sample": True}),
}


def sampling_scheduler(scheduler: SchedulerMixin, sampler: str = "sde-dpmsolver++") -> SchedulerMixin:
    """Makes a scheduler that samples what `scheduler` trained.

    Args:
        scheduler (`SchedulerMixin`): The scheduler of the checkpoint: its noise schedule and prediction type are kept.
        sampler (`str`, *optional*, defaults to `"sde-dpmsolver++"`): `"sde-dpmsolver++"` (second order; 20 steps, each
            with fresh noise, by which later steps fix errors of earlier ones), `"dpmsolver++"` (the same without
            noise; 10 to 20), `"ddim"` (50 to 100) or `"ddpm"` (all steps of the training, 1000 as a rule).
            DPM-Solver++: https://huggingface.co/papers/2211.01095.

    Raises:
        ValueError: For an unknown sampler.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler is {sampler!r}, but must be one of {', '.join(SAMPLERS)}.")
    kind, options = SAMPLERS[sampler]
    if scheduler.config.beta_schedule == "sigmoid" and kind is not DDPMScheduler:  # only DDPMScheduler knows this name
        options = {**options, "beta_schedule": "linear", "trained_betas": scheduler.betas.tolist()}
    return kind.from_config(scheduler.config, **options)


def log_snr_timesteps(scheduler: SchedulerMixin, steps: int, low: float = -5.1, high: float = 4.6) -> list[int]:
    """Spreads timesteps evenly in `log(alpha / sigma)` between `low` and `high`, the range in which the image is made.

    Steps spread evenly in time jump from a noise level of about 0.2 straight to 0, which erases all detail finer than
    that. Spread like this, 20 steps keep it (DPM-Solver, https://huggingface.co/papers/2206.00927, section 3.4).

    Args:
        scheduler (`SchedulerMixin`): One with `alphas_cumprod`.
        steps (`int`): How many steps; a few less come back where several fall on the same integer.

    Returns:
        `list[int]`: Timesteps, descending.
    """
    alphas = scheduler.alphas_cumprod.double().clamp(1e-20, 1 - 1e-12)
    lambdas = 0.5 * (alphas.log() - (1 - alphas).log())
    grid = torch.linspace(max(low, lambdas.min().item()), min(high, lambdas.max().item()), steps, dtype=torch.float64)
    return sorted({int((lambdas - value).abs().argmin()) for value in grid}, reverse=True)


def set_timesteps(scheduler: SchedulerMixin, steps: int | None = None, device: torch.device | str = "cpu") -> None:
    """Sets the timesteps of a scheduler, spaced as suits it; see [`denoise`] for `steps`."""
    if scheduler.config.get("thresholding") and scheduler.config.sample_max_value == 1:
        # That is a clamp, but diffusers sorts all pixels for it: most of the time of a step.
        scheduler._threshold_sample = _clamp
    trained = scheduler.config.num_train_timesteps
    if isinstance(scheduler, DDPMScheduler):
        steps = steps or trained
    steps = min(steps or FEW_STEPS, trained)
    own_spacing = any(scheduler.config.get(f"use_{kind}") for kind in _OWN_SPACINGS)
    if isinstance(scheduler, (DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler)) and not own_spacing:
        scheduler.set_timesteps(timesteps=log_snr_timesteps(scheduler, steps), device=device)
    else:
        scheduler.set_timesteps(steps, device=device)


def _clamp(sample: torch.Tensor) -> torch.Tensor:
    return sample.clamp(-1, 1)


_OWN_SPACINGS = ("karras_sigmas", "lu_lambdas", "exponential_sigmas", "beta_sigmas", "flow_sigmas")


@torch.no_grad()
def denoise(
    unet: UNet2DModel,
    scheduler: SchedulerMixin,
    batch_size: int = 1,
    generator: Generators = None,
    num_inference_steps: int | None = None,
    class_labels: torch.Tensor | None = None,
    null_class: int | None = None,
    guidance_scale: float = 1.0,
    progress_bar: Callable[[Any], Any] = iter,
    device: torch.device | None = None,
    on_step_end: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Turns noise into images.

    Args:
        unet (`UNet2DModel`): The denoising network.
        scheduler (`SchedulerMixin`): Any diffusers scheduler that fits the network; see [`sampling_scheduler`].
        batch_size (`int`, *optional*, defaults to 1): Number of images.
        generator (*optional*): One `torch.Generator`, or one per image: then an image depends on its own alone.
        num_inference_steps (`int`, *optional*): Steps; by default 20, or all steps of the training for a
            `DDPMScheduler`.
        class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes, for a class-conditional network.
        null_class (`int`, *optional*): The class that stands for "no class", which guidance needs.
        guidance_scale (`float`, *optional*, defaults to 1.0): Classifier-free guidance
            (https://huggingface.co/papers/2207.12598): 1 is no guidance, more follows the class more closely.
        progress_bar (*optional*): Wraps the timesteps.
        device (`torch.device`, *optional*): Where to sample; by default where the network is.
        on_step_end (`Callable`, *optional*): Given a step's number, its timestep and the images after it, noisy and
            `(B, C, H, W)`, returns those to go on with.

    Returns:
        `torch.Tensor` of shape `(B, C, H, W)`: Images, float32 in [0, 1].
    """
    guided = class_labels is not None and guidance_scale != 1.0
    size = unet.config.sample_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    shape = (batch_size, unet.config.in_channels, *size)
    device = device or unet.device
    generator = list(generator) if isinstance(generator, Sequence) else generator
    # Drawn in float32 and on the generator's device: the same noise whatever the network's precision and device.
    noise = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
    set_timesteps(scheduler, num_inference_steps, device)
    extra = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    labels = class_labels
    if guided:
        assert labels is not None and null_class is not None
        labels = torch.cat([labels, torch.full_like(labels, null_class)])

    sample = noise * scheduler.init_noise_sigma
    for step, timestep in enumerate(progress_bar(scheduler.timesteps)):
        scaled = scheduler.scale_model_input(sample, timestep)
        if guided:
            scaled = torch.cat([scaled, scaled])
        output = unet(scaled.to(unet.dtype), timestep, class_labels=labels).sample.float()
        if guided:
            conditional, unconditional = output.chunk(2)
            output = unconditional + guidance_scale * (conditional - unconditional)
        sample = scheduler.step(output, timestep, sample, **extra).prev_sample
        if on_step_end is not None:
            sample = on_step_end(step, timestep, sample)
    return (sample / 2 + 0.5).clamp(0, 1)


class ClassConditionalDDPMPipeline(ClassPipeline):
    r"""
    Pipeline for class-conditional image generation with classifier-free guidance.

    This model inherits from [`DiffusionPipeline`]. Check the superclass documentation for the generic methods
    implemented for all pipelines (downloading, saving, running on a particular device, etc.).

    Parameters:
        unet ([`UNet2DModel`]):
            A class-conditional `UNet2DModel`. If it has one class more than `id2label`, the last one stands for
            "no class", as guidance needs it.
        scheduler ([`SchedulerMixin`]):
            Any diffusers scheduler; see [`sampling_scheduler`].
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
    _callback_tensor_inputs = ["latents"]

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
        numbers = range(unet.config.num_class_embeds)
        self._register_classes(id2label or {number: str(number) for number in numbers}, class_shares, class_kind)
        self.register_to_config(guidance_scale=guidance_scale)

    @property
    def null_class(self) -> int | None:
        """The number that stands for "no class", or `None` if the network was trained without."""
        count = len(self.config.id2label)
        return count if self.unet.config.num_class_embeds > count else None

    def _classes_without_labels(self, batch_size: int, generator: Generators) -> torch.Tensor:
        """Returns drawn classes, or where their shares are not known, "no class" for each image."""
        if self.config.class_shares:
            return super()._classes_without_labels(batch_size, generator)
        if self.null_class is None:
            raise ValueError("class_labels is missing: this network cannot make images of no particular class.")
        return torch.full((batch_size,), self.null_class)

    def _until_interrupted(self, timesteps: torch.Tensor) -> Iterator[torch.Tensor]:
        self._interrupt = False
        for timestep in self.progress_bar(timesteps):
            yield timestep
            if self._interrupt:
                return

    @property
    def interrupt(self) -> bool:
        """Whether a callback has stopped the sampling."""
        return self._interrupt

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
    ) -> ImagePipelineOutput | tuple:
        r"""
        The call function to the pipeline for generation.

        Args:
            batch_size (`int`, *optional*):
                Number of images; by default as many as there are `class_labels`, or 1.
            class_labels (`int`, `str`, list of them or `torch.Tensor`, *optional*):
                Class of each image, by number or by name; one for all, or one per image. Without it, they are drawn
                as `class_shares` says; without these, images of no particular class.
            guidance_scale (`float`, *optional*):
                How closely to follow the class: 1 is no guidance, 1.5 to 3 trade diversity for it, and 0 makes images
                of no particular class. By default what the pipeline was saved with.
            generator (`torch.Generator` or list of them, *optional*):
                Makes the images repeatable; with one per image, each depends on its own alone.
            num_inference_steps (`int`, *optional*):
                Steps; by default 20, or all steps of the training for a `DDPMScheduler`.
            output_type (`str`, *optional*, defaults to `"pil"`):
                `"pil"`, `"np"` (float32 in [0, 1], `(B, H, W, C)`) or `"pt"` (float32 in [0, 1], `(B, C, H, W)`).
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return an [`ImagePipelineOutput`] instead of a tuple.
            callback_on_step_end (`Callable`, *optional*):
                Called as `callback_on_step_end(pipe, step, timestep, callback_kwargs)` after each step. It returns
                `callback_kwargs`, whose tensors may be others than those given; the images are made of them. If it
                sets `pipe._interrupt = True`, the step was the last.
            callback_on_step_end_tensor_inputs (`list[str]`, *optional*, defaults to `("latents",)`):
                What `callback_kwargs` holds: `"latents"` are the noisy images, float32 `(B, C, H, W)`.

        Raises:
            ValueError: For classes that the network does not know, guidance that it was not trained for, tensors
                that callbacks cannot have, or an argument of the wrong length.

        Example:

        ```py
        >>> from hfgen import ClassConditionalDDPMPipeline

        >>> pipe = ClassConditionalDDPMPipeline.from_pretrained("out/ddpm-mnist")
        >>> images = pipe(class_labels=[0, 1, 2, 3], guidance_scale=1.5).images
        ```
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type is {output_type!r}, but must be one of pil, np, pt.")
        # The callbacks that come with diffusers say themselves what they need.
        inputs = getattr(callback_on_step_end, "tensor_inputs", callback_on_step_end_tensor_inputs)
        if not set(inputs) <= set(self._callback_tensor_inputs):
            raise ValueError(
                f"callback_on_step_end_tensor_inputs is {list(inputs)}, but may only have "
                f"{self._callback_tensor_inputs}."
            )
        if batch_size is None:
            several = class_labels is not None and not isinstance(class_labels, (int, str))
            batch_size = len(class_labels) if several else 1  # type: ignore[arg-type]
        check_generators(generator, batch_size)
        if guidance_scale is None:
            guidance_scale = self.config.guidance_scale
        if guidance_scale != 1.0 and self.null_class is None:
            raise ValueError(
                f"guidance_scale is {guidance_scale}, but this network was trained without label dropout: "
                "leave it out."
            )
        labels = self.class_numbers(class_labels, batch_size, generator)

        def on_step_end(step: int, timestep: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
            assert callback_on_step_end is not None
            given = {"latents": latents} if inputs else {}
            return callback_on_step_end(self, step, timestep, given).get("latents", latents)

        images = denoise(
            self.unet,
            self.scheduler,
            batch_size,
            generator,
            num_inference_steps,
            labels,
            self.null_class,
            guidance_scale if class_labels is not None or self.config.class_shares else 1.0,
            self._until_interrupted,
            self._execution_device,
            on_step_end if callback_on_step_end is not None else None,
        )
        output: Any = images
        if output_type != "pt":
            output = images.cpu().permute(0, 2, 3, 1).numpy()
            if output_type == "pil":
                output = self.numpy_to_pil(output)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=output) if return_dict else (output,)
