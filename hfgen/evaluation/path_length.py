"""Perceptual path length: how much images change along short steps between latents of a style-based GAN.

`E d(g(p(t)), g(p(t + epsilon))) / epsilon^2` for paths p from one random latent to another: the squared speed at which
images change (https://huggingface.co/papers/1812.04948, section 4.1). It is large where small steps in the latent
space make other images, and 0 for a generator with one image.

The papers take LPIPS for d, whose network is not at hand. Here d is the squared distance of the features that an
extractor of ours gives. So **no value is comparable to a published PPL**, only to others with that extractor: it is
reported as `ppl_<extractor>`, see [`~features.metric_prefix`].
"""

import copy
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from hfgen.evaluation.checks import check_features
from hfgen.evaluation.features import Extractor, Preparation, full_precision, run
from hfgen.evaluation.metrics import Result, slug
from hfgen.evaluation.resize import as_channels, filter_weights, resize_tf1
from hfgen.pipelines.base import slerp
from hfgen.runtime.distributed import Table, map_over_processes
from hfgen.runtime.errors import UserError
from hfgen.runtime.seeds import image_seed
from hfgen.sampling.sampler import Sampler

EPSILON = 1e-4  # of the papers
PATHS, PATH_BATCH = 1000, 64
TRIM = 0.01  # share of the distances that is left out at either end


@dataclass(frozen=True)
class PathLength:
    """The result of [`perceptual_path_length`].

    Args:
        value (`float`): The trimmed mean; squared features per squared length of path, where the whole one has 1.
        standard_error (`float`): That of the value, from the winsorised variance (Tukey & McLaughlin, 1963).
    """

    value: float
    standard_error: float


def measure_path_length(
    sampler: Sampler, extractor: Extractor, accelerator: Accelerator, count: int, seed: int, leave: bool = True
) -> list[Result]:
    """Measures the path length of a style-based model. Every process must call this; the first one gets the result.

    Args:
        sampler ([`~sampling.sampler.Sampler`]): The model, which [`~sampling.capabilities.HasStyles`].
        extractor ([`Extractor`]), accelerator (`Accelerator`): The features, and the processes.
        count (`int`): Paths, `PATHS` at most.
        seed (`int`): Seed of the set of paths.
        leave (`bool`, *optional*, defaults to `True`): Whether the finished progress bar stays.
    """
    count = min(count, PATHS)

    def distances(indices: list[int]) -> Table:
        return {"distances": path_distances(sampler.pipe, extractor, indices, seed).float()}

    rows = map_over_processes(accelerator, count, PATH_BATCH, distances, "Paths", leave)
    if not rows:
        return []
    length = perceptual_path_length(rows["distances"])
    details = {"paths": count, "space": "w", "sampling": "end", "epsilon": EPSILON}
    key, title = f"ppl_{slug(extractor)}", "Path length in these features"
    error = length.standard_error
    return [Result("ppl", key, title, length.value, "lower", error, "standard error", details=details)]


def perceptual_path_length(distances: torch.Tensor) -> PathLength:
    """Computes the mean of distances along paths without the smallest and the largest 1 %, as StyleGAN takes it.

    Args:
        distances (`torch.Tensor` of shape `(N,)`): The results of [`path_distances`], of all processes.

    Raises:
        ValueError: For fewer than 2 distances, and NaN or infinite ones.
    """
    values = check_features(torch.as_tensor(distances).unsqueeze(-1), "distances").double().cpu().numpy().squeeze(1)
    low = np.quantile(values, TRIM, method="lower")
    high = np.quantile(values, 1 - TRIM, method="higher")
    kept = values[(values >= low) & (values <= high)]
    deviation = values.clip(low, high).std(ddof=1)
    return PathLength(float(kept.mean()), float(deviation / ((1 - 2 * TRIM) * math.sqrt(len(values)))))


