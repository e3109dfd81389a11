"""Restoring and editing images with any denoising network, trained for nothing else: functions of the network, its
scheduler, and what is left of an image.

Notation: `x_t = alpha_t x_0 + sigma_t eps`, and the network expects `E[x_0 | x_t]`. Each step goes from `t` to a lower
noise level `s` by `x_0` alone, as ancestral sampling does (https://huggingface.co/papers/2006.11239, equation 7), in
second order: `x_0` is carried on along its last change (SDE-DPM-Solver++ 2M, https://huggingface.co/papers/2211.01095).
What is observed, `y = A x_0`, comes in by another `x_0`:

- `"ddnm"`: what the network expects, with the part that is observed put right: `x_0 + A^+ (y - A x_0)`
  (https://huggingface.co/papers/2212.00490). The rest of the image learns of it in the next step only.
- `"posterior"`: `E[x_0 | x_t, y]`, if `x_0` given `x_t` were normal with the mean and the covariance that the network
  tells, `sigma_t^2 / alpha_t` times its derivative (https://huggingface.co/papers/2310.06721 and
  https://huggingface.co/papers/2402.02149). Exact where images are normal. Conjugate gradients solve the linear
  system, at a pass backwards through the network each.
- `"repaint"`, of holes alone: the part that is observed is that of `y` with noise of the level `s`
  (https://huggingface.co/papers/2201.09865).

With `resamples` above 1, each step is of first order and done so many times, with noise added in between to come back
to `t` (RePaint's resampling with jumps of one step; time travel in DDNM's words): the parts then get to agree.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from hfgen.objectives.denoising import PREDICTION_TYPES, clean
from hfgen.objectives.probability_flow import amplitudes
from hfgen.pipelines.base import at_least, check_generators
from hfgen.pipelines.classes import Generators
from hfgen.pipelines.ddpm_sampling import check_noise_levels, check_steps, log_ratios, log_snr_timesteps
from hfgen.pipelines.restoration import enlarge, shrink

METHODS = ("ddnm", "posterior", "repaint")
STEPS = 50
GRADIENTS = 10  # conjugate ones, of a step of "posterior"
LEAST_DEVIATION = 1e-3  # of what is observed, in the linear system: half of an 8-bit level
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in gray: ITU-R BT.601, as PIL has it
StepEnd = Callable[[int, int, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Observation:
    """Knowledge of images x in [-1, 1]: `target = observe(x)`.

    Attributes:
        target (`torch.Tensor` of shape `(B, ...)`): What is observed.
        observe (`Callable`): A linear function of images `(B, C, H, W)`, whose parts do not overlap:
            `observe(spread(v)) = gain v`.
        spread (`Callable`): Its transpose.
        gain (`torch.Tensor`): Positive, of a shape that is broadcast to that of `target`.
        hole (`torch.Tensor` of shape `(B, 1, H, W)`, bool, or `None`): Where nothing is known, if whole pixels are.
    """

    target: torch.Tensor
    observe: Callable[[torch.Tensor], torch.Tensor]
    spread: Callable[[torch.Tensor], torch.Tensor]
    gain: torch.Tensor
    hole: torch.Tensor | None = None

    def residual(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the least change of images `(B, C, H, W)` that makes them give `target`."""
        return self.spread((self.target - self.observe(images)) / self.gain)


def holes(images: torch.Tensor, hole: torch.Tensor) -> Observation:
    """Observes images `(B, C, H, W)` outside of holes `(B, 1, H, W)`, bool."""
    known = ~hole
    return Observation(
        target=images * known,
        observe=lambda x: x * known,
        spread=lambda x: x * known,
        gain=images.new_ones(()),
        hole=hole,
    )


def shrunk(small: torch.Tensor, factor: int) -> Observation:
    """Observes images by means of squares of `factor` x `factor` pixels: `(B, C, H / factor, W / factor)`."""
    return Observation(
        target=small,
        observe=lambda x: shrink(x, factor),
        spread=lambda x: enlarge(x, factor) / factor**2,
        gain=small.new_tensor(1 / factor**2),
    )


