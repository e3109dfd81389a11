"""Sampling from GANs, walking their latent space, finding an image in it, and editing along its directions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import ImagePipelineOutput, ModelMixin
from diffusers.utils import BaseOutput

from hfgen.pipelines.base import AT_ONCE, STRENGTHS, Generators, Pipeline, at_least, check_generators, slerp
from hfgen.pipelines.restoration import enlarge, factor_of, shrink


@dataclass
class GANProjectionOutput(BaseOutput):
    """The result of [`GANPipeline.project`].

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
            How often each class is in the data, and so how often it is drawn where no `class_labels` are given.
        class_kind (`str`, *optional*):
            `"labels"`, or `"groups"` for classes without a meaning (groups of similar images found by clustering);
            by default groups if there are `class_shares`, which is what checkpoints of version 0.1 mean.

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
        self,
        model: ModelMixin,
        id2label: dict | None = None,
        class_shares: Sequence[float] | dict | None = None,
        class_kind: str | None = None,
    ):
        super().__init__()
        self.register_modules(model=model)
        self._register_classes(self._check_names(id2label), class_shares, class_kind)

    @property
    def style_based(self) -> bool:
        """Whether the model maps its latents z to w, and so has a mean latent."""
        return hasattr(self.model, "map")

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
                Without it, the classes of a conditional model are drawn, as `class_shares` says or uniformly: a
                generator draws its latents first, then its classes.
            latents (`torch.Tensor` of shape `(B, latent_dim)`, *optional*):
                Latents, instead of drawing z from the standard normal distribution.
            output_type:
                Or `"latent"`, for the latents of the images in their place, float32: z, or of style-based models the
                truncated w, which `latents_space="w"` takes back.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return an [`ImagePipelineOutput`] instead of a tuple.

        Raises:
            ValueError: For classes that the model does not know, truncation of a model without a mean latent, or an
                argument of the wrong shape or length.
        """
        self._check(output_type, truncation, latents=True, latents_space=latents_space)
        batch_size = self._batch_size(batch_size, latents, class_labels)
        with self._running():
            given_space = "z" if latents is None else latents_space
            latents = self._latents(latents, batch_size, generator, given_space)
            labels = self.class_numbers(class_labels, batch_size, generator)
            images, space = self._to_style(latents, labels, truncation, given_space)
            if output_type != "latent":
                images = self._render(images, labels, space, at_once=batch_size)
        output = self._export(images, output_type)
        return ImagePipelineOutput(images=output) if return_dict else (output,)

    @torch.no_grad()
    def draw_latents(
        self,
        batch_size: int | None = None,
        class_labels: Any = None,
        truncation: float = 1.0,
        generator: Generators = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        r"""
        Draws latents and classes, as a call with the same arguments does for its images.

        Args:
            batch_size (`int`, *optional*):
                How many; by default as many as there are `class_labels` or generators, or 1.

        Returns:
            `tuple[torch.Tensor, torch.Tensor | None]`: The latents, z of shape `(B, latent_dim)`, or of style-based
            models the truncated w, which `latents_space="w"` takes back; and the classes `(B,)`, `None` for a model
            without.

        Raises:
            ValueError: As the call.
        """
        self._check("pt", truncation)
        batch_size = self._batch_size(batch_size, None, class_labels, generator)
        with self._running():
            latents = self._latents(None, batch_size, generator)
            labels = self.class_numbers(class_labels, batch_size, generator)
            return self._to_style(latents, labels, truncation)[0], labels

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
        at_least("frames", frames, 1)
        at_least("num_points" if latents is None else "len(latents)", count, 2)
        space = space or ("w" if self.style_based else "z")
        if latents_space == "w" and space == "z":
            raise ValueError("space is 'z', but latents_space is 'w', which cannot be mapped back: walk in 'w'.")
        with self._running():
            keys = self._latents(latents, count, generator, latents_space)
            if class_labels is None and self.class_names:
                first = generator[0] if isinstance(generator, Sequence) else generator
                class_labels = int(self._classes_without_labels(1, first)[0])
            labels = self.class_numbers(class_labels, count)
            steps = torch.arange(count * frames if loop else (count - 1) * frames + 1, device=keys.device)
            start, fraction = steps // frames, steps % frames / frames
            end = (start + 1) % count
            frame_labels = None if labels is None else labels[torch.where(fraction < 0.5, start, end)]
            if space == "w":
                keys, _ = self._to_style(keys, labels, truncation, latents_space)
                points = torch.lerp(keys[start], keys[end], fraction[:, None])
            else:
                points, space = self._to_style(slerp(keys[start], keys[end], fraction), frame_labels, truncation)
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
        mask: Any = None,
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
            mask (`PIL.Image.Image`, list of them, `np.ndarray` or `torch.Tensor`, *optional*):
                What does not count: white, 1 or `True`; as for [`inpaint`].

        Returns:
            [`GANProjectionOutput`]

        Raises:
            ValueError: For images of another size, mode, shape or range; missing or unknown classes; or fewer than 1
                step or restart.
        """
        target = self._pixels(image).to(self._execution_device)
        known = None if mask is None else ~self._mask(mask, len(target)).to(target.device)
        search = (class_labels, steps, learning_rate, restarts, generator, output_type, prior_weight)
        return self._search(target, lambda images: images, known, *search)

    @torch.no_grad()
    def inpaint(
        self,
        image: Any,
        mask: Any,
        class_labels: Any = None,
        steps: int = 200,
        learning_rate: float = 0.1,
        restarts: int = 4,
        generator: Generators = None,
        output_type: str = "pil",
    ) -> Any:
        r"""
        Paints a part of each image anew, with that of the image nearest to the rest, which is left exactly as it was
        (https://huggingface.co/papers/1607.07539, without its critic).

        Args:
            image (*required*):
                As for [`project`].
            mask (`PIL.Image.Image`, list of them, `np.ndarray` or `torch.Tensor`):
                What to paint: white, 1 or `True`, or everything from 0.5 on. One mask for all images or one per image,
                of their height and width: `(H, W)`, `(B, H, W)`, arrays `(B, H, W, 1)` or tensors `(B, 1, H, W)`.
            class_labels, steps, learning_rate, restarts:
                As for [`project`].

        Returns:
            The images, as `output_type` says.

        Raises:
            ValueError: As [`project`], and for masks that do not fit.
        """
        target = self._pixels(image).to(self._execution_device)
        hole = self._mask(mask, len(target)).to(target.device)
        search = (class_labels, steps, learning_rate, restarts, generator)
        found = self._search(target, lambda images: images, ~hole, *search, "pt")
        self._check(output_type)
        return self._export(torch.where(hole, found.images, target), output_type)

    @torch.no_grad()
    def super_resolve(
        self,
        image: Any,
        class_labels: Any = None,
        steps: int = 200,
        learning_rate: float = 0.1,
        restarts: int = 4,
        generator: Generators = None,
        output_type: str = "pil",
    ) -> Any:
        r"""
        Enlarges images: finds the image of the model that, shrunk, is nearest to each (PULSE,
        https://huggingface.co/papers/2003.03808), and puts its means right.

        Args:
            image (`PIL.Image.Image`, list of them, `np.ndarray` or `torch.Tensor`):
                Images whose size is the model's divided by a whole number: each pixel the mean of a square.
            class_labels, steps, learning_rate, restarts:
                As for [`project`].

        Returns:
            The images, as `output_type` says.

        Raises:
            ValueError: As [`project`].
        """
        channels, height, width = self.image_shape
        factor = factor_of(image, (height, width))
        small = self._pixels(image, shape=(channels, height // factor, width // factor)).to(self._execution_device)
        search = (class_labels, steps, learning_rate, restarts, generator)
        found = self._search(small, lambda images: shrink(images, factor), None, *search, "pt").images
        self._check(output_type)
        right = found + enlarge(small - shrink(found, factor), factor)
        return self._export(right.clamp(0, 1), output_type)

    def _search(
        self,
        target: torch.Tensor,
        observe: Callable[[torch.Tensor], torch.Tensor],
        known: torch.Tensor | None,
        class_labels: Any,
        steps: int,
        learning_rate: float,
        restarts: int,
        generator: Generators,
        output_type: str,
        prior_weight: float = 1e-3,
    ) -> GANProjectionOutput:
        """Finds the latents whose images, as they are observed, are nearest to `target`, `(B, C, h, w)`, where that is
        `known`, `(B, 1, h, w)`; see [`project`]."""
        self._check(output_type)
        at_least("steps", steps, 1)
        at_least("restarts", restarts, 1)
        at_least("learning_rate", learning_rate, 0, whole=False)
        at_least("prior_weight", prior_weight, 0, whole=False)
        count = len(target)
        labels = None if class_labels is None else self.class_numbers(class_labels, count)

        def distance(images: torch.Tensor) -> torch.Tensor:
            """Returns the mean squared error of images `(B, N, C, H, W)` to each target: `(B, N)`."""
            errors = (observe(images) - target[:, None]).square()
            if known is None:
                return errors.flatten(2).mean(2)
            share = known.flatten(1).float().mean(1)[:, None]
            return (errors * known[:, None]).flatten(2).mean(2) / share

        with self._running():
            if labels is not None:
                labels = labels.repeat_interleave(restarts)
            elif self.class_names:
                labels = self._nearest_classes(count, distance, restarts)
            starts = self._latents(None, count, generator, each=restarts)
            points, space = self._to_style(starts, labels, 0.5 if self.style_based else 1.0)
            points = points.clone()
            if space == "w":
                points[::restarts] = self._mean_w(points, labels)[::restarts]

            def loss(points: torch.Tensor) -> torch.Tensor:
                squares = distance(self._pass(points, labels, space).unflatten(0, (count, restarts))).flatten()
                if space == "w":
                    return squares
                return squares + prior_weight * (points.norm(dim=1) / math.sqrt(points.shape[1]) - 1).square()

            points = self._minimise(loss, points, steps, learning_rate)
            images = self._render(points, labels, space)
        losses = distance(images.unflatten(0, (count, restarts)))
        best = losses.argmin(dim=1) + torch.arange(count, device=losses.device) * restarts
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
        Finds the directions in which latents change the image most: SeFa (https://huggingface.co/papers/2007.06600),
        the top right-singular vectors of the weights that z, or w for style-based models, meets first. The sign is
        such that the entry of the largest magnitude is positive.

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
        latents: torch.Tensor | None = None,
        direction: torch.Tensor | None = None,
        strengths: Sequence[float] = STRENGTHS,
        class_labels: Any = None,
        truncation: float = 1.0,
        output_type: str = "pil",
        latents_space: str = "z",
        generator: Generators = None,
    ) -> Any:
        r"""
        Moves latents along a direction, in z, or for style-based models in w (after mapping and truncation).

        Args:
            latents (`torch.Tensor` of shape `(B, latent_dim)`, *optional*):
                Latents z; by default those that a call draws with the same `generator` (one, or one per image), so
                that an image that was made from a seed is edited by its seed.
            direction (`torch.Tensor` of shape `(D,)`, *optional*):
                One of [`~GANPipeline.directions`], or any other; by default the first of these.
            strengths (`Sequence[float]`, *optional*):
                How far to go, S values; 0 is the plain image. By default -3 to 3.
            class_labels (*optional*):
                A conditional model needs them for given latents; for others, they are drawn as a call does.

        Returns:
            Per latent the row of its images: a list of lists, `(B, S, H, W, C)` or `(B, S, C, H, W)`.

        Raises:
            ValueError: As the call; for a direction of the wrong shape; or for missing classes or strengths.
        """
        self._check(output_type, truncation, latents_space=latents_space)
        at_least("len(strengths)", len(strengths), 1)
        if latents is None:
            latents, class_labels = self.draw_latents(None, class_labels, truncation, generator)
            truncation, latents_space = 1.0, "w" if self.style_based else "z"
        direction = self.directions(1)[0] if direction is None else direction
        labels = self._given_classes(class_labels, len(latents))
        with self._running():
            latents = self._latents(latents, len(latents), None, latents_space)
            points, space = self._to_style(latents, labels, truncation, latents_space)
            direction = torch.as_tensor(direction).to(points)
            if direction.shape != points.shape[1:]:
                expected = tuple(points.shape[1:])
                raise ValueError(
                    f"direction has shape {tuple(direction.shape)}, but must have {expected}, as a {space}."
                )
            rows = points[:, None] + torch.as_tensor(strengths).to(points)[:, None] * direction
            labels = None if labels is None else labels.repeat_interleave(rows.shape[1])
            images = self._render(rows.flatten(0, 1), labels, space).unflatten(0, rows.shape[:2])
        return self._export(images, output_type)

    def _check(self, output_type: str, truncation: float = 1.0, latents: bool = False, **spaces: str) -> None:
        self._check_output(output_type, latents)
        at_least("truncation", truncation, -math.inf, whole=False)
        if truncation != 1 and not self.style_based:
            raise ValueError(f"truncation is {truncation}, but this model has no mean latent: leave it at 1.")
        for name, space in spaces.items():
            if space not in ("z", "w"):
                raise ValueError(f"{name} is {space!r}, but must be one of z, w.")
            if space == "w" and not self.style_based:
                raise ValueError(f"{name} is 'w', but this model is not style-based and has none: use 'z'.")

    def _nearest_classes(
        self, images: int, distance: Callable[[torch.Tensor], torch.Tensor], count: int
    ) -> torch.Tensor:
        """Finds, for each of so many images, the `count` classes whose middle image is nearest, the nearest first: `(B
        * count,)`."""
        classes = torch.arange(len(self.class_names), device=self._execution_device)
        latents = torch.zeros(len(classes), self.model.config.latent_dim, device=classes.device)
        points, space = self._to_style(latents, classes, 0.0 if self.style_based else 1.0)
        order = distance(self._render(points, classes, space).expand(images, -1, -1, -1, -1)).argsort(dim=1)
        return order.repeat(1, -(-count // len(classes)))[:, :count].flatten()

    def _latents(
        self, latents: Any, count: int, generator: Generators, space: str = "z", each: int = 1
    ) -> torch.Tensor:
        """Checks `count` latents, or draws `count * each` of them."""
        width = self.model.config.latent_dim
        generator = check_generators(generator, count)
        if latents is None:
            return self._noise(count, (each, width), generator).flatten(0, 1)
        width = self.model.w_avg.shape[1] if space == "w" else width
        return self._given_latents(latents, (count, width), f"one {space} per image")

    def _mean_w(self, latents: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        w_avg = self.model.w_avg.float()
        return w_avg.expand(len(latents), -1) if labels is None else w_avg[labels]

    def _to_style(
        self, latents: torch.Tensor, labels: torch.Tensor | None, truncation: float, space: str = "z"
    ) -> tuple[torch.Tensor, str]:
        """Maps latents to w with truncation if the model has one, else returns z; also says which of the two it is."""
        if space == "w":
            return torch.lerp(self._mean_w(latents, labels), latents, truncation), "w"
        if not self.style_based:
            return latents, "z"
        return self.model.map(latents.to(self.model.dtype), class_labels=labels, truncation=truncation).float(), "w"

    def _pass(self, points: torch.Tensor, labels: torch.Tensor | None, space: str) -> torch.Tensor:
        """Makes images, brought to about [0, 1], float32."""
        points = points.to(self.model.dtype)
        images = self.model.synthesize(points) if space == "w" else self.model(points, class_labels=labels).sample
        return images.float() / 2 + 0.5

    def _render(
        self, points: torch.Tensor, labels: torch.Tensor | None, space: str, at_once: int = AT_ONCE
    ) -> torch.Tensor:
        make = partial(self._pass, space=space)
        return self._in_parts(make, points, labels, at_once=at_once).clamp(0, 1)