def path_distances(
    pipe: Any,
    extractor: Extractor,
    pairs: Sequence[int],
    seed: int = 0,
    space: str = "w",
    sampling: str = "end",
    epsilon: float = EPSILON,
) -> torch.Tensor:
    """Measures the squared distance of images that are `epsilon` of a path apart, divided by `epsilon^2`.

    Path number i depends on the seed and i alone. By default paths are those that StyleGAN2 reports
    (https://huggingface.co/papers/1912.04958): straight ones in w, measured where they begin. There is no truncation,
    the noise is that of the checkpoint, both ends have the same class (drawn as the pipeline draws them), and nothing
    is cropped. Other than in the papers, images are clamped to what can be shown (which took 6 to 15 % off with two
    models of MNIST).

    A step changes an image by a small part of a gray level. So nothing is rounded to 8 bit on the way to the network,
    and all before it is in float64. That the network is in float32 changed the mean by 0.1 % or less at an epsilon of
    1e-4, and by up to 1.3 % at 1e-5 (with Inception, a classifier of digits and a ViT).

    Args:
        pipe (`DiffusionPipeline`): With a style-based generator, such as [`~pipelines.gan.GANPipeline`] may have.
        extractor ([`Extractor`]): Whose features are compared. It takes two images per path.
        pairs (`Sequence[int]`): Numbers of the paths.
        seed (`int`, *optional*, defaults to 0): Seed of the set of paths.
        space (`str`, *optional*, defaults to `"w"`): `"w"` for straight lines between styles, `"z"` for arcs between
            latents.
        sampling (`str`, *optional*, defaults to `"end"`): `"end"` for t = 0, `"full"` for t from U(0, 1).
        epsilon (`float`, *optional*, defaults to 1e-4): Length of the step; the whole path has 1.

    Returns:
        `torch.Tensor` of shape `(len(pairs),)`, float64, on the CPU: [`perceptual_path_length`] is their mean.

    Raises:
        ValueError: For an unknown space or sampling, or an epsilon that is not above 0.
        UserError: For a pipeline without styles, and an extractor that takes 8-bit images only or other channels.
    """
    if space not in ("w", "z") or sampling not in ("end", "full"):
        raise ValueError(f"space is {space!r} and sampling is {sampling!r}, but they must be w or z, and end or full.")
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon is {epsilon}, but must be above 0.")
    if not getattr(pipe, "style_based", False):
        raise UserError(
            "the path length is that of style-based GANs, and this model has no styles: leave ppl out, or give a "
            "StyleGAN2."
        )
    if not isinstance(extractor.prepare, Preparation):
        raise UserError(
            f"the path length needs images that are not rounded to 8 bit, which the image processor of {extractor.id} "
            "does not take: leave ppl out, or choose another extractor."
        )
    device = torch.device("cpu") if pipe.device.type == "mps" else pipe.device  # which has no float64
    model = copy.deepcopy(pipe.model).to(device).double().eval()
    prepare = functools.partial(prepare_unrounded, extractor.prepare)
    at_once = max(1, extractor.batch_size // 2)
    distances = []
    with torch.inference_mode(), full_precision(device):
        for start in range(0, len(pairs), at_once):
            first, second, t, labels = _draw(
                pipe, [image_seed(seed, pair, "path") for pair in pairs[start : start + at_once]], sampling
            )
            first, second, t = (part.to(device) for part in (first, second, t))
            labels = None if labels is None else labels.to(device)
            if space == "w":
                first, second = model.map(first, labels), model.map(second, labels)
                points = [torch.lerp(first, second, at[:, None]) for at in (t, t + epsilon)]
            else:
                points = [model.map(slerp(first, second, at), labels) for at in (t, t + epsilon)]
            images = model.synthesize(torch.cat(points))
            pixels = (images / 2 + 0.5).clamp(0, 1) * 255
            features = run(extractor.network, prepare, pixels, extractor.device)["features"].double()
            one, other = features.chunk(2)
            distances.append((one - other).square().sum(1).cpu() / epsilon**2)
    return torch.cat(distances) if distances else torch.zeros(0, dtype=torch.float64)


def prepare_unrounded(preparation: Preparation, pixels: torch.Tensor) -> torch.Tensor:
    """Applies a [`~features.Preparation`] to images that are not 8-bit ones, without rounding any.

    Args:
        preparation ([`~features.Preparation`]): What the network needs.
        pixels (`torch.Tensor` of shape `(N, C, H, W)`, float64): Images in [0, 255].

    Returns:
        `torch.Tensor`: What the network takes, float32.
    """
    pixels = as_channels(pixels, preparation.channels)
    height, width = pixels.shape[2:]
    size = preparation.size_for(height, width)
    if size is not None:
        pixels = pixels @ _weights(preparation.resample, width, size[1]).to(pixels.device).T
        if preparation.rounded:  # 8-bit images have no levels to go beyond, from one pass to the next
            pixels = pixels.clamp(0, 255)
        pixels = (_weights(preparation.resample, height, size[0]).to(pixels.device) @ pixels).clamp(0, 255)
    pixels = preparation.middle(pixels)
    mean, std = (pixels.new_tensor(part).view(-1, 1, 1) for part in (preparation.mean, preparation.std))
    return ((pixels * preparation.scale - mean) / std).float()


def _weights(resample: str, inputs: int, outputs: int) -> torch.Tensor:
    """Returns the matrix that resizes a line of pixels: `(outputs, inputs)`, float64."""
    if resample == "tf1":
        return resize_tf1(torch.eye(inputs, dtype=torch.uint8)[None, None], (outputs, inputs))[0, 0].double()
    return filter_weights(resample, inputs, outputs)


def _draw(
    pipe: Any, seeds: Sequence[int], sampling: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Draws the latents z of both ends, `(N, latent_dim)` each, fractions t of the paths and classes, `(N,)` each;
    float64."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents = torch.stack([torch.randn(2, pipe.model.config.latent_dim, generator=each) for each in generators])
    fractions = torch.zeros(len(seeds), dtype=torch.float64)
    if sampling == "full":
        fractions = torch.stack([torch.rand((), generator=each, dtype=torch.float64) for each in generators])
    labels = pipe.class_numbers(None, len(seeds), generators)
    first, second = latents.double().unbind(1)
    return first, second, fractions, labels
