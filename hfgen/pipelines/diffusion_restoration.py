"""Restoring and editing images with any denoising network, trained for nothing else: functions of the network, its
scheduler, and what is left of an image.

Notation: `x_t = alpha_t x_0 + sigma_t eps`, and the network expects `E[x_0 | x_t]`. Each step goes from `t` to a lower
noise level by `x_0` alone, as ancestral sampling does (https://huggingface.co/papers/2006.11239, equation 7), and in
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

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from hfgen.objectives.denoising import PREDICTION_TYPES, clean
from hfgen.pipelines.base import at_least, check_generators
from hfgen.pipelines.classes import Generators
from hfgen.pipelines.ddpm_sampling import check_noise_levels, log_ratios, log_snr_timesteps
from hfgen.pipelines.restoration import enlarge, shrink

METHODS = ("ddnm", "posterior", "repaint")
STEPS = 50
GRADIENTS = 10  # conjugate ones, of a step of "posterior"
LEAST_DEVIATION = 1e-3  # of what is observed, in the linear system: half of an 8-bit level
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in gray: ITU-R BT.601, as PIL has it
"""Expected clean images of noisy ones `(B, C, H, W)` at a timestep."""
Expect = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


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


def expect(
    unet: Any,
    scheduler: SchedulerMixin,
    class_labels: torch.Tensor | None = None,
    null_class: int | None = None,
    guidance_scale: float = 1.0,
) -> Expect:
    """Makes a function of noisy images `(B, C, H, W)` and a timestep, which returns the clean images that the network
    expects: float32, not clamped. Derivatives go through it.

    Args:
        unet (`UNet2DModel`), scheduler (`SchedulerMixin`): The network, and one of any kind with its noise schedule.
        class_labels, null_class, guidance_scale: As for [`~ddpm_sampling.denoise`].

    Raises:
        ValueError: For a network that predicts something else, and a scheduler without a noise schedule.
    """
    check_noise_levels(scheduler)
    kind, ratios = scheduler.config.prediction_type, log_ratios(scheduler)
    if kind not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type is {kind!r}, but must be one of {', '.join(PREDICTION_TYPES)}.")
    if unet.config.out_channels != unet.config.in_channels:
        raise ValueError(
            f"this network has {unet.config.out_channels} channels of {unet.config.in_channels}, more than the noise."
        )
    accepts = "class_labels" in inspect.signature(unet.forward).parameters

    def passed(noisy: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        more = {"class_labels": labels} if accepts else {}
        return unet(noisy.to(unet.dtype), timestep, **more).sample.float()

    def expected(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        output = passed(noisy, timestep, class_labels)
        if class_labels is not None and guidance_scale != 1:
            without = passed(noisy, timestep, torch.full_like(class_labels, null_class))  # type: ignore[arg-type]
            output = without + guidance_scale * (output - without)
        share = ratios[int(timestep)].mul(2).sigmoid().to(noisy).expand(len(noisy))
        return clean(kind, output, noisy, share)

    return expected


def conditional_mean(
    expected: Expect,
    noisy: torch.Tensor,
    timestep: torch.Tensor,
    alpha: float,
    sigma: float,
    observation: Observation,
    gradients: int = GRADIENTS,
) -> torch.Tensor:
    """Computes `E[x_0 | x_t, y]` for `x_0` that is normal given `x_t`, of the mean and the covariance that the network
    tells: see `"posterior"` above.

    Args:
        expected (`Callable`): See [`expect`].
        noisy (`torch.Tensor` of shape `(B, C, H, W)`): `x_t`.
        timestep (`torch.Tensor`), alpha, sigma (`float`): Its level.
        observation ([`Observation`]): `y`.
        gradients (`int`, *optional*, defaults to 10): Iterations of conjugate gradients; exact after as many as there
            are observed numbers.
    """
    with torch.enable_grad():
        noisy = noisy.detach().requires_grad_()
        mean = expected(noisy, timestep)

    def covariance(images: torch.Tensor) -> torch.Tensor:
        (product,) = torch.autograd.grad(mean, noisy, images, retain_graph=True)
        return sigma**2 / alpha * product

    variance = LEAST_DEVIATION**2

    def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * b).flatten(1).sum(1).view(-1, *[1] * (a.ndim - 1))

    residual = observation.target - observation.observe(mean.detach())
    change, spread = torch.zeros_like(noisy), torch.zeros_like(residual)
    direction, square = residual, dot(residual, residual)
    start = square.clamp_min(1e-30)
    for _ in range(gradients):
        image = covariance(observation.spread(direction))
        product = observation.observe(image) + variance * direction
        curvature = dot(direction, product)
        # An image whose system is solved, or whose derivative is no covariance along this direction, stays as it is.
        size = torch.where((curvature > 0) & (square > 1e-10 * start), square / curvature.clamp_min(1e-30), 0.0)
        spread, change = spread + size * direction, change + size * image
        residual = residual - size * product
        before, square = square, dot(residual, residual)
        direction = residual + square / before.clamp_min(1e-30) * direction
    return (mean + change).detach()


def diffuse(
    expected: Expect,
    timesteps: Sequence[int],
    ratios: torch.Tensor,
    noisy: torch.Tensor,
    generator: Generators = None,
    observation: Observation | None = None,
    method: str = "ddnm",
    resamples: int = 1,
    clip: bool = True,
    progress_bar: Callable[[Any], Any] = iter,
    on_step_end: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Turns noisy images into clean ones that fit an observation, if there is one: see the top of this file.

    Args:
        expected (`Callable`): See [`expect`].
        timesteps (`Sequence[int]`): Those to go through, descending; the image comes after the last.
        ratios (`torch.Tensor` of shape `(T,)`): `log(alpha / sigma)` of all timesteps of the schedule.
        noisy (`torch.Tensor` of shape `(B, C, H, W)`): Images at the first timestep, float32.
        generator (*optional*): One `torch.Generator`, or one per image.
        observation ([`Observation`], *optional*), method (`str`): What is known, and how it comes in.
        resamples (`int`): How often each step is done.
        clip (`bool`): Whether to keep expected images in [-1, 1].
        progress_bar (`Callable`): Wraps the timesteps.
        on_step_end (`Callable`, *optional*): Given a step's number, its timestep and the images after it, returns
            those to go on with.

    Returns:
        `torch.Tensor` of shape `(B, C, H, W)`: In about [-1, 1].
    """
    device = noisy.device

    def draw() -> torch.Tensor:
        return randn_tensor(tuple(noisy.shape), generator=generator, device=device, dtype=noisy.dtype)

    before = None  # what was expected a step ago
    levels = [*(level(ratios, number) for number in timesteps), (1.0, 0.0)]
    for step, number in enumerate(progress_bar(timesteps)):
        timestep = torch.tensor(number, device=device)
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
                x = conditional_mean(expected, noisy, timestep, alpha, sigma, observation)
            else:
                x = expected(noisy, timestep)
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
    return noisy


