"""Restoring damaged images with a VAE: latents that explain what is left of an image, and a prior of latents."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from hfgen.pipelines.base import Generators, at_least, check_generators
from hfgen.pipelines.latents import LatentPipeline

METHODS = ("amortised", "gradient", "langevin")
ACCEPTANCE = 0.574  # best for Langevin proposals (Roberts and Rosenthal, 1998)


def shrink(images: torch.Tensor, factor: int) -> torch.Tensor:
    """Averages squares of `factor` x `factor` pixels: `(..., H, W)` to `(..., H / factor, W / factor)`."""
    return images.unflatten(-1, (-1, factor)).unflatten(-3, (-1, factor)).mean(dim=(-3, -1))


def enlarge(images: torch.Tensor, factor: int) -> torch.Tensor:
    """Makes a square of `factor` x `factor` pixels of each."""
    return images.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


def factor_of(image: Any, size: tuple[int, int]) -> int:
    """Returns how many times larger `size`, a height and width, is than a small image.

    Raises:
        ValueError: If that is no whole number of 2 or more.
    """
    one = image[0] if isinstance(image, (list, tuple)) and image else image
    if isinstance(one, Image.Image):
        width, height = one.size
    elif isinstance(one, (np.ndarray, torch.Tensor)) and one.ndim >= 3:
        height, width = one.shape[-3:-1] if isinstance(one, np.ndarray) else one.shape[-2:]
    else:
        raise ValueError(f"image is a {type(image).__name__}: give PIL images, an array or a tensor.")
    factor = size[0] // max(1, height)
    if factor < 2 or (height * factor, width * factor) != tuple(size):
        raise ValueError(
            f"image is {width}x{height}, but must be the model's {size[1]}x{size[0]} divided by a whole number of "
            "2 or more: resize it."
        )
    return factor


@dataclass(frozen=True)
class Observation:
    """Knowledge of images x: `target = observe(x) + noise`, where x is normal around what the decoder makes of z.

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


class RestoringPipeline(LatentPipeline):
    """A pipeline that searches the latents of a VAE, under a `prior` of them, for images that fit an observation.
    The methods' common arguments are described by [`VAEPipeline`]."""

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
        if noise_level is not None:
            at_least("noise_level", noise_level, -math.inf, whole=False)
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
        factor = factor_of(image, self.image_shape[1:])
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
        at_least("learning_rate", learning_rate, -math.inf, whole=False)
        if not learning_rate > 0:
            raise ValueError(f"learning_rate is {learning_rate}, but must be more than 0.")

    # The prior

    def _choose_prior(self, prior: str | None) -> str | None:
        """Returns the prior to use; `None` if there is none."""
        if prior not in (None, "normal", "mixture"):
            raise ValueError(f"prior is {prior!r}, but must be one of normal, mixture.")
        if prior == "mixture" and self.prior is None:
            raise ValueError(
                "prior is 'mixture', but this pipeline has none: fit one with hfgen.families.vae.prior.fit_mixture, "
                "or use 'normal'."
            )
        if prior == "normal" and self.quantises:
            raise ValueError("prior is 'normal', but quantised latents are not normal: use 'mixture'.")
        if prior is None and self.prior is not None:
            return "mixture"
        return prior or (None if self.quantises else "normal")

    def _prior_labels(self, labels: torch.Tensor | None) -> torch.Tensor | None:
        return labels if self.prior.config.num_class_embeds else None

    def _noise_size(self, prior: str | None) -> int:
        """Returns how many random numbers one latent takes: a mixture needs one more, which chooses the component."""
        return int(np.prod(self.latent_shape)) + (prior == "mixture")

    def _draw(
        self, noise: torch.Tensor, labels: torch.Tensor | None, prior: str | None, temperature: float = 1.0
    ) -> torch.Tensor:
        if prior == "mixture":
            return self.prior(noise, self._prior_labels(labels), temperature).sample
        return temperature * noise.unflatten(1, self.latent_shape)

    def _log_prior(self, latents: torch.Tensor, labels: torch.Tensor | None, prior: str | None) -> torch.Tensor:
        """Computes the logarithm of the prior at flattened latents, up to a constant: `(B,)`."""
        if prior == "mixture":
            return self.prior.log_prob(latents, self._prior_labels(labels))
        return -0.5 * latents.square().sum(1) * (prior == "normal")

    # Inference

    @property
    def _variance(self) -> float:
        """The variance of pixels in [0, 1] around the decoder's mean. It has a floor: with almost none, the search
        would follow every rounded level."""
        return max(float(self.model.variance) / 4, 1e-6)

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
        """Searches for images `(B, C, H, W)` in [0, 1] that fit the observation."""
        prior = self._choose_prior(prior)
        check_generators(generator, len(observation.guess))  # also where nothing is drawn
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
        """Makes Metropolis-adjusted Langevin steps, one chain per point, each with a step size of its own."""

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