def to_gray(images: torch.Tensor) -> torch.Tensor:
    """Makes images of three or four channels gray: `(B, 1, H, W)`, or with their alpha `(B, 2, H, W)`."""
    gray = (images[:, :3] * images.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    return torch.cat([gray, images[:, 3:]], 1)


def grays(images: torch.Tensor) -> Observation:
    """Observes images as [`to_gray`] shows them: `(B, 1, H, W)` or `(B, 2, H, W)`."""
    weights = images.new_tensor(LUMA).view(3, 1, 1)
    gains = [weights.square().sum(), *[weights.new_ones(())] * (images.shape[1] - 1)]
    return Observation(
        target=images,
        observe=to_gray,
        spread=lambda x: torch.cat([x[:, :1] * weights, x[:, 1:]], 1),
        gain=torch.stack(gains).view(-1, 1, 1),
    )


@dataclass(frozen=True)
class Denoiser:
    """A denoising network, and what it is told: called with noisy images `(B, C, H, W)` and a timestep, it returns the
    clean images that it expects, float32, not clamped. Derivatives go through it.

    Attributes:
        unet (`UNet2DModel`), scheduler (`SchedulerMixin`): The network, and one of any kind with its noise schedule.
        class_labels, null_class, guidance_scale: As for [`~ddpm_sampling.denoise`].

    Raises:
        ValueError: For a network that predicts something else, and a scheduler without a noise schedule.
    """

    unet: Any
    scheduler: SchedulerMixin
    class_labels: torch.Tensor | None = None
    null_class: int | None = None
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        check_noise_levels(self.scheduler)
        kind, config = self.scheduler.config.prediction_type, self.unet.config
        if kind not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type is {kind!r}, but must be one of {', '.join(PREDICTION_TYPES)}.")
        if config.out_channels != config.in_channels:
            raise ValueError(
                f"this network has {config.out_channels} channels of {config.in_channels}, more than the noise."
            )

    @cached_property
    def ratios(self) -> torch.Tensor:
        """`log(alpha / sigma)` of each timestep, `(T,)`, descending."""
        return log_ratios(self.scheduler)

    def level(self, timestep: int) -> tuple[float, float]:
        """Returns `alpha` and `sigma` of a timestep."""
        return amplitudes(self.ratios[timestep].item())

    def timesteps(self, steps: int | None, first: int | None = None) -> list[int]:
        """Returns the timesteps of so many steps, by default 50, descending, from `first` on if it is given.

        Raises:
            ValueError: For more steps than there are timesteps.
        """
        trained = self.scheduler.config.num_train_timesteps
        steps = min(STEPS, trained) if steps is None else steps
        check_steps(steps, trained)
        if first is None:
            return log_snr_timesteps(self.scheduler, steps)
        later = log_snr_timesteps(self.scheduler, steps, self.ratios[first].item()) if steps > 1 else []
        return sorted({first, *(timestep for timestep in later if timestep < first)}, reverse=True)

    def __call__(self, noisy: torch.Tensor, timestep: int) -> torch.Tensor:
        output = self._predict(noisy, timestep, self.class_labels)
        if self.class_labels is not None and self.guidance_scale != 1:
            nothing = torch.full_like(self.class_labels, self.null_class)  # type: ignore[arg-type]
            without = self._predict(noisy, timestep, nothing)
            output = without + self.guidance_scale * (output - without)
        share = self.ratios[timestep].mul(2).sigmoid().to(noisy).expand(len(noisy))
        return clean(self.scheduler.config.prediction_type, output, noisy, share)

    def _predict(self, noisy: torch.Tensor, timestep: int, labels: torch.Tensor | None) -> torch.Tensor:
        return self.unet(noisy.to(self.unet.dtype), timestep, class_labels=labels).sample.float()


def conditional_mean(
    denoiser: Denoiser,
    noisy: torch.Tensor,
    timestep: int,
    observation: Observation,
    gradients: int = GRADIENTS,
) -> torch.Tensor:
    """Computes `E[x_0 | x_t, y]` for `x_0` that is normal given `x_t`, of the mean and the covariance that the network
    tells: see `"posterior"` above.

    Args:
        denoiser ([`Denoiser`]): The network.
        noisy (`torch.Tensor` of shape `(B, C, H, W)`), timestep (`int`): `x_t`, and its level.
        observation ([`Observation`]): `y`.
        gradients (`int`, *optional*, defaults to 10): Iterations of conjugate gradients; exact after as many as there
            are observed numbers.
    """
    alpha, sigma = denoiser.level(timestep)
    with torch.enable_grad():
        noisy = noisy.detach().requires_grad_()
        mean = denoiser(noisy, timestep)

    def covariance(images: torch.Tensor) -> torch.Tensor:
        (product,) = torch.autograd.grad(mean, noisy, images, retain_graph=True)
        return sigma**2 / alpha * product

    def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * b).flatten(1).sum(1).view(-1, *[1] * (a.ndim - 1))

    residual = observation.target - observation.observe(mean.detach())
    change = torch.zeros_like(noisy)
    direction, square = residual, dot(residual, residual)
    start = square.clamp_min(1e-30)
    for _ in range(gradients):
        image = covariance(observation.spread(direction))
        product = observation.observe(image) + LEAST_DEVIATION**2 * direction
        curvature = dot(direction, product)
        # An image whose system is solved, or whose derivative is no covariance along this direction, stays as it is.
        size = torch.where((curvature > 0) & (square > 1e-10 * start), square / curvature.clamp_min(1e-30), 0.0)
        change, residual = change + size * image, residual - size * product
        before, square = square, dot(residual, residual)
        direction = residual + square / before.clamp_min(1e-30) * direction
    return (mean + change).detach()


