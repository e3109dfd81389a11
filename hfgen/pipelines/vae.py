"""What one VAE does: sampling, encoding, walks, traversals, edits, and restoring damaged images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import ImagePipelineOutput, ModelMixin
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from torch.nn import functional as F

from hfgen.pipelines.base import Generators, Pipeline, at_least, check_generators, slerp

TASKS = ("denoise", "super_resolve")
METHODS = ("amortised", "gradient", "langevin")
ACCEPTANCE = 0.574  # best for Langevin proposals (Roberts and Rosenthal, 1998)


def shrink(images: torch.Tensor, factor: int) -> torch.Tensor:
    """Averages squares of `factor` x `factor` pixels: `(..., H, W)` to `(..., H / factor, W / factor)`."""
    return images.unflatten(-1, (-1, factor)).unflatten(-3, (-1, factor)).mean(dim=(-3, -1))


def enlarge(images: torch.Tensor, factor: int) -> torch.Tensor:
    """Makes a square of `factor` x `factor` pixels of each."""
    return images.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


@dataclass(frozen=True)
class Observation:
    """What is known of images x: `target = observe(x) + noise`, where x is normal around what the decoder makes of z.

    Attributes:
        target (`torch.Tensor` of shape `(B, ...)`): The damaged images; pixels are in [0, 1] here.
        observe (`Callable`): The damage, a linear function of `(..., C, H, W)`.
        variance (`float`): Variance of `target` around `observe(decoded)`: of the decoder's pixels and of the noise.
        guess (`torch.Tensor` of shape `(B, C, H, W)`): Images for the encoder to start from.
        restore (`Callable`): The mean of x given z and `target`, from `decoded`: what is observed corrects it.
    """

    target: torch.Tensor
    observe: Callable[[torch.Tensor], torch.Tensor]
    variance: float
    guess: torch.Tensor
    restore: Callable[[torch.Tensor], torch.Tensor]


class VAEPipeline(Pipeline):
    r"""
    Pipeline for VAEs: everything that an encoder, a decoder and a prior can do.

    This model inherits from [`DiffusionPipeline`]. Check the superclass documentation for the generic methods
    implemented for all pipelines (downloading, saving, running on a particular device, etc.).

    Parameters:
        model ([`ModelMixin`]):
            The VAE: `encode(sample, class_labels).latent_dist`, or `.latents` of one that quantises them, and
            `decode(latents, class_labels).sample`; with `latent_shape`, and `variance` of the pixels around the
            decoder's mean, in [-1, 1].
        prior ([`GaussianMixturePrior`], *optional*):
            A density that was fitted to the latents. [`~hfgen.families.vae.prior.fit_mixture`] makes one.
        id2label (`dict[int, str]`, *optional*):
            Names of the classes, for a class-conditional model.
        class_shares (`list[float]` or `dict[int, float]`, *optional*):
            For classes without a meaning (groups of similar images found by clustering): how often each is in the
            data, and so how often it is drawn where no `class_labels` are given.
        task (`str`, *optional*):
            `"denoise"` or `"super_resolve"`, for a model that was trained to make clean images of damaged ones. Its
            encoder expects damaged images, small ones enlarged by bilinear interpolation.
        task_level (`float`, *optional*):
            The damage: the standard deviation of the noise, for pixels in [0, 1]; or the factor of the sizes.

    All methods share these arguments:
        image, start, end (`PIL.Image.Image`, list of them, `np.ndarray` or `torch.Tensor`):
            Images of the model's size and channels; arrays `(B, H, W, C)` or `(H, W, C)` and tensors `(B, C, H, W)` or
            `(C, H, W)` in [0, 1]. `start` and `end` may be latents as well: tensors `(B, D, h, w)` or `(D, h, w)`.
        latents (`torch.Tensor` of shape `(B, D, h, w)`):
            What `encode` gives. Of hierarchical models these are the whitened latents of all groups; of models that
            quantise, the encoder's output before that.
        class_labels (`int`, `str`, list of them or `torch.Tensor`, *optional*):
            Classes by number or by name, one for all or one per image. A conditional model needs them, but to sample.
        prior (`str`, *optional*):
            `"normal"`, the standard normal distribution with which the model was trained, or `"mixture"`, the one
            fitted afterwards; by default the latter if there is one.
        generator (`torch.Generator` or list of them, *optional*):
            Makes the result repeatable; with one per image, each depends on its own alone.
        output_type (`str`, *optional*, defaults to `"pil"`):
            `"pil"`, `"np"` (float32 in [0, 1], `(B, H, W, C)`) or `"pt"` (float32 in [0, 1], `(B, C, H, W)`).

    `denoise`, `inpaint` and `super_resolve` search for latents z with a high p(y | z) p(z) for the damaged image y, by
    the decoder's mean and variance, and return the mean image given z and y. They share:
        method (`str`, *optional*):
            `"gradient"` maximises, with Adam and a learning rate that falls to 0 along a cosine. `"langevin"` samples:
            from there it makes as many steps of the Metropolis-adjusted Langevin algorithm (Roberts and Tweedie,
            1996), whose size adapts in the first half. `"amortised"` is one pass of encoder and decoder without a
            search, and the default where the model was trained for it, as `"gradient"` is elsewhere.
        steps (`int`, *optional*, defaults to 200):
            Steps of Adam, and of Langevin.
        learning_rate (`float`, *optional*, defaults to 0.1):
            Size of the first step.
        restarts (`int`, *optional*, defaults to 16):
            Starting points per image, of which the best result counts: what the encoder makes of the damaged image,
            and of images drawn from the prior that were corrected by what is known. One, where there is no prior.

    Example:

    ```py
    >>> import numpy as np

    >>> from hfgen import VAEPipeline

    >>> pipe = VAEPipeline.from_pretrained("out/vae-mnist")
    >>> images = pipe(batch_size=16, generator=torch.Generator().manual_seed(0)).images
    >>> pipe.save_gif(pipe.interpolate(images[0], images[1], frames=24), "walk.gif", fps=12)
    >>> mask = np.zeros((28, 28), dtype=bool)
    >>> mask[14:] = True  # the lower half is painted anew
    >>> pipe.make_strip(pipe.inpaint(images, mask)).save("inpainted.png")
    ```
    """

    model_cpu_offload_seq = "model"
    _optional_components = ["prior"]
    _exclude_from_cpu_offload = ["prior"]

    def __init__(
        self,
        model: ModelMixin,
        prior: ModelMixin | None = None,
        id2label: dict | None = None,
        class_shares: Sequence[float] | dict | None = None,
        task: str | None = None,
        task_level: float | None = None,
    ):
        super().__init__()
        self.register_modules(model=model, prior=prior)
        self._register_classes(id2label, class_shares)
        if prior is not None:
            shape, classes = tuple(prior.config.latent_shape), prior.config.num_class_embeds
            if shape != tuple(model.latent_shape) or classes not in (None, model.config.num_class_embeds):
                raise ValueError(
                    f"prior has latents of shape {shape} and {classes} classes, but the model has "
                    f"{tuple(model.latent_shape)} and {model.config.num_class_embeds}: fit it to this model's latents."
                )
        if task is not None and task not in TASKS:
            raise ValueError(f"task is {task!r}, but must be one of {', '.join(TASKS)}, or be left out.")
        if (task is None) != (task_level is None):
            raise ValueError(f"task is {task!r} and task_level is {task_level}: give both or neither.")
        self.register_to_config(task=task, task_level=task_level)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of the latents of one image."""
        return tuple(self.model.latent_shape)

    @property
    def quantises(self) -> bool:
        """Whether the model quantises its latents, and so was trained without a prior."""
        return hasattr(self.model, "quantize")

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        temperature: float = 1.0,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        prior: str | None = None,
    ) -> ImagePipelineOutput | tuple:
        r"""
        The call function to the pipeline for generation; the class describes the arguments that are not listed here.

        Args:
            batch_size (`int`, *optional*):
                Number of images, made in one pass; by default as many as there are `latents` or `class_labels`, or 1.
            class_labels (*optional*):
                Without it, the classes of a conditional model are drawn, uniformly or as `class_shares` says: a
                generator draws noise first, then its class.
            latents (`torch.Tensor` of shape `(B, D, h, w)`, *optional*):
                Latents, instead of drawing them.
            temperature (`float`, *optional*, defaults to 1.0):
                Scales the distance of the latents drawn from the mean of the prior, or of their component of it: less
                is more alike and less likely to fail.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return an [`ImagePipelineOutput`] instead of a tuple.

        Raises:
            ValueError: For classes that the model does not know, a prior that there is not, or an argument of the
                wrong shape or length.
        """
        self._check_output(output_type)
        batch_size = self._batch_size(batch_size, latents, class_labels)
        at_least("temperature", temperature, 0)
        if latents is not None and temperature != 1:
            raise ValueError(f"temperature is {temperature}, but does not change given latents: leave it at 1.")
        if latents is None:
            prior = self._choose_prior(prior)
            if prior is None:
                raise ValueError(
                    "latents is missing: this model quantises latents and was trained without a prior. Fit one with "
                    "hfgen.families.vae.prior.fit_mixture and give it to the pipeline."
                )
        with self._running():
            if latents is not None:
                check_generators(generator, batch_size)
                latents = self._latents(latents, batch_size)
                labels = self.class_numbers(class_labels, batch_size, generator)
            else:
                noise = self._noise(batch_size, (self._noise_size(prior),), generator)
                labels = self.class_numbers(class_labels, batch_size, generator)
                latents = self._draw(noise, labels, prior, temperature)
            images = self._pass(latents, labels).clamp(0, 1)
        output = self._export(images, output_type)
        return ImagePipelineOutput(images=output) if return_dict else (output,)

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
            for name, found in (("start", first), ("end", last)):
                if len(found) != 1:
                    raise ValueError(f"{name} has {len(found)} images: give one.")
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
        The difference between the mean latents of images with an attribute and of images without it.

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
        start: Any,
        direction: torch.Tensor,
        strengths: Sequence[float],
        class_labels: Any = None,
        output_type: str = "pil",
    ) -> Any:
        r"""
        Moves latents along a direction.

        Args:
            start:
                B images or latents.
            direction (`torch.Tensor` of shape `(D, h, w)`):
                One that [`~VAEPipeline.attribute_direction`] found, or any other.
            strengths (`Sequence[float]`):
                How far to go, S values; 0 is the plain reconstruction.

        Returns:
            Per image the row of its variants: a list of lists, `(B, S, H, W, C)` or `(B, S, C, H, W)`.

        Raises:
            ValueError: For images, latents or a direction of another shape, missing or unknown classes, or no
                strengths.
        """
        self._check_output(output_type)
        at_least("len(strengths)", len(strengths), 1)
        if tuple(direction.shape) != self.latent_shape:
            raise ValueError(f"direction has shape {tuple(direction.shape)}, but must have {self.latent_shape}.")
        with self._running():
            latents, labels = self._find(start, class_labels, "start")
            steps = torch.as_tensor(strengths).to(latents)[:, None] * direction.flatten().to(latents)
            images = self._render_rows(latents.flatten(1)[:, None] + steps, labels)
        return self._export(images, output_type)

    @torch.no_grad()
    def inpaint(
        self,
        image: Any,
        mask: Any,
        class_labels: Any = None,
        method: str | None = None,
        steps: int = 200,
        learning_rate: float = 0.1,
        restarts: int = 16,
        prior: str | None = None,
        generator: Generators = None,
        output_type: str = "pil",
    ) -> Any:
        r"""
        Paints a part of each image anew, as fits the rest, which is left exactly as it was.

        Args:
            mask (`PIL.Image.Image`, list of them, `np.ndarray` or `torch.Tensor`):
                What to paint: white, 1 or `True`, or everything from 0.5 on. One mask for all images or one per image,
                of their height and width: `(H, W)`, `(B, H, W)`, arrays `(B, H, W, 1)` or tensors `(B, 1, H, W)`.

        Returns:
            The images, as `output_type` says.

        Raises:
            ValueError: For images or a mask of another shape or range, missing or unknown classes, or unknown or
                impossible ways to search.
        """
        method = self._choose_method(method, "inpaint")
        self._check_search(output_type, steps, learning_rate, restarts)
        target = self._pixels(image).to(self._execution_device)
        unknown = self._mask(mask, len(target)).to(target.device)
        labels = self._given_classes(class_labels, len(target))

        def restore(images: torch.Tensor) -> torch.Tensor:
            return torch.where(unknown, images, target)

        with self._running():
            middle = self._render(torch.zeros(len(target), *self.latent_shape, device=target.device), labels)
            observation = Observation(
                target=target * ~unknown,
                observe=lambda images: images * ~unknown,
                variance=self._variance,
                guess=restore(middle),
                restore=restore,
            )
            images = self._infer(observation, labels, method, steps, learning_rate, restarts, prior, generator)
        return self._export(images, output_type)

    @torch.no_grad()
    def denoise(
        self,
        image: Any,
        noise_level: float | None = None,
        class_labels: Any = None,
        method: str | None = None,
        steps: int = 200,
        learning_rate: float = 0.1,
        restarts: int = 16,
        prior: str | None = None,
        generator: Generators = None,
        output_type: str = "pil",
    ) -> Any:
        r"""
        Removes normal noise.

        Args:
            image:
                Arrays and tensors may leave [0, 1] by as much as 6 times the noise level. Models that were trained to
                denoise get them clipped, as they were in training.
            noise_level (`float`, *optional*):
                Standard deviation of the noise, for pixels in [0, 1]; by default that for which the model was trained.

        Returns:
            The images, as `output_type` says.

        Raises:
            ValueError: For images of another shape or range, a missing or unsuitable noise level, missing or unknown
                classes, or unknown or impossible ways to search.
        """
        method = self._choose_method(method, "denoise")
        self._check_search(output_type, steps, learning_rate, restarts)
        if noise_level is None:
            noise_level = self.config.task_level if self.config.task == "denoise" else None
        if noise_level is None or not noise_level > 0:
            raise ValueError(
                f"noise_level is {noise_level}, but must be more than 0: the standard deviation of the noise, for "
                "pixels in [0, 1]."
            )
        self._check_level("noise_level", noise_level, method)
        limits = (-6 * noise_level, 1 + 6 * noise_level)
        target = self._pixels(image, limits=limits).to(self._execution_device)
        labels = self._given_classes(class_labels, len(target))
        gain = self._variance / (self._variance + noise_level**2)
        observation = Observation(
            target=target,
            observe=lambda images: images,
            variance=self._variance + noise_level**2,
            guess=target.clamp(0, 1),
            restore=lambda images: torch.lerp(images, target, gain),
        )
        with self._running():
            images = self._infer(observation, labels, method, steps, learning_rate, restarts, prior, generator)
        return self._export(images, output_type)

    @torch.no_grad()
    def super_resolve(
        self,
        image: Any,
        class_labels: Any = None,
        method: str | None = None,
        steps: int = 200,
        learning_rate: float = 0.1,
        restarts: int = 16,
        prior: str | None = None,
        generator: Generators = None,
        output_type: str = "pil",
    ) -> Any:
        r"""
        Makes small images as large as the model's. Shrunk again, each pixel the mean of a square, the result gives the
        small image, but where it had to be clipped and for the amortised method.

        Args:
            image:
                Small images: the model's height and width divided by a whole number.

        Returns:
            The images, as `output_type` says.

        Raises:
            ValueError: For images of another shape or range, a factor for which an amortised model was not trained,
                missing or unknown classes, or unknown or impossible ways to search.
        """
        method = self._choose_method(method, "super_resolve")
        self._check_search(output_type, steps, learning_rate, restarts)
        factor = self._factor(image)
        self._check_level("factor", factor, method)
        channels, height, width = self.image_shape
        small = self._pixels(image, shape=(channels, height // factor, width // factor)).to(self._execution_device)
        labels = self._given_classes(class_labels, len(small))
        observation = Observation(
            target=small,
            observe=lambda images: shrink(images, factor),
            variance=self._variance / factor**2,
            guess=F.interpolate(small, size=(height, width), mode="bilinear"),
            restore=lambda images: images + enlarge(small - shrink(images, factor), factor),
        )
        with self._running():
            images = self._infer(observation, labels, method, steps, learning_rate, restarts, prior, generator)
        return self._export(images, output_type)

    # Arguments

    def _choose_prior(self, prior: str | None) -> str | None:
        """The prior to use; `None` if there is none."""
        if prior not in (None, "normal", "mixture"):
            raise ValueError(f"prior is {prior!r}, but must be one of normal, mixture.")
        if prior == "mixture" and self.prior is None:
            raise ValueError(
                "prior is 'mixture', but this pipeline has none: fit one with hfgen.families.vae.prior.fit_mixture, or "
                "use 'normal'."
            )
        if prior == "normal" and self.quantises:
            raise ValueError("prior is 'normal', but quantised latents are not normal: use 'mixture'.")
        if prior is None and self.prior is not None:
            return "mixture"
        return prior or (None if self.quantises else "normal")

    def _choose_method(self, method: str | None, task: str) -> str:
        trained = self.config.task == task
        if method is None:
            return "amortised" if trained else "gradient"
        if method not in METHODS:
            raise ValueError(f"method is {method!r}, but must be one of {', '.join(METHODS)}.")
        if method == "amortised" and not trained:
            purpose = f"to {self.config.task}" if self.config.task else "for no task"
            raise ValueError(
                f"method is 'amortised', but this model was trained {purpose}, not to {task}: use 'gradient' or "
                "'langevin'."
            )
        return method

    def _check_level(self, name: str, level: float, method: str) -> None:
        if method == "amortised" and level != self.config.task_level:
            raise ValueError(
                f"{name} is {level}, but this model was trained for {self.config.task_level:g}: use that, or method "
                "'gradient'."
            )

    def _check_search(self, output_type: str, steps: int, learning_rate: float, restarts: int) -> None:
        self._check_output(output_type)
        at_least("steps", steps, 1)
        at_least("restarts", restarts, 1)
        if not learning_rate > 0:
            raise ValueError(f"learning_rate is {learning_rate}, but must be more than 0.")

    def _latents(self, latents: Any, count: int) -> torch.Tensor:
        latents = torch.as_tensor(latents, dtype=torch.float32, device=self._execution_device)
        wanted = (count, *self.latent_shape)
        if tuple(latents.shape) != wanted:
            raise ValueError(f"latents has shape {tuple(latents.shape)}, but must have {wanted}: one per image.")
        return latents

    def _find(self, given: Any, class_labels: Any, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The latents of images or latents, and their classes."""
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

    def _mask(self, mask: Any, count: int) -> torch.Tensor:
        """Where to paint, `(count, 1, H, W)`."""
        size = self.image_shape[1:]
        masks = [mask] if isinstance(mask, Image.Image) else mask
        if isinstance(masks, (list, tuple)) and masks and all(isinstance(one, Image.Image) for one in masks):
            if len({one.size for one in masks}) > 1:
                raise ValueError(f"mask has the sizes {sorted({one.size for one in masks})}: give one size.")
            masks = np.stack([np.asarray(one.convert("L")) for one in masks]) / 255
        if isinstance(masks, np.ndarray):
            masks = torch.from_numpy(np.array(masks, np.float32))
            masks = masks[..., 0] if masks.ndim > 2 and masks.shape[-1] == 1 else masks
        elif isinstance(masks, torch.Tensor):
            masks = masks[:, 0] if masks.ndim == 4 and masks.shape[1] == 1 else masks
        else:
            raise ValueError(f"mask is a {type(mask).__name__}: give a PIL image, an array or a tensor.")
        masks = masks.float()[None] if masks.ndim == 2 else masks.float()
        if masks.ndim != 3 or tuple(masks.shape[1:]) != size or len(masks) not in (1, count):
            raise ValueError(
                f"mask has shape {tuple(masks.shape)}, but must have {size}: one for all images, or one for each of "
                f"the {count}."
            )
        if not (masks.min() >= 0 and masks.max() <= 1):
            raise ValueError(f"mask goes from {masks.min():g} to {masks.max():g}, but must be in [0, 1]: scale it.")
        return (masks >= 0.5)[:, None].expand(count, 1, *size)

    def _factor(self, image: Any) -> int:
        """How many times larger the model's images are."""
        one = image[0] if isinstance(image, (list, tuple)) and image else image
        if isinstance(one, Image.Image):
            width, height = one.size
        elif isinstance(one, (np.ndarray, torch.Tensor)) and one.ndim >= 3:
            height, width = one.shape[-3:-1] if isinstance(one, np.ndarray) else one.shape[-2:]
        else:
            raise ValueError(f"image is a {type(image).__name__}: give PIL images, an array or a tensor.")
        size = self.image_shape[1:]
        factor = size[0] // max(1, height)
        if factor < 2 or (height * factor, width * factor) != size:
            raise ValueError(
                f"image is {width}x{height}, but must be the model's {size[1]}x{size[0]} divided by a whole number of "
                "2 or more: resize it."
            )
        return factor

    # The model

    @property
    def _variance(self) -> float:
        """Variance of pixels in [0, 1] around the decoder's mean; some, lest all depends on one grey level."""
        return max(float(self.model.variance) / 4, 1e-6)

    def _encode(
        self, pixels: torch.Tensor, labels: torch.Tensor | None, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Latents of pixels in [0, 1], float32: drawn with `noise`, or the means."""
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
        """Images of latents, also of flattened ones, in about [0, 1], float32."""
        latents = latents.reshape(-1, *self.latent_shape).to(self.model.dtype)
        return self.model.decode(latents, class_labels=labels).sample.float() / 2 + 0.5

    def _render(self, latents: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        return self._in_parts(self._pass, latents, labels).clamp(0, 1)

    def _render_rows(self, rows: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Images `(B, S, C, H, W)` of latents `(B, S, N)`."""
        labels = None if labels is None else labels.repeat_interleave(rows.shape[1])
        return self._render(rows.flatten(0, 1), labels).unflatten(0, rows.shape[:2])

    # The prior

    def _prior_labels(self, labels: torch.Tensor | None) -> torch.Tensor | None:
        return labels if self.prior.config.num_class_embeds else None

    def _noise_size(self, prior: str | None) -> int:
        """Random numbers for one latent: a mixture needs one more, which chooses the component."""
        return int(np.prod(self.latent_shape)) + (prior == "mixture")

    def _draw(
        self, noise: torch.Tensor, labels: torch.Tensor | None, prior: str | None, temperature: float = 1.0
    ) -> torch.Tensor:
        if prior == "mixture":
            return self.prior(noise, self._prior_labels(labels), temperature)
        return temperature * noise.unflatten(1, self.latent_shape)

    def _log_prior(self, latents: torch.Tensor, labels: torch.Tensor | None, prior: str | None) -> torch.Tensor:
        """Of flattened latents, up to a constant: `(B,)`."""
        if prior == "mixture":
            return self.prior.log_prob(latents, self._prior_labels(labels))
        return -0.5 * latents.square().sum(1) * (prior == "normal")

    # Inference

    def _infer(
        self,
        observation: Observation,
        labels: torch.Tensor | None,
        method: str,
        steps: int,
        learning_rate: float,
        restarts: int,
        prior: str | None,
        generator: Generators,
    ) -> torch.Tensor:
        """Images `(B, C, H, W)` in [0, 1] that fit the observation."""
        prior = self._choose_prior(prior)
        if method == "amortised":
            return self._render(self._in_parts(self._encode, observation.guess, labels), labels)
        if prior is None:
            if method == "langevin":
                raise ValueError("method is 'langevin', but this model has no prior to sample from: use 'gradient'.")
            restarts = 1
        count = len(observation.guess)
        every = None if labels is None else labels.repeat(restarts)
        guesses = observation.guess[None]
        if restarts > 1:
            noise = self._noise(count, (restarts - 1, self._noise_size(prior)), generator)
            others = None if labels is None else labels.repeat(restarts - 1)
            latents = self._draw(noise.transpose(0, 1).flatten(0, 1), others, prior)
            drawn = self._render(latents, others).unflatten(0, (restarts - 1, count))
            guesses = torch.cat([guesses, observation.restore(drawn).clamp(0, 1)])
        check_generators(generator, count)
        starts = self._in_parts(self._encode, guesses.flatten(0, 1), every).flatten(1)

        def log_posterior(points: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
            images = self._pass(points, labels).unflatten(0, (-1, count))
            squares = (observation.target - observation.observe(images)).square().sum(dim=(2, 3, 4)).flatten()
            return -0.5 * squares / observation.variance + self._log_prior(points, labels, prior)

        found = self._minimise(lambda points: -log_posterior(points, every), starts, steps, learning_rate)
        best = log_posterior(found, every).view(restarts, count).argmax(dim=0)
        points = found.view(restarts, count, -1)[best, torch.arange(count, device=best.device)]
        if method == "langevin":
            points = self._walk(lambda points: log_posterior(points, labels), points, steps, learning_rate, generator)
        return observation.restore(self._render(points, labels)).clamp(0, 1)

    def _walk(
        self,
        log_density: Callable[[torch.Tensor], torch.Tensor],
        points: torch.Tensor,
        steps: int,
        step_size: float,
        generator: Generators,
    ) -> torch.Tensor:
        """Metropolis-adjusted Langevin steps, one chain per point, each with a step size of its own."""

        def evaluate(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            points = points.detach().requires_grad_()
            with torch.enable_grad():
                value = log_density(points)
                (slope,) = torch.autograd.grad(value.sum(), points)
            return value.detach(), slope

        sizes = torch.full((len(points), 1), step_size, device=points.device)
        value, slope = evaluate(points)
        for step in self.progress_bar(range(steps)):
            noise = self._noise(len(points), (1 + points.shape[1],), generator)
            proposal = points + sizes**2 / 2 * slope + sizes * noise[:, 1:]
            new_value, new_slope = evaluate(proposal)
            back = (points - proposal - sizes**2 / 2 * new_slope) / sizes  # the noise that would lead back
            log_ratio = new_value - value + 0.5 * (noise[:, 1:].square().sum(1) - back.square().sum(1))
            accepted = torch.special.log_ndtr(noise[:, 0]) < log_ratio  # a uniform number below the ratio
            points = torch.where(accepted[:, None], proposal, points)
            value, slope = torch.where(accepted, new_value, value), torch.where(accepted[:, None], new_slope, slope)
            if step < steps // 2:
                chance = log_ratio.nan_to_num(-torch.inf).clamp(max=0).exp()
                sizes = sizes * (0.2 * (chance - ACCEPTANCE)).exp()[:, None]
        return points