def level(ratios: torch.Tensor, timestep: int) -> tuple[float, float]:
    """Returns `alpha` and `sigma` of a timestep."""
    ratio = 2 * ratios[timestep]
    return ratio.sigmoid().sqrt().item(), (-ratio).sigmoid().sqrt().item()


@torch.no_grad()
def restore(
    unet: Any,
    scheduler: SchedulerMixin,
    observation: Observation,
    generator: Generators = None,
    num_inference_steps: int | None = None,
    class_labels: torch.Tensor | None = None,
    null_class: int | None = None,
    guidance_scale: float = 1.0,
    method: str = "ddnm",
    resamples: int = 1,
    clip: bool = True,
    progress_bar: Callable[[Any], Any] = iter,
    on_step_end: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Draws images that fit an observation: see the top of this file.

    Args:
        unet, scheduler, class_labels, null_class, guidance_scale: See [`expect`].
        observation ([`Observation`]): What is known of each image; see [`holes`], [`shrunk`] and [`grays`].
        generator, method, resamples, clip, progress_bar, on_step_end: See [`diffuse`].
        num_inference_steps (`int`, *optional*): Steps, spread evenly in `log(alpha / sigma)`; by default 50.

    Returns:
        `torch.Tensor` of shape `(B, C, H, W)`: Images in [-1, 1]. Without noise, what is observed of them is `target`
        to the last bits.

    Raises:
        ValueError: For an unknown method, one that does not fit the observation, or numbers out of range.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, but must be one of {', '.join(METHODS)}.")
    if method == "repaint" and observation.hole is None:
        raise ValueError("method is 'repaint', which fills holes alone: use 'ddnm' or 'posterior'.")
    at_least("resamples", resamples, 1)
    expected = expect(unet, scheduler, class_labels, null_class, guidance_scale)
    timesteps = _timesteps(scheduler, num_inference_steps)
    count = len(observation.target)
    size = unet.config.sample_size
    shape = (count, unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
    generator = check_generators(generator, count)
    noise = randn_tensor(shape, generator=generator, device=observation.target.device, dtype=torch.float32)
    ratios = log_ratios(scheduler)
    images = diffuse(
        expected, timesteps, ratios, noise, generator, observation, method, resamples, clip, progress_bar, on_step_end
    )
    images = images.clamp(-1, 1) if clip else images
    return images + observation.residual(images)


def _timesteps(scheduler: SchedulerMixin, steps: int | None, first: int | None = None) -> list[int]:
    """Returns the timesteps of so many steps, from `first` on, descending."""
    check_noise_levels(scheduler)
    trained = scheduler.config.num_train_timesteps
    steps = min(STEPS, trained) if steps is None else steps
    at_least("num_inference_steps", steps, 1)
    if steps > trained:
        raise ValueError(
            f"num_inference_steps is {steps}, but this network was trained with {trained} timesteps: use {trained} or "
            "fewer."
        )
    if first is None:
        return log_snr_timesteps(scheduler, steps)
    low = log_ratios(scheduler)[first].item()
    return sorted({first, *(number for number in log_snr_timesteps(scheduler, steps, low) if number < first)})[::-1]


@torch.no_grad()
def remove_noise(
    unet: Any,
    scheduler: SchedulerMixin,
    images: torch.Tensor,
    deviation: float,
    generator: Generators = None,
    num_inference_steps: int | None = None,
    class_labels: torch.Tensor | None = None,
    null_class: int | None = None,
    guidance_scale: float = 1.0,
    clip: bool = True,
    progress_bar: Callable[[Any], Any] = iter,
    on_step_end: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Draws images as they may have been before normal noise was added: this is what the network was trained for, from
    the level on that has this noise.

    Args:
        images (`torch.Tensor` of shape `(B, C, H, W)`): Noisy ones, about [-1, 1].
        deviation (`float`): The standard deviation of their noise.
        num_inference_steps (`int`, *optional*): By default 1, which gives the mean of what they may have been: the
            least squared error, and smooth. More steps draw one of them.

    Returns:
        `torch.Tensor` of shape `(B, C, H, W)`: Images in [-1, 1].

    Raises:
        ValueError: For a deviation that is not above 0 or beyond the schedule, and numbers out of range.
    """
    ratios = log_ratios(scheduler)
    most = (-ratios[-1]).exp().item()
    at_least("deviation", deviation, 0, whole=False)
    if not 0 < deviation <= most:
        raise ValueError(f"deviation is {deviation}, but must be above 0 and at most {most:.4g}, as in training.")
    first = int((ratios > -torch.tensor(deviation, dtype=ratios.dtype).log()).sum())
    first = min(first, len(ratios) - 1)
    alpha, sigma = level(ratios, first)
    generator = check_generators(generator, len(images))
    noise = randn_tensor(tuple(images.shape), generator=generator, device=images.device, dtype=torch.float32)
    missing = max(0.0, sigma**2 - (alpha * deviation) ** 2) ** 0.5
    steps = 1 if num_inference_steps is None else num_inference_steps
    timesteps = [first] if steps == 1 else _timesteps(scheduler, steps, first)
    noisy = alpha * images + missing * noise
    expected = expect(unet, scheduler, class_labels, null_class, guidance_scale)
    cleaned = diffuse(
        expected, timesteps, ratios, noisy, generator, clip=clip, progress_bar=progress_bar, on_step_end=on_step_end
    )
    return cleaned.clamp(-1, 1) if clip else cleaned


@torch.no_grad()
def img2img(
    unet: Any,
    scheduler: SchedulerMixin,
    images: torch.Tensor,
    strength: float,
    generator: Generators = None,
    num_inference_steps: int | None = None,
    class_labels: torch.Tensor | None = None,
    null_class: int | None = None,
    guidance_scale: float = 1.0,
    clip: bool = True,
    progress_bar: Callable[[Any], Any] = iter,
    on_step_end: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Adds noise to images and takes it away again: what the network knows better, or another class, comes in
    (SDEdit, https://huggingface.co/papers/2108.01073).

    Args:
        images (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1].
        strength (`float`): From 0, which changes nothing, to 1, of which nothing is left: the share of the steps.
        num_inference_steps (`int`, *optional*): Those of strength 1; by default 50.

    Returns:
        `torch.Tensor` of shape `(B, C, H, W)`: Images in [-1, 1].

    Raises:
        ValueError: For a strength outside of [0, 1], and numbers out of range.
    """
    at_least("strength", strength, 0, whole=False)
    if strength > 1:
        raise ValueError(f"strength is {strength}, but must be in [0, 1].")
    timesteps = _timesteps(scheduler, num_inference_steps)
    timesteps = timesteps[len(timesteps) - round(strength * len(timesteps)) :]
    generator = check_generators(generator, len(images))
    if not timesteps:
        return images
    ratios = log_ratios(scheduler)
    alpha, sigma = level(ratios, timesteps[0])
    noise = randn_tensor(tuple(images.shape), generator=generator, device=images.device, dtype=torch.float32)
    noisy = noise if strength == 1 else alpha * images + sigma * noise
    expected = expect(unet, scheduler, class_labels, null_class, guidance_scale)
    drawn = diffuse(
        expected, timesteps, ratios, noisy, generator, clip=clip, progress_bar=progress_bar, on_step_end=on_step_end
    )
    return drawn.clamp(-1, 1) if clip else drawn
