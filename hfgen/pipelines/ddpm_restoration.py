"""Restoring images with a denoising network that was trained for one task: it sees the damaged image beside the noise
(SR3, https://huggingface.co/papers/2104.07636; Palette, https://huggingface.co/papers/2111.05826)."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import ImagePipelineOutput, SchedulerMixin, UNet2DModel

from hfgen.pipelines.base import SteppedPipeline, check_generators, read_pixels
from hfgen.pipelines.classes import Generators
from hfgen.pipelines.ddpm_sampling import check_steps, denoise
from hfgen.pipelines.restoration import enlarge, factor_of

RESTORERS = ("inpaint", "super_resolve", "colorize", "denoise")


def channels_beside(task: str, channels: int) -> int:
    """Returns how many channels of an image of so many channels a network sees beside the noise: for `"inpaint"` one
    more, which says where the hole is; for `"colorize"` two less."""
    return channels + {"inpaint": 1, "colorize": -2}.get(task, 0)


def beside(task: str, images: torch.Tensor, factor: int = 1, hole: torch.Tensor | None = None) -> torch.Tensor:
    """Returns what a network sees of damaged images beside the noise.

    Args:
        task (`str`): One of `RESTORERS`.
        images (`torch.Tensor` of shape `(B, C, H, W)`): Damaged images, in [-1, 1].
        factor (`int`): How many times larger small images are to become.
        hole (`torch.Tensor` of shape `(B, 1, H, W)`, bool): What is missing, for `"inpaint"`.

    Returns:
        `torch.Tensor` of shape `(B, D, H, W)`, with [`channels_beside`], all of one size.
    """
    if task == "super_resolve":
        return enlarge(images, factor)
    if task == "inpaint":
        assert hole is not None
        return torch.cat([images.masked_fill(hole, 0.0), 2 * hole.to(images) - 1], 1)
    return images


class Seeing:
    """A denoising network that sees images `(B, D, H, W)` beside the noise, for [`~ddpm_sampling.denoise`]."""

    def __init__(self, unet: UNet2DModel, seen: torch.Tensor):
        self.unet, self.seen = unet, seen
        self.device, self.dtype = unet.device, unet.dtype
        self.config = SimpleNamespace(sample_size=unet.config.sample_size, in_channels=unet.config.out_channels)

    def __call__(self, sample: torch.Tensor, timestep: Any, class_labels: torch.Tensor | None = None) -> Any:
        return self.unet(torch.cat([sample, self.seen.to(sample)], 1), timestep, class_labels=class_labels)


class DDPMRestorationPipeline(SteppedPipeline):
    r"""
    Pipeline for restoring images with a diffusion model that was trained for it.

    This model inherits from [`DiffusionPipeline`]. Check the superclass documentation for the generic methods
    implemented for all pipelines (downloading, saving, running on a particular device, etc.).

    Parameters:
        unet ([`UNet2DModel`]):
            A `UNet2DModel` that takes noisy images and what is left of them, and makes clean ones.
        scheduler ([`SchedulerMixin`]):
            Any diffusers scheduler with a schedule of betas.
        task (`str`, *optional*, defaults to `"inpaint"`):
            What it was trained for: `"inpaint"`, `"super_resolve"`, `"colorize"` or `"denoise"`.
        task_level (`float`, *optional*):
            How strongly its images are degraded: how many times larger they become, or the standard deviation of the
            noise for pixels in [0, 1].

    Example:

    ```py
    >>> from hfgen import DDPMRestorationPipeline

    >>> pipe = DDPMRestorationPipeline.from_pretrained("out/ddpm-super_resolve")
    >>> large = pipe(small).images[0]
    ```
    """

    model_cpu_offload_seq = "unet"
    network_name = "unet"

    def __init__(
        self, unet: UNet2DModel, scheduler: SchedulerMixin, task: str = "inpaint", task_level: float | None = None
    ):
        super().__init__()
        if task not in RESTORERS:
            raise ValueError(f"task is {task!r}, but must be one of {', '.join(RESTORERS)}.")
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(task=task, task_level=task_level)

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        mask: Any = None,
        generator: Generators = None,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["DDPMRestorationPipeline", int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        r"""
        The call function to the pipeline.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or list of them):
                The images, of the model's size: to enlarge, smaller by `task_level`; to colour, gray (`L`, or `LA` of
                a model with transparency). Arrays are `(B, H, W, C)` and tensors `(B, C, H, W)`, in [0, 1].
            mask (`PIL.Image.Image`, list of them, `np.ndarray` or `torch.Tensor`, *optional*):
                Where to paint, white or 1, of a model that fills holes: one for all images, or one for each.
            generator (`torch.Generator` or list of them, *optional*):
                Makes the images repeatable; with one per image, each depends on its own alone.
            num_inference_steps (`int`, *optional*):
                Steps, at most as many as the training has timesteps; by default 20, 50 for a solver of first order,
                and all for a `DDPMScheduler`.
            output_type (`str`, *optional*, defaults to `"pil"`):
                `"pil"`, `"np"` (float32 in [0, 1], `(B, H, W, C)`) or `"pt"` (float32 in [0, 1], `(B, C, H, W)`).
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return an [`ImagePipelineOutput`] instead of a tuple.
            callback_on_step_end (`Callable`, *optional*):
                Called as `callback_on_step_end(pipe, step, timestep, callback_kwargs)` after each step, and returns
                `callback_kwargs`. If it sets `pipe._interrupt = True`, the step was the last.
            callback_on_step_end_tensor_inputs (`list[str]`, *optional*, defaults to `("latents",)`):
                What `callback_kwargs` holds: `"latents"` are the noisy images, float32 `(B, C, H, W)`.

        Raises:
            ValueError: For images, masks or arguments that do not fit.
        """
        self._check_output(output_type)
        step_end = self._step_end(callback_on_step_end, callback_on_step_end_tensor_inputs)
        if num_inference_steps is not None:
            check_steps(num_inference_steps, self.scheduler.config.num_train_timesteps)
        given = 2 * read_pixels(image, self.given_shape(image)).to(self._execution_device) - 1
        check_generators(generator, len(given))
        hole = self._hole(mask, len(given))
        seen = beside(self.config.task, given, self.factor, hole)
        self._begin(1.0, guided=False)
        with self._running():
            images = denoise(
                Seeing(self.unet, seen),
                self.scheduler,
                len(given),
                generator,
                num_inference_steps,
                progress_bar=self._steps,
                device=self._execution_device,
                on_step_end=step_end,
            )
        if hole is not None:  # what is known stays to the bit
            images = torch.where(hole, images, given / 2 + 0.5)
        output = self._export(images, output_type)
        return ImagePipelineOutput(images=output) if return_dict else (output,)

    @property
    def factor(self) -> int:
        """How many times larger images become."""
        return int(self.config.task_level) if self.config.task == "super_resolve" else 1

    def given_shape(self, image: Any) -> tuple[int, int, int]:
        """Returns channels, height and width of the images that it takes.

        Raises:
            ValueError: For images to enlarge by another factor than it was trained for.
        """
        channels, height, width = self.image_shape
        if self.config.task == "super_resolve" and (found := factor_of(image, (height, width))) != self.factor:
            raise ValueError(
                f"image is {found} times smaller than the model's, but it was trained to enlarge {self.factor} times."
            )
        channels = channels - 2 if self.config.task == "colorize" else channels
        return channels, height // self.factor, width // self.factor

    def _hole(self, mask: Any, count: int) -> torch.Tensor | None:
        if self.config.task != "inpaint":
            if mask is not None:
                raise ValueError(f"mask: this model was trained to {self.config.task}, and fills no holes.")
            return None
        if mask is None:
            raise ValueError("mask is missing: say what to paint.")
        return self._mask(mask, count).to(self._execution_device)
