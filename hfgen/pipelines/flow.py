"""The pipeline of normalizing flows: sampling, encoding, and exact densities."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import ImagePipelineOutput, ModelMixin

from hfgen.objectives.dequantisation import LEVEL
from hfgen.objectives.elbo import log_normal
from hfgen.pipelines.base import Generators, Pipeline, at_least, check_generators

VISIBLE = 1.0  # levels: noise of less than this is gone when pixels are rounded


class FlowPipeline(Pipeline):
    r"""
    Pipeline for normalizing flows, which map images to latents of the same size and back, and know densities.

    This model inherits from [`DiffusionPipeline`]. Check the superclass documentation for the generic methods
    implemented for all pipelines (downloading, saving, running on a particular device, etc.).

    Parameters:
        model ([`ModelMixin`]):
            The flow, a [`TarFlow`] or [`Glow`]: `encode(sample, class_labels)` gives `latents` and `log_det`, and
            `decode(latents, class_labels).sample` inverts it; with `latent_shape`. If a [`TarFlow`] has one class
            more than `id2label`, the last one stands for "no class", as guidance needs it.
        id2label (`dict[int, str]`, *optional*):
            Names of the classes, for a class-conditional model.
        class_shares (`list[float]` or `dict[int, float]`, *optional*):
            How often each class is in the data, and so how often it is drawn where no `class_labels` are given.
        class_kind (`str`, *optional*):
            `"labels"`, or `"groups"` for classes without a meaning.
        noise_std (`float`, *optional*):
            The standard deviation of the Gaussian noise that images had in training, in levels of 8 bit; `None` for
            uniform noise over the bin of a level.

    Example:

    ```py
    >>> from hfgen import FlowPipeline

    >>> pipe = FlowPipeline.from_pretrained("out/flow-mnist")
    >>> images = pipe(batch_size=16, generator=torch.Generator().manual_seed(0)).images
    >>> latents = pipe.encode(images)
    >>> same = pipe.decode(latents)
    >>> pipe.log_prob(images)  # of the density, in nats
    ```
    """

    model_cpu_offload_seq = "model"

    def __init__(
        self,
        model: ModelMixin,
        id2label: dict | None = None,
        class_shares: Sequence[float] | dict | None = None,
        class_kind: str | None = None,
        noise_std: float | None = None,
    ):
        super().__init__()
        self.register_modules(model=model)
        self._register_classes(self._check_names(id2label, unnamed=1), class_shares, class_kind)
        if noise_std is not None:
            at_least("noise_std", noise_std, 1e-3, whole=False)
        self.register_to_config(noise_std=noise_std)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of the latents of one image."""
        return tuple(self.model.latent_shape)

    @property
    def null_class(self) -> int | None:
        """The class that stands for "no class"; `None` if the network has none."""
        named = len(self.class_names)
        return named if named and self.model.config.num_class_embeds > named else None

    @property
    def denoises(self) -> bool:
        """Whether samples are denoised unless told otherwise: the noise of training is larger than a level."""
        return (self.config.noise_std or 0) >= VISIBLE

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        temperature: float = 1.0,
        guidance_scale: float = 1.0,
        denoise: bool | None = None,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        on_block: Callable[[int, torch.Tensor], None] | None = None,
    ) -> ImagePipelineOutput | tuple:
        r"""
        The call function to the pipeline for generation.

        Args:
            batch_size (`int`, *optional*):
                Number of images, made in one pass; by default as many as there are `latents` or `class_labels`, or 1.
            class_labels (`int`, `str`, list of them or `torch.Tensor`, *optional*):
                Classes by number or by name, one for all or one per image. Without it, the classes of a conditional
                model are drawn, as `class_shares` says or uniformly: a generator draws noise first, then its class.
            latents (`torch.Tensor` of shape `(B, C, H, W)`, *optional*):
                Latents, as `encode` gives them, instead of drawing them.
            temperature (`float`, *optional*, defaults to 1.0):
                Standard deviation of the latents that are drawn: less is more alike and less likely to fail.
            guidance_scale (`float`, *optional*, defaults to 1.0):
                Classifier-free guidance towards the class; 1 is none.
            denoise (`bool`, *optional*):
                Whether to take off the Gaussian noise of training, by one step along the gradient of the density
                (section 2.5 of https://huggingface.co/papers/2412.06329); by default if it is larger than a level.
            generator (`torch.Generator` or list of them, *optional*):
                Makes the result repeatable; with one per image, each depends on its own alone.
            output_type (`str`, *optional*, defaults to `"pil"`):
                `"pil"`, `"np"` (float32 in [0, 1], `(B, H, W, C)`) or `"pt"` (float32 in [0, 1], `(B, C, H, W)`); or
                `"latent"`, for the latents of the images in their place.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return an [`ImagePipelineOutput`] instead of a tuple.
            on_block (`Callable`, *optional*):
                Is given, for each block of a [`TarFlow`], the number of blocks so far and the images `(B, C, H, W)`
                in [0, 1] as they are then; first 0 and the latents.

        Raises:
            ValueError: For classes that the model does not know, an argument of the wrong shape or length, guidance of
                a model without "no class", or denoising of a model without Gaussian noise.
        """
        self._check_output(output_type, latents=True)
        batch_size = self._batch_size(batch_size, latents, class_labels)
        at_least("temperature", temperature, 0, whole=False)
        self._check_guidance(guidance_scale)
        if on_block is not None and "on_block" not in inspect.signature(self.model.decode).parameters:
            raise ValueError(
                f"on_block is given, but a {type(self.model).__name__} decodes in one pass: leave it out."
            )
        if latents is not None and temperature != 1:
            raise ValueError(f"temperature is {temperature}, but does not change given latents: leave it at 1.")
        if denoise and self.config.noise_std is None:
            raise ValueError("denoise is True, but this model was trained with uniform noise: leave it out.")
        with self._running():
            if latents is not None:
                check_generators(generator, batch_size)
                latents = self._given_latents(latents, (batch_size, *self.latent_shape), "one per image")
                labels = self.class_numbers(class_labels, batch_size, generator)
            else:
                latents, labels = self.draw_latents(batch_size, class_labels, temperature, generator)
            if output_type == "latent":
                images = latents
            else:
                more: dict[str, Any] = {"guidance_scale": guidance_scale} if guidance_scale != 1 else {}
                if on_block is not None:
                    more["on_block"] = lambda block, sample: on_block(block, (sample.float() / 2 + 0.5).clamp(0, 1))
                images = self.model.decode(latents, class_labels=labels, **more).sample
                if self.denoises if denoise is None else denoise:
                    images = self._denoise(images, labels)
                images = (images.float() / 2 + 0.5).clamp(0, 1)
        output = self._export(images, output_type)
        return ImagePipelineOutput(images=output) if return_dict else (output,)

    @torch.no_grad()
    def draw_latents(
        self,
        batch_size: int | None = None,
        class_labels: Any = None,
        temperature: float = 1.0,
        generator: Generators = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        r"""
        Draws latents and classes, as a call with the same arguments does for its images.

        Args:
            batch_size (`int`, *optional*):
                How many; by default as many as there are `class_labels` or generators, or 1.

        Returns:
            `tuple[torch.Tensor, torch.Tensor | None]`: The latents, float32 `(B, C, H, W)`, and the classes `(B,)`,
            `None` for a model without.

        Raises:
            ValueError: As the call.
        """
        batch_size = self._batch_size(batch_size, None, class_labels, generator)
        at_least("temperature", temperature, 0, whole=False)
        latents = temperature * self._noise(batch_size, self.latent_shape, generator)
        return latents, self.class_numbers(class_labels, batch_size, generator)

    @torch.no_grad()
    def encode(self, image: Any, class_labels: Any = None) -> torch.Tensor:
        r"""
        Finds the latents of images, without adding noise to them.

        Args:
            image (`PIL.Image.Image`, list of them, `np.ndarray` or `torch.Tensor`):
                Images of the model's size and channels; arrays `(B, H, W, C)` or `(H, W, C)` and tensors
                `(B, C, H, W)` or `(C, H, W)` in [0, 1].
            class_labels (*optional*):
                The classes, which a conditional model needs.

        Returns:
            `torch.Tensor` of shape `(B, C, H, W)`, float32.

        Raises:
            ValueError: For images of another size, mode, shape or range; missing or unknown classes.
        """
        pixels = self._pixels(image).to(self._execution_device)
        labels = self._given_classes(class_labels, len(pixels))
        with self._running():
            return self._in_parts(lambda *given: self._encode(*given)[0].float(), 2 * pixels - 1, labels)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, class_labels: Any = None, output_type: str = "pil") -> Any:
        r"""
        Makes images of latents: the inverse of `encode`, without denoising.

        Args:
            latents (`torch.Tensor` of shape `(B, C, H, W)`): The latents.
            class_labels (*optional*): The classes, which a conditional model needs.
            output_type (`str`, *optional*, defaults to `"pil"`): `"pil"`, `"np"` or `"pt"`.

        Raises:
            ValueError: For latents of another shape, missing or unknown classes.
        """
        self._check_output(output_type)
        if isinstance(latents, torch.Tensor) and latents.ndim != 4:
            raise ValueError(f"latents has shape {tuple(latents.shape)}, but must have (B, *{self.latent_shape}).")
        count = len(latents) if np.ndim(latents) else 1
        labels = self._given_classes(class_labels, count)
        with self._running():
            latents = self._given_latents(latents, (count, *self.latent_shape), "one per image")
            images = self._in_parts(lambda *given: self.model.decode(*given).sample.float(), latents, labels)
        return self._export((images / 2 + 0.5).clamp(0, 1), output_type)

    @torch.no_grad()
    def log_prob(self, image: Any, class_labels: Any = None) -> torch.Tensor:
        r"""
        Computes the exact logarithm of the density, of pixels in [-1, 1], that the model has at images.

        It is a density of images with noise. For probabilities of 8-bit images see
        [`~hfgen.sampling.flow.probability_bound`].

        Args:
            image, class_labels: As [`~FlowPipeline.encode`].

        Returns:
            `torch.Tensor` of shape `(B,)`, in nats.

        Raises:
            ValueError: As [`~FlowPipeline.encode`].
        """
        pixels = self._pixels(image).to(self._execution_device)
        labels = self._given_classes(class_labels, len(pixels))
        with self._running():
            return self._in_parts(self.log_density, 2 * pixels - 1, labels)

    def _encode(self, sample: torch.Tensor, labels: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes pixels in [-1, 1]."""
        output = self.model.encode(sample, class_labels=labels)
        return output.latents, output.log_det

    def log_density(self, sample: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Computes the log-density `(B,)` of pixels `(B, C, H, W)` in about [-1, 1], with the model as it is."""
        latents, log_det = self._encode(sample, labels)
        return log_normal(latents) + log_det

    def _denoise(self, sample: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Takes off the noise of training: the mean of images given noisy ones, by Tweedie's formula."""
        variance = (self.config.noise_std * LEVEL) ** 2
        with torch.enable_grad():
            sample = sample.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_density(sample, labels).sum(), sample)
        return sample.detach() + variance * gradient

    def _check_guidance(self, guidance_scale: float) -> None:
        at_least("guidance_scale", guidance_scale, 0, whole=False)
        if guidance_scale != 1 and self.null_class is None:
            raise ValueError(
                f"guidance_scale is {guidance_scale}, but this network was trained without label dropout: leave it "
                "out."
            )
        if guidance_scale != 1 and "guidance_scale" not in inspect.signature(self.model.decode).parameters:
            raise ValueError(f"guidance_scale is {guidance_scale}, which {type(self.model).__name__} does not know.")
