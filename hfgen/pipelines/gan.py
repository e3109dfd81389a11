"""Sampling from GANs, walking their latent space, finding an image in it, and editing along its directions."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ImagePipelineOutput, ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from hfgen.pipelines.base import Pipeline

Generators = torch.Generator | Sequence[torch.Generator] | None

AT_ONCE = 64  # images that `interpolate` and `edit` make in one pass
PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def slerp(start: torch.Tensor, end: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
    """Spherical linear interpolation (Shoemake, "Animating rotation with quaternion curves", 1985).

    The direction turns at constant speed and the norm changes linearly, so that each point is as far out as a sample
    of the prior is; a straight line would pass through the unlikely middle. Vectors less than 1e-4 rad from parallel
    or antiparallel, or of norm 0, are joined by a straight line: they span no plane to turn in. The ends are exact.

    Args:
        start, end (`torch.Tensor` of shape `(..., D)`): The ends.
        fraction (`torch.Tensor` of shape `(...)`): 0 is `start`, 1 is `end`.

    Returns:
        `torch.Tensor` of shape `(..., D)`; computed in float64.
    """
    a, b, t = start.cpu().double(), end.cpu().double(), fraction.cpu().double().unsqueeze(-1)
    norm_a, norm_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    product = norm_a * norm_b
    angle = ((a * b).sum(-1, keepdim=True) / product).clamp(-1, 1).acos()
    turned = (((1 - t) * angle).sin() * a / norm_a + (t * angle).sin() * b / norm_b) / angle.sin()
    straight = (product == 0) | (angle.sin() < 1e-4)
    return torch.where(straight, (1 - t) * a + t * b, turned * ((1 - t) * norm_a + t * norm_b)).to(start)


@dataclass
class GANProjectionOutput(BaseOutput):
    """What [`GANPipeline.project`] found.

    Args:
        latents (`torch.Tensor` of shape `(B, latent_dim)`): Latents z; `(B, style_dim)` w for style-based models.
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`): What the model makes of them.
        losses (`torch.Tensor` of shape `(B,)`): Mean squared error over pixels and channels, both images in [0, 1].
        class_labels (`torch.Tensor` of shape `(B,)`, or `None`): Classes, of a conditional model.
        space (`str`): `"z"` or `"w"`: the `latents_space` to give with these latents.
    """

    latents: torch.Tensor
    images: Any
    losses: torch.Tensor
    class_labels: torch.Tensor | None = None
    space: str = "z"


class GANPipeline(Pipeline):
    r"""
    Pipeline for GANs: one pass of a generator network turns latents into images.

    This model inherits from [`DiffusionPipeline`]. Check the superclass documentation for the generic methods
    implemented for all pipelines (downloading, saving, running on a particular device, etc.).

    Parameters:
        model ([`ModelMixin`]):
            The generator network: `model(latents, class_labels=...).sample`. Style-based ones also have
            `map(latents, class_labels, truncation)`, `synthesize(w)` and `w_avg`.
        id2label (`dict[int, str]`, *optional*):
            Names of the classes, for a class-conditional model.
        class_shares (`list[float]` or `dict[int, float]`, *optional*):
            For classes without a meaning (groups of similar images found by clustering): how often each is in the
            data, and so how often it is drawn where no `class_labels` are given.

    All methods share these arguments:
        class_labels (`int`, `str`, list of them or `torch.Tensor`, *optional*):
            Classes by number or by name, one for all or one per image.
        truncation (`float`, *optional*, defaults to 1.0):
            Moves style-based models towards their mean w, for quality at the cost of diversity: 0 is the mean image,
            1 changes nothing (https://huggingface.co/papers/1812.04948).
        generator (`torch.Generator` or list of them, *optional*):
            Makes the result repeatable; with one per image, each depends on its own alone.
        output_type (`str`, *optional*, defaults to `"pil"`):
            `"pil"`, `"np"` (float32 in [0, 1], `(B, H, W, C)`) or `"pt"` (float32 in [0, 1], `(B, C, H, W)`).
        latents_space (`str`, *optional*, defaults to `"z"`):
            `"w"` if the `latents` given are w of shape `(B, style_dim)`, such as `project` finds.

    Example:

    ```py
    >>> from hfgen import GANPipeline

    >>> pipe = GANPipeline.from_pretrained("out/gan-mnist")
    >>> images = pipe(batch_size=16, generator=torch.Generator().manual_seed(0)).images
    >>> pipe.save_gif(pipe.interpolate(num_points=4, loop=True), "walk.gif", fps=12)
    >>> found = pipe.project(images[0], generator=torch.Generator().manual_seed(1))
    >>> where = {"class_labels": found.class_labels, "latents_space": found.space}
    >>> rows = pipe.edit(found.latents, pipe.directions()[0], [-4, -2, 0, 2, 4], **where)
    >>> pipe.make_strip(rows[0]).save("edit.png")
    ```
    """

    model_cpu_offload_seq = "model"

    def __init__(
        self, model: ModelMixin, id2label: dict | None = None, class_shares: Sequence[float] | dict | None = None
    ):
        super().__init__()
        self.register_modules(model=model)
        numbers = [str(number) for number in range(model.config.num_class_embeds or 0)]
        # JSON turns the keys into strings; register what will be read back.
        names = {str(key): name for key, name in (id2label or dict(zip(numbers, numbers, strict=True))).items()}
        if set(names) != set(numbers):
            raise ValueError(
                f"id2label has the keys {sorted(names)}, but the model has {len(numbers)} classes: "
                "give one name for each number from 0 on, or leave it out."
            )
        self.register_to_config(id2label=names or None)
        # A dict as well: diffusers takes a list for a component.
        shares = class_shares if isinstance(class_shares, dict) else dict(enumerate(class_shares or ()))
        self.register_to_config(class_shares={str(key): share for key, share in shares.items()} or None)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, by number; empty for an unconditional model."""
        return [self.config.id2label[str(number)] for number in range(len(self.config.id2label or ()))]

    @property
    def style_based(self) -> bool:
        """Whether the model maps its latents z to w, and so has a mean latent."""
        return hasattr(self.model, "map")

    def class_numbers(self, class_labels: Any, batch_size: int, generator: Generators = None) -> torch.Tensor | None:
        """Checks class numbers or names and makes an int64 tensor of shape `(batch_size,)` of them. `None` stands for
        classes drawn with `generator`, and stays `None` for an unconditional model.

        Raises:
            ValueError: If there are too many or too few of them, one is unknown, or the model knows no classes.
        """
        names = self.class_names
        if not names:
            if class_labels is not None:
                raise ValueError(f"class_labels is {class_labels!r}, but this model knows no classes: leave it out.")
            return None
        if class_labels is None:
            generators = generator if isinstance(generator, Sequence) else [generator] * batch_size
            class_labels = [self._draw_class(one) for one in generators]
        elif isinstance(class_labels, torch.Tensor):
            class_labels = class_labels.tolist()
        labels = list(class_labels) if np.ndim(class_labels) else [class_labels] * batch_size
        if len(labels) != batch_size:
            raise ValueError(
                f"class_labels has {len(labels)} entries for batch_size {batch_size}: give one per image."
            )
        for label in labels:
            if label not in (names if isinstance(label, str) else range(len(names))):
                raise ValueError(f"class_labels has {label!r}: use a number below {len(names)} or one of {names}.")
        numbers = [names.index(label) if isinstance(label, str) else int(label) for label in labels]
        return torch.tensor(numbers, device=self._execution_device)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        truncation: float = 1.0,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        latents_space: str = "z",
    ) -> ImagePipelineOutput | tuple:
        r"""
        The call function to the pipeline for generation; the class describes the arguments that are not listed here.

        Args:
            batch_size (`int`, *optional*):
                Number of images, made in one pass; by default as many as there are `latents` or `class_labels`, or 1.
            class_labels (*optional*):
                Without it, the classes of a conditional model are drawn, uniformly or as `class_shares` says: a
                generator draws its latents first, then its classes.
            latents (`torch.Tensor` of shape `(B, latent_dim)`, *optional*):
                Latents, instead of drawing z from the standard normal distribution.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return an [`ImagePipelineOutput`] instead of a tuple.

        Raises:
            ValueError: For classes that the model does not know, truncation of a model without a mean latent, or an
                argument of the wrong shape or length.
        """
        self._check(output_type, truncation, latents_space=latents_space)
        if batch_size is None:
            given = latents if latents is not None else class_labels
            batch_size = len(given) if np.ndim(given) else 1  # type: ignore[arg-type]
        _at_least("batch_size", batch_size, 1)
        with self._running():
            given_space = "z" if latents is None else latents_space
            latents = self._latents(latents, batch_size, generator, given_space)
            labels = self.class_numbers(class_labels, batch_size, generator)
            points, space = self._place(latents, labels, truncation, given_space)
            images = self._render(points, labels, space, at_once=batch_size)
        output = self._export(images, output_type)
        return ImagePipelineOutput(images=output) if return_dict else (output,)

    @torch.no_grad()
    def interpolate(
        self,
        latents: torch.Tensor | None = None,
        frames: int = 16,
        class_labels: Any = None,
        truncation: float = 1.0,
        space: str | None = None,
        loop: bool = False,
        generator: Generators = None,
        num_points: int = 2,
        output_type: str = "pil",
        latents_space: str = "z",
    ) -> Any:
        r"""
        Walks from latent to latent: in z by [`slerp`], in w on straight lines.

        Args:
            latents (`torch.Tensor` of shape `(K, latent_dim)`, *optional*):
                At least 2 key points; by default `num_points` drawn with `generator` (one, or one per point).
            frames (`int`, *optional*, defaults to 16):
                Images per leg, the first of them at the key point where the leg starts. A walk that does not loop
                ends with one more, at the last key point: `(K - 1) * frames + 1` images.
            class_labels (*optional*):
                One for all, or one per key point; by default one for all is drawn. A walk in w goes smoothly from
                class to class; in z each frame has the class of the nearest key point.
            space (`str`, *optional*):
                Where to walk, `"z"` or `"w"`; by default in w for style-based models.
            loop (`bool`, *optional*, defaults to `False`):
                Return to the first point: `K * frames` images, and the first of them comes after the last.

        Returns:
            The frames in order, as `output_type` says.

        Raises:
            ValueError: As the call; for fewer than 2 points; or for w where the model has none.
        """
        self._check(output_type, truncation, space=space or "z", latents_space=latents_space)
        count = num_points if latents is None else len(latents)
        _at_least("frames", frames, 1)
        _at_least("num_points" if latents is None else "len(latents)", count, 2)
        space = space or ("w" if self.style_based else "z")
        if latents_space == "w" and space == "z":
            raise ValueError("space is 'z', but latents_space is 'w', which cannot be mapped back: walk in 'w'.")
        with self._running():
            keys = self._latents(latents, count, generator, latents_space)
            if class_labels is None and self.class_names:
                class_labels = self._draw_class(generator[0] if isinstance(generator, Sequence) else generator)
            labels = self.class_numbers(class_labels, count)
            steps = torch.arange(count * frames if loop else (count - 1) * frames + 1, device=keys.device)
            start, fraction = steps // frames, steps % frames / frames
            end = (start + 1) % count
            frame_labels = None if labels is None else labels[torch.where(fraction < 0.5, start, end)]
            if space == "w":
                keys, _ = self._place(keys, labels, truncation, latents_space)
                points = torch.lerp(keys[start], keys[end], fraction[:, None])
            else:
                points, space = self._place(slerp(keys[start], keys[end], fraction), frame_labels, truncation)
            images = self._render(points, frame_labels, space)
        return self._export(images, output_type)

    @torch.no_grad()
    def project(
        self,
        image: Any,
        class_labels: Any = None,
        steps: int = 200,
        learning_rate: float = 0.1,
        restarts: int = 4,
        prior_weight: float = 1e-3,
        generator: Generators = None,
        output_type: str = "pil",
    ) -> GANProjectionOutput:
        r"""
        Finds the latents whose images are nearest to the given ones, by optimisation.

        Minimises the mean over pixels and channels of the squared difference, both images in [0, 1], with Adam and a
        learning rate that falls to 0 along a cosine. In z, `prior_weight * (|z| / sqrt(latent_dim) - 1)^2` is added,
        which keeps the norm where the Gaussian prior has it. Style-based models are searched in w, without a prior:
        the first start is `w_avg`, the others lie halfway from there to the w of a random z. The starts of all images
        run side by side and do not affect each other; per image the one with the least squared error is returned.
        The model is left as it was.

        Args:
            image (`PIL.Image.Image`, list of them, `np.ndarray` or `torch.Tensor`):
                Images of the model's size and channels; arrays `(B, H, W, C)` or `(H, W, C)` and tensors
                `(B, C, H, W)` or `(C, H, W)` in [0, 1].
            class_labels (*optional*):
                Without it, each start of a conditional model has another class: those whose middle image, at z = 0
                or the mean w, is nearest.
            steps (`int`, *optional*, defaults to 200):
                Steps of Adam.
            learning_rate (`float`, *optional*, defaults to 0.1):
                Learning rate of the first step.
            restarts (`int`, *optional*, defaults to 4):
                Starting points per image, drawn with `generator`.
            prior_weight (`float`, *optional*, defaults to 0.001):
                Weight of the prior on z.

        Returns:
            [`GANProjectionOutput`]

        Raises:
            ValueError: For images of another size, mode, shape or range; missing or unknown classes; or fewer than 1
                step or restart.
        """
        self._check(output_type)
        _at_least("steps", steps, 1)
        _at_least("restarts", restarts, 1)
        target = self._pixels(image).to(self._execution_device)
        labels = None if class_labels is None else self.class_numbers(class_labels, len(target))
        with self._running():
            if labels is not None:
                labels = labels.repeat_interleave(restarts)
            elif self.class_names:
                labels = self._nearest_classes(target, restarts)
            starts = self._latents(None, len(target), generator, each=restarts)
            target = target.repeat_interleave(restarts, dim=0)
            points, space = self._place(starts, labels, 0.5 if self.style_based else 1.0)
            points = points.clone()
            if space == "w":
                points[::restarts] = self._mean_w(points, labels)[::restarts]
            points.requires_grad_()
            adam = torch.optim.Adam([points], lr=learning_rate)
            for step in self.progress_bar(range(steps)):
                adam.param_groups[0]["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
                with torch.enable_grad():
                    loss = (self._pass(points, labels, space) - target).square().mean(dim=(1, 2, 3))
                    if space == "z":
                        loss = loss + prior_weight * (points.norm(dim=1) / math.sqrt(points.shape[1]) - 1).square()
                    (points.grad,) = torch.autograd.grad(loss.sum(), points)  # none for the model's parameters
                adam.step()
            points = points.detach()
            images = self._render(points, labels, space)
        losses = (images - target).square().mean(dim=(1, 2, 3)).view(-1, restarts)
        best = losses.argmin(dim=1) + torch.arange(len(losses), device=losses.device) * restarts
        return GANProjectionOutput(
            latents=points[best],
            images=self._export(images[best], output_type),
            losses=losses.flatten()[best],
            class_labels=None if labels is None else labels[best],
            space=space,
        )

    @torch.no_grad()
    def directions(self, count: int | None = None) -> torch.Tensor:
        r"""
        The directions in which latents change the image most: SeFa (https://huggingface.co/papers/2007.06600), the top
        right-singular vectors of the weights that z, or w for style-based models, meets first. The sign is such that
        the entry of the largest magnitude is positive.

        Args:
            count (`int`, *optional*): How many, the strongest first; by default 10, or as many as there are.

        Returns:
            `torch.Tensor` of shape `(count, D)`: Orthonormal rows, float32, on the CPU.

        Raises:
            ValueError: If the weights have fewer singular vectors.
        """
        weight = self.model.latent_weight().cpu().double()
        count = min(10, *weight.shape) if count is None else count
        if not 1 <= count <= min(weight.shape):
            raise ValueError(f"count is {count}, but this model has from 1 to {min(weight.shape)} directions.")
        vectors = torch.linalg.svd(weight, full_matrices=False).Vh[:count]
        largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
        return (vectors * largest.sign()).float()

    @torch.no_grad()
    def edit(
        self,
        latents: torch.Tensor,
        direction: torch.Tensor,
        strengths: Sequence[float],
        class_labels: Any = None,
        truncation: float = 1.0,
        output_type: str = "pil",
        latents_space: str = "z",
    ) -> Any:
        r"""
        Moves latents along a direction, in z, or for style-based models in w (after mapping and truncation).

        Args:
            latents (`torch.Tensor` of shape `(B, latent_dim)`):
                Latents z.
            direction (`torch.Tensor` of shape `(D,)`):
                One of [`~GANPipeline.directions`], or any other.
            strengths (`Sequence[float]`):
                How far to go, S values; 0 is the plain image.
            class_labels (*optional*):
                A conditional model needs them.

        Returns:
            Per latent the row of its images: a list of lists, `(B, S, H, W, C)` or `(B, S, C, H, W)`.

        Raises:
            ValueError: As the call; for a direction of the wrong shape; or for missing classes or strengths.
        """
        self._check(output_type, truncation, latents_space=latents_space)
        _at_least("len(strengths)", len(strengths), 1)
        labels = self._given_classes(class_labels, len(latents))
        with self._running():
            latents = self._latents(latents, len(latents), None, latents_space)
            points, space = self._place(latents, labels, truncation, latents_space)
            direction = torch.as_tensor(direction).to(points)
            if direction.shape != points.shape[1:]:
                wanted = tuple(points.shape[1:])
                raise ValueError(
                    f"direction has shape {tuple(direction.shape)}, but must have {wanted}, as a {space}."
                )
            rows = points[:, None] + torch.as_tensor(strengths).to(points)[:, None] * direction
            labels = None if labels is None else labels.repeat_interleave(rows.shape[1])
            images = self._render(rows.flatten(0, 1), labels, space).unflatten(0, rows.shape[:2])
        return self._export(images, output_type)

    @staticmethod
    def save_gif(frames: Sequence[Image.Image], path: str | os.PathLike, fps: float = 10) -> None:
        """Writes frames as a GIF that repeats forever: whole, or not at all.

        The format counts in hundredths of a second: `fps` is met as nearly as they allow. Equal frames in a row are
        joined into one that lasts as long.

        Raises:
            ValueError: If there are no frames, they differ in size or mode, or `fps` is not in (0, 100].
        """
        _check_frames(frames)
        if not 0 < fps <= 100:
            raise ValueError(f"fps is {fps}, but a GIF shows more than 0 and at most 100 frames per second.")
        path = Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        options = {"save_all": True, "append_images": list(frames[1:]), "duration": 10 * round(100 / fps), "loop": 0}
        try:
            frames[0].save(partial, format="GIF", **options)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @staticmethod
    def make_strip(frames: Sequence[Image.Image]) -> Image.Image:
        """Puts frames side by side, from left to right.

        Raises:
            ValueError: If there are no frames, or they differ in size or mode.
        """
        _check_frames(frames)
        width, height = frames[0].size
        strip = Image.new(frames[0].mode, (width * len(frames), height))
        for place, frame in enumerate(frames):
            strip.paste(frame, (width * place, 0))
        return strip

    def _check(self, output_type: str, truncation: float = 1.0, **spaces: str) -> None:
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type is {output_type!r}, but must be one of pil, np, pt.")
        if truncation != 1 and not self.style_based:
            raise ValueError(f"truncation is {truncation}, but this model has no mean latent: leave it at 1.")
        for name, space in spaces.items():
            if space not in ("z", "w"):
                raise ValueError(f"{name} is {space!r}, but must be one of z, w.")
            if space == "w" and not self.style_based:
                raise ValueError(f"{name} is 'w', but this model is not style-based and has none: use 'z'.")

    @contextmanager
    def _running(self) -> Iterator[None]:
        """The model on its device and in evaluation mode; afterwards as it was."""
        hook = getattr(self.model, "_hf_hook", None)
        if hook is not None:  # offloading brings a model back for `forward`, but not for `map` and `synthesize`
            hook.pre_forward(self.model)
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True
        self.maybe_free_model_hooks()

    def _draw_class(self, generator: torch.Generator | None) -> int:
        device = generator.device if generator else "cpu"
        shares = self.config.class_shares
        if shares is None:
            return int(torch.randint(len(self.class_names), (), generator=generator, device=device))
        upper = torch.tensor([shares[str(number)] for number in range(len(shares))], dtype=torch.float64).cumsum(0)
        place = torch.rand((), generator=generator, device=device).item() * upper[-1]
        return int(torch.searchsorted(upper, place, right=True))

    def _nearest_classes(self, target: torch.Tensor, count: int) -> torch.Tensor:
        """For each image, the `count` classes whose middle image is nearest, the nearest first: `(B * count,)`."""
        classes = torch.arange(len(self.class_names), device=target.device)
        latents = torch.zeros(len(classes), self.model.config.latent_dim, device=target.device)
        points, space = self._place(latents, classes, 0.0 if self.style_based else 1.0)
        images = self._render(points, classes, space)
        order = torch.cdist(target.flatten(1), images.flatten(1)).argsort(dim=1)
        return order.repeat(1, -(-count // len(classes)))[:, :count].flatten()

    def _given_classes(self, class_labels: Any, count: int) -> torch.Tensor | None:
        if class_labels is None and self.class_names:
            names = f"of {self.class_names}" if len(self.class_names) <= 20 else f"below {len(self.class_names)}"
            raise ValueError(f"class_labels is missing: give the class of each image, {names}.")
        return self.class_numbers(class_labels, count)

    def _latents(
        self, latents: Any, count: int, generator: Generators, space: str = "z", each: int = 1
    ) -> torch.Tensor:
        """Checks `count` latents, or draws `count * each` of them."""
        if isinstance(generator, Sequence):
            generator = list(generator)
            if len(generator) != count:
                raise ValueError(f"generator has {len(generator)} entries for batch_size {count}: give one per image.")
        width, device = self.model.config.latent_dim, self._execution_device
        if latents is None:
            # Drawn in float32 and on the generator's device: the same whatever the model's precision and device.
            drawn = randn_tensor((count, each, width), generator=generator, device=device, dtype=torch.float32)
            return drawn.flatten(0, 1)
        latents = torch.as_tensor(latents, dtype=torch.float32, device=device)
        wanted = (count, self.model.w_avg.shape[1] if space == "w" else width)
        if tuple(latents.shape) != wanted:
            raise ValueError(
                f"latents has shape {tuple(latents.shape)}, but must have {wanted}: one {space} per image."
            )
        return latents

    def _mean_w(self, latents: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        w_avg = self.model.w_avg.float()
        return w_avg.expand(len(latents), -1) if labels is None else w_avg[labels]

    def _place(
        self, latents: torch.Tensor, labels: torch.Tensor | None, truncation: float, space: str = "z"
    ) -> tuple[torch.Tensor, str]:
        """Truncated w if the model has one, else z; and which of the two it is."""
        if space == "w":
            return torch.lerp(self._mean_w(latents, labels), latents, truncation), "w"
        if not self.style_based:
            return latents, "z"
        return self.model.map(latents.to(self.model.dtype), class_labels=labels, truncation=truncation).float(), "w"

    def _pass(self, points: torch.Tensor, labels: torch.Tensor | None, space: str) -> torch.Tensor:
        """Images as the model makes them, brought to about [0, 1], float32."""
        points = points.to(self.model.dtype)
        images = self.model.synthesize(points) if space == "w" else self.model(points, class_labels=labels).sample
        return images.float() / 2 + 0.5

    def _render(
        self, points: torch.Tensor, labels: torch.Tensor | None, space: str, at_once: int = AT_ONCE
    ) -> torch.Tensor:
        parts = [slice(start, start + at_once) for start in range(0, len(points), at_once)]
        images = [self._pass(points[part], None if labels is None else labels[part], space) for part in parts]
        return torch.cat(images).clamp(0, 1)

    def _export(self, images: torch.Tensor, output_type: str) -> Any:
        if output_type == "pt":
            return images
        arrays = images.cpu().movedim(-3, -1).numpy()
        if output_type == "np":
            return arrays
        return [self.numpy_to_pil(row) for row in arrays] if arrays.ndim == 5 else self.numpy_to_pil(arrays)

    def _pixels(self, image: Any) -> torch.Tensor:
        """Images of any accepted kind as a float32 tensor of shape `(B, C, H, W)` in [0, 1]."""
        channels, size = self.model.config.out_channels, self.model.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        images = [image] if isinstance(image, Image.Image) else image
        if isinstance(images, (list, tuple)) and images and all(isinstance(one, Image.Image) for one in images):
            wanted = f"{width}x{height} in mode {PIL_MODES[channels]}"
            for given in (f"{one.width}x{one.height} in mode {one.mode}" for one in images):
                if given != wanted:
                    raise ValueError(f"image is {given}, but the model makes {wanted}: resize or convert it first.")
            images = np.stack([np.asarray(one).reshape(height, width, channels) for one in images]) / 255
        if not isinstance(images, (np.ndarray, torch.Tensor)):
            raise ValueError(f"image is a {type(image).__name__}: give PIL images, an array or a tensor.")
        is_array = isinstance(images, np.ndarray)
        shape = (height, width, channels) if is_array else (channels, height, width)
        if tuple(images.shape[-3:]) != shape or images.ndim > 4 or not len(images):
            raise ValueError(
                f"image has shape {tuple(images.shape)}, but the model makes {shape}: resize or convert it first, "
                f"and give {'an array' if is_array else 'a tensor'} of that shape or a batch of them."
            )
        if isinstance(images, np.ndarray):
            images = torch.from_numpy(np.array(images, np.float32, order="C"))
        pixels = images.float().reshape(-1, *shape)
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(f"image goes from {pixels.min():g} to {pixels.max():g}, but must be in [0, 1]: scale it.")
        return pixels.movedim(-1, 1) if is_array else pixels


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}, but must be at least {least}.")


def _check_frames(frames: Sequence[Image.Image]) -> None:
    if not len(frames) or not all(isinstance(frame, Image.Image) for frame in frames):
        raise ValueError("frames must be at least one PIL image: make them with output_type='pil'.")
    kinds = sorted({f"{frame.width}x{frame.height} {frame.mode}" for frame in frames})
    if len(kinds) > 1:
        raise ValueError(f"frames are {' and '.join(kinds)}, but must all have one size and mode.")
