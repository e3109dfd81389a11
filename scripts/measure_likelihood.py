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

from hfgen.cli import option, parse
from hfgen.data.config import DataConfig
from hfgen.errors import UserError, one_line_errors


@dataclass(frozen=True)
class MeasureConfig:
    """Measuring: which model, on which images, how exactly."""

    model: str | None = option(None, "folder or Hub id of the VAE")
    dataset_name: str | None = option(None, "Hub id or folder of the images (default: the digits)")
    dataset_split: str = option("test", "split (the digits have only train)")
    label_column: str | None = option(None, "column of the classes (default: the ClassLabel one)")
    cache_dir: str | None = option(None, "folder for the decoded images")
    num_images: int = option(1000, "images, drawn with the seed")
    num_samples: int = option(100, "latents per image; the bound rises to the truth with them")
    batch_size: int = option(100, "images at once")
    seed: int = option(0, "seed of the images and the latents")
    output: str | None = option(None, "JSON file (default: likelihood.json in the model's folder)")


def read_options(argv: Sequence[str] | None = None) -> MeasureConfig:
    (config,) = parse((MeasureConfig,), argv, description=str(__doc__).partition("\n")[0])
    if not config.model:
        raise UserError("--model is missing: give the --output_dir of a training run, or a Hub id.")
    for name in ("num_images", "num_samples", "batch_size"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)} is out of range: use 1 or more.")
    return config


def main(argv: Sequence[str] | None = None) -> None:
    config = read_options(argv)

    import numpy as np
    import torch
    from tqdm.auto import tqdm

    from hfgen.data.images import open_images
    from hfgen.evaluation.likelihood import log_evidence
    from hfgen.objectives.elbo import bits_per_dim
    from hfgen.pipelines import load_pipeline
    from hfgen.pipelines.vae import VAEPipeline

    pipe = load_pipeline(str(config.model))
    if not isinstance(pipe, VAEPipeline):
        raise UserError(f"--model {config.model} is a {type(pipe).__name__}, which has no likelihood: give a VAE.")
    if pipe.config.task:
        raise UserError(f"--model {config.model} is trained to {pipe.config.task}, not to model images.")
    model = pipe.model.eval()
    size, channels = model.config.sample_size, model.config.in_channels
    data = open_images(
        DataConfig(
            dataset_name=config.dataset_name,
            dataset_split=config.dataset_split if config.dataset_name else "train",
            label_column=config.label_column,
            cache_dir=config.cache_dir,
            resolution=size,
            image_mode={1: "L", 3: "RGB", 4: "RGBA"}[channels],
        )
    )
    rows = np.sort(np.random.default_rng(config.seed).permutation(len(data.images))[: config.num_images])
    if pipe.class_names and data.labels is None:
        raise UserError(f"{data.info.name} has no classes, which {config.model} needs: name --label_column.")
    generator = torch.Generator().manual_seed(config.seed)
    bounds = []
    for start in tqdm(range(0, len(rows), config.batch_size), unit="batch"):
        chosen = rows[start : start + config.batch_size]
        images = torch.from_numpy(np.array(data.images[chosen])).float() / 127.5 - 1
        labels = torch.from_numpy(data.labels[chosen]) if pipe.class_names and data.labels is not None else None
        bounds.append(torch.stack(log_evidence(model, images, labels, config.num_samples, generator)))
    lower, weighted = torch.cat(bounds, dim=1).double()
    dimensions = channels * size**2
    bits = bits_per_dim(-weighted, dimensions)
    report = {
        "model": config.model,
        "likelihood": model.config.likelihood,
        "data": f"{data.info.name} [{data.info.split}]",
        "fingerprint": data.info.fingerprint,
        "num_images": len(rows),
        "num_samples": config.num_samples,
        "seed": config.seed,
        "bits_per_dim": bits.mean().item(),
        "standard_error": (bits.std() / len(bits) ** 0.5).item(),
        "bits_per_dim_elbo": bits_per_dim(-lower, dimensions).mean().item(),
        "nats": -weighted.mean().item(),
    }
    print(
        f"{report['data']}: {len(rows)} images, {config.num_samples} latents each, {report['likelihood']} likelihood"
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