def diffuse(
    denoiser: Denoiser,
    timesteps: Sequence[int],
    noisy: torch.Tensor,
    generator: Generators = None,
    observation: Observation | None = None,
    method: str = "ddnm",
    resamples: int = 1,
    clip: bool = True,
    progress_bar: Callable[[Any], Any] = iter,
    on_step_end: StepEnd | None = None,
) -> torch.Tensor:
    """Turns noisy images into clean ones that fit an observation, if there is one: see the top of this file.

    Args:
        denoiser ([`Denoiser`]): The network.
        timesteps (`Sequence[int]`): Those to go through, descending; the image comes after the last.
        noisy (`torch.Tensor` of shape `(B, C, H, W)`): Images at the first timestep, float32.
        generator (*optional*): One `torch.Generator`, or one per image.
        observation ([`Observation`], *optional*), method (`str`): What is known, and how it comes in.
        resamples (`int`): How often each step is done.
        clip (`bool`): Whether to keep images, expected and final ones, in [-1, 1].
        progress_bar (`Callable`): Wraps the timesteps.
        on_step_end (`Callable`, *optional*): Given a step's number, its timestep and the images after it, returns
            those to go on with.

    Returns:
        `torch.Tensor` of shape `(B, C, H, W)`: Images in [-1, 1].
    """

    def draw() -> torch.Tensor:
        return draw_like(noisy, noisy.shape[1:], generator)

    before = None  # what was expected a step ago
    levels = [*map(denoiser.level, timesteps), (1.0, 0.0)]
    for step, timestep in enumerate(progress_bar(timesteps)):
        (alpha, sigma), (next_alpha, next_sigma) = levels[step : step + 2]
        kept = alpha * next_sigma**2 / (next_alpha * sigma**2)  # of the noisy images
        eta = next_sigma * max(0.0, 1 - kept * alpha / next_alpha) ** 0.5
        slope = 0.0
        if step and next_sigma and resamples == 1:  # else what was expected comes of other noise
            (last_alpha, last_sigma), length = levels[step - 1], math.log(next_alpha * sigma / (next_sigma * alpha))
            slope = 0.5 * length / math.log(alpha * last_sigma / (sigma * last_alpha))
        times = resamples if next_sigma else 1  # there is no way back from the image
        for turn in range(times):
            if observation is not None and method == "posterior":
                x = conditional_mean(denoiser, noisy, timestep, observation)
            else:
                x = denoiser(noisy, timestep)
            x = x.clamp(-1, 1) if clip else x
            if observation is not None and method == "ddnm":
                x = x + observation.residual(x)
            ahead = x if before is None else x + slope * (x - before)
            after = kept * noisy + (next_alpha - kept * alpha) * ahead
            after = after + eta * draw() if eta else after
            if observation is not None and method == "repaint":
                given = next_alpha * observation.target + (next_sigma * draw() if next_sigma else 0.0)
                after = torch.where(observation.hole, after, given)  # type: ignore[arg-type]
            if turn + 1 < times:
                back = alpha / next_alpha
                noisy = back * after + max(0.0, sigma**2 - (back * next_sigma) ** 2) ** 0.5 * draw()
        before = x
        noisy = after if on_step_end is None else on_step_end(step, timestep, after)
    return noisy.clamp(-1, 1) if clip else noisy


