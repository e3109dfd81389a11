"""Bits per dimension of a VAE on a data set, by importance sampling, with what they are made of.

    python scripts/measure_likelihood.py --model out/vae-mnist --dataset_name ylecun/mnist --dataset_split test
    python scripts/measure_likelihood.py --model out/vae-mnist --dataset_name ylecun/mnist --num_samples 500

All likelihoods are those of 8-bit images, so that models can be compared: a Gaussian is integrated over each pixel's
bin. The prior is the model's own, not one fitted afterwards. The figures are printed and written as JSON.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hfgen.commands.cli import one_line_errors, parse
from hfgen.data.config import ImagesConfig
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import option


@dataclass(frozen=True)
class MeasureConfig:
    """Measuring: which model, on which images, how exactly."""

    model: str | None = option(None, "folder or Hub id of the VAE")
    num_images: int = option(1000, "images, drawn with the seed")
    num_samples: int = option(100, "latents per image; the bound rises to the truth with them")
    batch_size: int = option(100, "images at once")
    seed: int = option(0, "seed of the images and the latents")
    output: str | None = option(None, "JSON file (default: likelihood.json in the model's folder)")


def read_options(argv: Sequence[str] | None = None) -> tuple[MeasureConfig, ImagesConfig]:
    config, images = parse((MeasureConfig, ImagesConfig), argv, description=str(__doc__).partition("\n")[0])
    if not config.model:
        raise UserError("--model is missing: give the --output_dir of a training run, or a Hub id.")
    for name in ("num_images", "num_samples", "batch_size"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)} is out of range: use 1 or more.")
    return config, images


def main(argv: Sequence[str] | None = None) -> None:
    config, source = read_options(argv)

    import torch
    from accelerate import PartialState
    from tqdm.auto import tqdm

    from hfgen.evaluation.reference import pick_images
    from hfgen.objectives.elbo import bits_per_dim
    from hfgen.sampling.loading import load_pipeline
    from hfgen.sampling.vae import log_evidence
    from hfgen.pipelines.vae import VAEPipeline

    pipe = load_pipeline(str(config.model))
    if not isinstance(pipe, VAEPipeline):
        raise UserError(f"--model {config.model} is a {type(pipe).__name__}, which has no likelihood: give a VAE.")
    if pipe.config.task:
        raise UserError(f"--model {config.model} is trained to {pipe.config.task}, not to model images.")
    device = PartialState().device
    model = pipe.model.eval().to(device)
    images, labels, info = pick_images(source, pipe.image_shape, config.num_images, config.seed)
    if not pipe.class_names:
        labels = None
    elif labels is None:
        raise UserError(f"{info.name} has no classes, which {config.model} needs: name --label_column.")
    generator = torch.Generator().manual_seed(config.seed)
    bounds = []
    for start in tqdm(range(0, len(images), config.batch_size), unit="batch"):
        part = slice(start, start + config.batch_size)
        classes = None if labels is None else torch.from_numpy(labels[part]).to(device)
        pixels = torch.from_numpy(images[part]).to(device).float() / 127.5 - 1
        try:
            density = log_evidence(model, pixels, classes, config.num_samples, generator)
        except ValueError as error:
            raise UserError(f"--dataset_name {info.name} does not fit --model {config.model}: {error}") from None
        bounds.append(torch.stack([density.lower, density.estimate]).cpu())
    lower, weighted = torch.cat(bounds, dim=1).double()
    dimensions = images[0].size
    bits = bits_per_dim(-weighted, dimensions)
    report = {
        "model": config.model,
        "likelihood": model.config.likelihood,
        "data": f"{info.name} [{info.split}]",
        "fingerprint": info.fingerprint,
        "num_images": len(images),
        "num_samples": config.num_samples,
        "seed": config.seed,
        "bits_per_dim": bits.mean().item(),
        "standard_error": (bits.std() / len(bits) ** 0.5).item(),
        "bits_per_dim_elbo": bits_per_dim(-lower, dimensions).mean().item(),
        "nats": -weighted.mean().item(),
    }
    print(
        f"{report['data']}: {len(images)} images, {config.num_samples} latents each, {report['likelihood']} likelihood"
    )
    print(f"bits per dimension: {report['bits_per_dim']:.3f} +- {report['standard_error']:.3f} (importance-weighted)")
    print(f"                    {report['bits_per_dim_elbo']:.3f} (evidence lower bound)")
    folder = Path(str(config.model))
    output = Path(config.output or (folder if folder.is_dir() else Path()) / "likelihood.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with one_line_errors():
        main()
