"""Samples images from any checkpoint that hfgen writes, to PNG files and a grid.

Image number i is made from the seed `--seed` + i alone: batch size and number of processes change nothing. Examples:

    python scripts/sample.py --model out/ddpm-digits --num_images 16
    python scripts/sample.py --model user/ddpm-mnist --class_labels 3 8 --guidance_scale 2
    torchrun --nproc_per_node 2 scripts/sample.py --model out/ddpm-mnist --num_images 1000
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgen.cli import option, parse
from hfgen.errors import UserError, one_line_errors


@dataclass(frozen=True)
class SampleConfig:
    """Sampling: from what, how many, how, and where to."""

    model: str | None = option(None, "folder or Hub id of the checkpoint")
    revision: str | None = option(None, "branch, tag or commit on the Hub")
    num_images: int = option(16, "number of images")
    seed: int = option(0, "seed of the first image; each following one has the next")
    batch_size: int | None = option(None, "images at once per process (default: as many as fit, at most 64)")
    class_labels: tuple[str, ...] | None = option(
        None, "classes by number or name, in turn (default for a class-conditional model: all classes)"
    )
    truncation: float = option(1.0, "truncation of a StyleGAN2: 1 is none, 0 the mean image")
    temperature: float = option(1.0, "scale of a VAE's latents: below 1 for more typical images, 0 for the mean one")
    prior: str | None = option(
        None,
        "what a VAE's latents are drawn from (default: the mixture, if one was fitted)",
        choices=("normal", "mixture"),
    )
    guidance_scale: float | None = option(None, "classifier-free guidance; 1 is none (default: the model's own)")
    sampler: str | None = option(
        None, "how to sample a DDPM (default: dpmsolver++)", choices=("dpmsolver++", "ddim", "ddpm")
    )
    num_inference_steps: int | None = option(None, "sampling steps (default: 20, with --sampler ddpm all)")
    mixed_precision: str = option("no", "no, or bf16 or fp16 weights", choices=("no", "bf16", "fp16"))
    output_dir: str | None = option(
        None, "folder for the images (default: <model>/images, or images-<model> for a Hub id)"
    )
    overwrite_output_dir: bool = option(False, "replace the images that --output_dir holds")
    hub_token: str | None = option(None, "token for a private model", secret=True)

    def validate(self) -> None:
        if not self.model:
            raise UserError("--model is missing: give the --output_dir of a training run, or a Hub id.")
        for name in ("num_images", "batch_size", "num_inference_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} {value} is out of range: use 1 or more.")
        if not 0 <= self.seed <= 2**32 - 1 - self.num_images:
            raise UserError(f"--seed {self.seed} is out of range: use 0 to 2**32 - 1 - num_images.")


def read_options(argv: Sequence[str] | None = None) -> SampleConfig:
    (config,) = parse((SampleConfig,), argv, description=__doc__.partition("\n")[0])
    config.validate()
    return config


def main(argv: Sequence[str] | None = None) -> None:
    config = read_options(argv)
    assert config.model is not None
    folder = Path(config.model)
    default = folder / "images" if folder.is_dir() else Path(f"images-{folder.name}")
    output = Path(config.output_dir or default)
    old = [path for path in output.glob("*.png") if path.stem.isdigit() or path.name == "grid.png"]
    if old and not config.overwrite_output_dir:
        raise UserError(f"--output_dir {output} holds {len(old)} images: add --overwrite_output_dir or give another.")

    import torch
    from accelerate.utils import find_executable_batch_size, gather_object
    from tqdm.auto import tqdm

    from hfgen.pipelines import load_pipeline
    from hfgen.pipelines.ddpm_sampling import ClassConditionalDDPMPipeline, denoise, sampling_scheduler
    from hfgen.pipelines.gan import GANPipeline
    from hfgen.pipelines.vae import VAEPipeline
    from hfgen.training.config import TrainingConfig
    from hfgen.training.grids import chunks, make_grid, sample_in_chunks, save_png, to_pil
    from hfgen.training.launch import make_accelerator

    accelerator = make_accelerator(TrainingConfig(mixed_precision="no"))
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.mixed_precision]
    if dtype == torch.float16 and accelerator.device.type == "cpu":
        raise UserError("--mixed_precision fp16 does not exist on a CPU: use bf16 or no.")
    pipe = load_pipeline(config.model, revision=config.revision, token=config.hub_token, dtype=dtype)
    pipe.to(accelerator.device)
    gan, vae = isinstance(pipe, GANPipeline), isinstance(pipe, VAEPipeline)
    one_pass, kind = gan or vae, "GAN" if gan else "VAE" if vae else "DDPM"
    for flag in ("guidance_scale", "sampler", "num_inference_steps"):
        if one_pass and getattr(config, flag) is not None:
            raise UserError(
                f"--{flag} {getattr(config, flag)}: {config.model} is a {kind}, which has none. Leave it out."
            )
    if not vae and (config.temperature != 1 or config.prior is not None):
        raise UserError(f"--temperature and --prior are for VAEs, and {config.model} is a {kind}. Leave them out.")
    scheduler = None if one_pass else sampling_scheduler(pipe.scheduler, config.sampler or "dpmsolver++")

    labels, null_class, guidance = None, None, config.guidance_scale
    class_names = getattr(pipe, "class_names", None)
    if isinstance(pipe, ClassConditionalDDPMPipeline):
        null_class = pipe.null_class
        guidance = pipe.config.guidance_scale if guidance is None else guidance
        if guidance != 1 and null_class is None:
            raise UserError(f"--guidance_scale {guidance} needs a model trained with --label_dropout: leave it out.")
    elif guidance not in (None, 1) or (config.class_labels and not class_names):
        raise UserError(f"--class_labels and --guidance_scale: {config.model} knows no classes. Leave them out.")
    if config.truncation != 1 and not (gan and pipe.style_based):
        raise UserError(f"--truncation {config.truncation}: {config.model} has no mean latent. Leave it out.")
    if class_names and (config.class_labels or not pipe.config.get("class_shares")):
        given = config.class_labels or [str(number) for number in range(len(class_names))]
        chosen = [label if label in class_names or not label.isdigit() else int(label) for label in given]
        try:
            numbers = pipe.class_numbers(chosen, len(chosen)).tolist()
        except ValueError as error:
            raise UserError(f"--class_labels: {error}") from None
        labels = [numbers[index % len(numbers)] for index in range(config.num_images)]

    how: dict[str, Any] = {}  # these images are made, for the record, too
    if gan:
        how = {"truncation": config.truncation}
    elif vae:
        how = {"temperature": config.temperature, "prior": config.prior}
    bar = tqdm(total=config.num_images, unit="img", disable=not accelerator.is_main_process)

    def sample(indices: list[int], generators: list[torch.Generator]) -> torch.Tensor:
        count, classes = len(indices), None
        if labels is not None:
            classes = torch.tensor([labels[index] for index in indices], device=accelerator.device)
        elif class_names and not one_pass:  # these pipelines draw them themselves, after the latents
            classes = pipe.class_numbers(None, count, generators)
        if one_pass:
            images = pipe(count, class_labels=classes, generator=generators, output_type="pt", **how).images
        else:
            steps, scale = config.num_inference_steps, 1.0 if guidance is None else guidance
            images = denoise(pipe.unet, scheduler, count, generators, steps, classes, null_class, scale)
        bar.update(min(count * accelerator.num_processes, config.num_images - int(bar.n)))
        return images

    # The processes take batches in turn, the same ones whatever their number; one that does not fit is cut in halves.
    largest = config.batch_size or min(64, config.num_images)
    mine = chunks(config.num_images, largest, accelerator.process_index, accelerator.num_processes)

    @find_executable_batch_size(starting_batch_size=largest)
    def sample_all(batch_size: int) -> dict[int, Any]:
        bar.reset()
        parts = [batch[start : start + batch_size] for batch in mine for start in range(0, len(batch), batch_size)]
        return sample_in_chunks(sample, parts, config.seed)

    images = sample_all()
    bar.close()
    names = {index: f"{config.seed + index:06d}.png" for index in range(config.num_images)}
    if accelerator.is_main_process:
        for path in old:
            path.unlink()
    accelerator.wait_for_everyone()
    for index, image in images.items():
        save_png(to_pil(image), output / names[index])
    shown = dict(gather_object([(index, image) for index, image in images.items() if index < 100]))
    if accelerator.is_main_process:
        save_png(make_grid([shown[index] for index in sorted(shown)]), output / "grid.png")
        if scheduler is not None:
            how |= {"sampler": config.sampler or "dpmsolver++", "num_inference_steps": len(scheduler.timesteps)}
            how["guidance_scale"] = guidance
        record = {
            "model": config.model,
            "revision": config.revision,
            **how,
            "precision": config.mixed_precision,
            "images": [
                {
                    "file": names[index],
                    "seed": config.seed + index,
                    "class_label": labels[index] if labels is not None else None,
                }
                for index in range(config.num_images)
            ],
        }
        (output / "samples.json").write_text(json.dumps(record, indent=1) + "\n")
        tqdm.write(f"{config.num_images} images in {output}, the first {len(shown)} of them in {output / 'grid.png'}")
    accelerator.wait_for_everyone()  # a process that ends early would tear down what the others still use
    accelerator.end_training()


if __name__ == "__main__":
    with one_line_errors():
        main()