@torch.no_grad()
def restore(
    denoiser: Denoiser,
    observation: Observation,
    generator: Generators = None,
    num_inference_steps: int | None = None,
    method: str = "ddnm",
    resamples: int = 1,
    **how: Any,
) -> torch.Tensor:
    """Draws images that fit an observation: see the top of this file.

    Args:
        denoiser ([`Denoiser`]): The network.
        observation ([`Observation`]): What is known of each image; see [`holes`], [`shrunk`] and [`grays`].
        generator, method, resamples: See [`diffuse`].
        num_inference_steps (`int`, *optional*): Steps, spread evenly in `log(alpha / sigma)`; by default 50.
        how: `clip`, `progress_bar` and `on_step_end` of [`diffuse`].

    Returns:
        `torch.Tensor` of shape `(B, C, H, W)`: Images in about [-1, 1]: what is observed of them is `target` to the
        last bits.

    Raises:
        ValueError: For an unknown method, one that does not fit the observation, or numbers out of range.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, but must be one of {', '.join(METHODS)}.")
    if method == "repaint" and observation.hole is None:
        raise ValueError("method is 'repaint', which fills holes alone: use 'ddnm' or 'posterior'.")
    at_least("resamples", resamples, 1)
    timesteps, config = denoiser.timesteps(num_inference_steps), denoiser.unet.config
    size = (config.sample_size,) * 2 if isinstance(config.sample_size, int) else config.sample_size
    generator = check_generators(generator, len(observation.target))
    noise = draw_like(observation.target, (config.in_channels, *size), generator)
    images = diffuse(denoiser, timesteps, noise, generator, observation, method, resamples, **how)
    return images + observation.residual(images)


@torch.no_grad()
def remove_noise(
    denoiser: Denoiser,
    images: torch.Tensor,
    deviation: float,
    generator: Generators = None,
    num_inference_steps: int = 1,
    **how: Any,
) -> torch.Tensor:
    """Draws images as they may have been before normal noise was added: this is what the network was trained for, from
    the level on that has this noise.

    Args:
        denoiser ([`Denoiser`]): The network.
        images (`torch.Tensor` of shape `(B, C, H, W)`): Noisy ones, about [-1, 1].
        deviation (`float`): The standard deviation of their noise.
        generator (*optional*): See [`diffuse`].
        num_inference_steps (`int`, *optional*, defaults to 1): One step gives the mean of what they may have been: the
            least squared error, and smooth. More steps draw one of them.
        how: `clip`, `progress_bar` and `on_step_end` of [`diffuse`].

    Returns:
        `torch.Tensor` of shape `(B, C, H, W)`: Images in [-1, 1].

    Raises:
        ValueError: For a deviation that is not above 0 or beyond the schedule, and numbers out of range.
    """
    most = (-denoiser.ratios[-1]).exp().item()
    at_least("deviation", deviation, 0, whole=False)
    if not 0 < deviation <= most:
        raise ValueError(f"deviation is {deviation}, but must be above 0 and at most {most:.4g}, as in training.")
    # Of the timesteps with as much noise the first: what it has more is added.
    first = min(int((denoiser.ratios > -math.log(deviation)).sum()), len(denoiser.ratios) - 1)
    alpha, sigma = denoiser.level(first)
    missing = max(0.0, sigma**2 - (alpha * deviation) ** 2) ** 0.5
    generator = check_generators(generator, len(images))
    noisy = alpha * images + missing * draw_like(images, images.shape[1:], generator)
    return diffuse(denoiser, denoiser.timesteps(num_inference_steps, first), noisy, generator, **how)


@torch.no_grad()
def img2img(
    denoiser: Denoiser,
    images: torch.Tensor,
    strength: float,
    generator: Generators = None,
    num_inference_steps: int | None = None,
    **how: Any,
) -> torch.Tensor:
    """Adds noise to images and takes it away again: what the network knows better, or another class, comes in
    (SDEdit, https://huggingface.co/papers/2108.01073).

    Args:
        denoiser ([`Denoiser`]): The network.
        images (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1].
        strength (`float`): From 0, which changes nothing, to 1, of which nothing is left: the share of the steps.
        generator (*optional*): See [`diffuse`].
        num_inference_steps (`int`, *optional*): Those of strength 1; by default 50.
        how: `clip`, `progress_bar` and `on_step_end` of [`diffuse`].

    Returns:
        `torch.Tensor` of shape `(B, C, H, W)`: Images in [-1, 1].

    Raises:
        ValueError: For a strength outside of [0, 1], and numbers out of range.
    """
    at_least("strength", strength, 0, whole=False)
    if strength > 1:
        raise ValueError(f"strength is {strength}, but must be in [0, 1].")
    timesteps = denoiser.timesteps(num_inference_steps)
    timesteps = timesteps[len(timesteps) - round(strength * len(timesteps)) :]
    generator = check_generators(generator, len(images))
    if not timesteps:
        return images
    alpha, sigma = denoiser.level(timesteps[0])
    noise = draw_like(images, images.shape[1:], generator)
    noisy = noise if strength == 1 else alpha * images + sigma * noise
    return diffuse(denoiser, timesteps, noisy, generator, **how)


def draw_like(images: torch.Tensor, shape: Sequence[int], generator: Generators) -> torch.Tensor:
    """Draws standard normal noise, `shape` for each of some images, float32, where these are."""
    return randn_tensor((len(images), *shape), generator=generator, device=images.device, dtype=torch.float32)
