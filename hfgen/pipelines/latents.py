"""Latents of images: finding them, walking between them, and changing them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from hfgen.pipelines.base import STRENGTHS, Generators, Pipeline, at_least, slerp


class LatentPipeline(Pipeline):
    """A pipeline around a VAE `model`, which encodes images into latents and decodes these. The methods' common
    arguments are described by [`VAEPipeline`]."""

    draw_latents: Any  # of the pipeline that knows the prior

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of the latents of one image."""
        return tuple(self.model.latent_shape)

    @property
    def quantises(self) -> bool:
        """Whether the model quantises its latents, and so was trained without a prior."""
        return hasattr(self.model, "quantize")

    @torch.no_grad()
    def encode(
        self, image: Any, class_labels: Any = None, sample: bool = False, generator: Generators = None
    ) -> torch.Tensor:
        r"""
        Finds the latents of images.

        Args:
            sample (`bool`, *optional*, defaults to `False`):
                Whether to draw from the posterior instead of taking its mean.

        Returns:
            `torch.Tensor` of shape `(B, D, h, w)`, float32.

        Raises:
            ValueError: For images of another size, mode, shape or range; missing or unknown classes; or a sample of a
                model whose encoder draws nothing.
        """
        if sample and self.quantises:
            raise ValueError("sample is True, but this model's encoder gives one latent per image: leave it out.")
        pixels = self._pixels(image).to(self._execution_device)
        labels = self._given_classes(class_labels, len(pixels))
        noise = self._noise(len(pixels), self.latent_shape, generator) if sample else None
        with self._running():
            return self._in_parts(self._encode, pixels, labels, noise)

    @torch.no_grad()
    def reconstruct(
        self,
        image: Any,
        class_labels: Any = None,
        sample: bool = False,
        generator: Generators = None,
        output_type: str = "pil",
    ) -> Any:
        r"""
        Encodes images and decodes their latents.

        Args:
            sample (`bool`, *optional*, defaults to `False`):
                Whether to draw from the posterior instead of taking its mean.

        Returns:
            The images, as `output_type` says.

        Raises:
            ValueError: As [`~VAEPipeline.encode`].
        """
        self._check_output(output_type)
        latents = self.encode(image, class_labels, sample, generator)
        with self._running():
            images = self._render(latents, self._given_classes(class_labels, len(latents)))
        return self._export(images, output_type)

    @torch.no_grad()
    def interpolate(
        self, start: Any, end: Any, frames: int = 16, class_labels: Any = None, output_type: str = "pil"
    ) -> Any:
        r"""
        Walks from one image, or latent, to another: by [`slerp`], or on a straight line where latents are quantised.

        Args:
            start, end:
                One image or latent each; images stand for the means of their posteriors.
            frames (`int`, *optional*, defaults to 16):
                Number of images, with the two ends.
            class_labels (*optional*):
                One for all, or those of the two ends; each frame has the class of the nearer end.

        Returns:
            The frames in order, as `output_type` says.

        Raises:
            ValueError: For images or latents of another shape or range, several of them, missing or unknown classes,
                or fewer than 2 frames.
        """
        self._check_output(output_type)
        at_least("frames", frames, 2)
        labels = self._given_classes(class_labels, 2)
        with self._running():
            first, _ = self._find(start, None if labels is None else labels[:1], "start")
            last, _ = self._find(end, None if labels is None else labels[1:], "end")
            for name, latent in (("start", first), ("end", last)):
                if len(latent) != 1:
                    raise ValueError(f"{name} has {len(latent)} images: give one.")
            fraction = torch.linspace(0, 1, frames, device=first.device)
            a, b = first.flatten(1).expand(frames, -1), last.flatten(1).expand(frames, -1)
            points = torch.lerp(a, b, fraction[:, None]) if self.quantises else slerp(a, b, fraction)
            images = self._render(points, None if labels is None else labels[(fraction >= 0.5).long()])
        return self._export(images, output_type)

    @torch.no_grad()
    def traverse(
        self,
        index: int,
        values: Sequence[float],
        start: Any = None,
        class_labels: Any = None,
        output_type: str = "pil",
    ) -> Any:
        r"""
        Sets one entry of the latents to some values, and leaves the others as they are.

        Args:
            index (`int`):
                Number of the entry, of the `D * h * w` in the flattened latent.
            values (`Sequence[float]`):
                S values; under the prior most lie between -2 and 2.
            start (*optional*):
                B images or latents; by default the latent 0.

        Returns:
            Per image the row of its variants: a list of lists, `(B, S, H, W, C)` or `(B, S, C, H, W)`.

        Raises:
            ValueError: For an entry that there is not, no values, images or latents of another shape or range, or
                missing or unknown classes.
        """
        self._check_output(output_type)
        at_least("len(values)", len(values), 1)
        size = int(np.prod(self.latent_shape))
        if not 0 <= index < size:
            raise ValueError(f"index is {index}, but the latents have entries 0 to {size - 1}.")
        start = torch.zeros(self.latent_shape) if start is None else start
        with self._running():
            latents, labels = self._find(start, class_labels, "start")
            rows = latents.flatten(1)[:, None].repeat(1, len(values), 1)
            rows[:, :, index] = torch.as_tensor(values).to(rows)
            images = self._render_rows(rows, labels)
        return self._export(images, output_type)

    @torch.no_grad()
    def attribute_direction(self, images_with: Any, images_without: Any, class_labels: Any = None) -> torch.Tensor:
        r"""
        Computes the difference between the mean latents of images with an attribute and of images without it.

        Args:
            images_with, images_without:
                Images, or latents.
            class_labels (*optional*):
                One for all, or two: those of `images_with` and those of `images_without`, one or one per image.

        Returns:
            `torch.Tensor` of shape `(D, h, w)`: A direction for [`~VAEPipeline.edit`].

        Raises:
            ValueError: For images or latents of another shape or range, or missing or unknown classes.
        """
        pair = class_labels if isinstance(class_labels, (list, tuple)) else (class_labels, class_labels)
        if len(pair) != 2:
            raise ValueError(f"class_labels has {len(pair)} entries: give one, or two, of images with and without it.")
        with self._running():
            with_it, _ = self._find(images_with, pair[0], "images_with")
            without, _ = self._find(images_without, pair[1], "images_without")
        return with_it.mean(0) - without.mean(0)

    @torch.no_grad()
    def edit(
        self,
        start: Any = None,
        direction: torch.Tensor | None = None,
        strengths: Sequence[float] = STRENGTHS,
        class_labels: Any = None,
        output_type: str = "pil",
        generator: Generators = None,
    ) -> Any:
        r"""
        Moves latents along a direction.

        Args:
            start (*optional*):
                B images or latents; by default the latents that a call draws with the same `generator` (one, or one
                per image), so that an image that was made from a seed is edited by its seed.
            direction (`torch.Tensor` of shape `(D, h, w)`):
                One that [`~VAEPipeline.attribute_direction`] found, or any other.
            strengths (`Sequence[float]`, *optional*):
                How far to go, S values; 0 is the plain reconstruction. By default -3 to 3.

        Returns:
            Per image the row of its variants: a list of lists, `(B, S, H, W, C)` or `(B, S, C, H, W)`.

        Raises:
            ValueError: For images, latents or a direction of another shape, missing or unknown classes, or no
                strengths.
        """
        self._check_output(output_type)
        at_least("len(strengths)", len(strengths), 1)
        if direction is None:
            raise ValueError("direction is missing: give one that attribute_direction found, or any other.")
        if tuple(direction.shape) != self.latent_shape:
            raise ValueError(f"direction has shape {tuple(direction.shape)}, but must have {self.latent_shape}.")
        if start is None:
            start, class_labels = self.draw_latents(None, class_labels, generator=generator)
        with self._running():
            latents, labels = self._find(start, class_labels, "start")
            steps = torch.as_tensor(strengths).to(latents)[:, None] * direction.flatten().to(latents)
            images = self._render_rows(latents.flatten(1)[:, None] + steps, labels)
        return self._export(images, output_type)

    def _find(self, given: Any, class_labels: Any, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the latents of images or latents, and their classes."""
        if isinstance(given, torch.Tensor) and tuple(given.shape[-3:]) != self.image_shape:
            if tuple(given.shape[-3:]) == self.latent_shape and given.ndim <= 4 and len(given):
                latents = given.to(self._execution_device, torch.float32).reshape(-1, *self.latent_shape)
                return latents, self._given_classes(class_labels, len(latents))
            raise ValueError(
                f"{name} has shape {tuple(given.shape)}, but must be images {self.image_shape} or latents "
                f"{self.latent_shape}, or a batch of them."
            )
        pixels = self._pixels(given, name).to(self._execution_device)
        labels = self._given_classes(class_labels, len(pixels))
        return self._in_parts(self._encode, pixels, labels), labels

    def _latents(self, latents: Any, count: int) -> torch.Tensor:
        return self._given_latents(latents, (count, *self.latent_shape), "one per image")

    def _encode(
        self, pixels: torch.Tensor, labels: torch.Tensor | None, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Encodes pixels in [0, 1] into latents, float32: drawn with `noise`, or the means."""
        output = self.model.encode((2 * pixels - 1).to(self.model.dtype), class_labels=labels)
        if self.quantises:
            return output.latents.float()
        posterior = output.latent_dist
        if noise is None:
            return posterior.mode().float()
        if isinstance(posterior, DiagonalGaussianDistribution):
            return (posterior.mean + posterior.std * noise).float()
        return posterior.sample(noise=noise).float()

    def _pass(self, latents: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Decodes latents, also flattened ones, into images in about [0, 1], float32."""
        latents = latents.reshape(-1, *self.latent_shape).to(self.model.dtype)
        return self.model.decode(latents, class_labels=labels).sample.float() / 2 + 0.5

    def _render(self, latents: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        return self._in_parts(self._pass, latents, labels).clamp(0, 1)

    def _render_rows(self, rows: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Decodes latents `(B, S, N)` into images `(B, S, C, H, W)`."""
        labels = None if labels is None else labels.repeat_interleave(rows.shape[1])
        return self._render(rows.flatten(0, 1), labels).unflatten(0, rows.shape[:2])
