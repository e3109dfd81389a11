"""The options of sampling; no torch here, so that `--help` answers at once."""

from dataclasses import dataclass

from hfgen.runtime.errors import UserError
from hfgen.runtime.options import Options, option


@dataclass(frozen=True)
class SamplingConfig(Options):
    """Sampling: how a checkpoint makes its images."""

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
        None,
        "how to sample a DDPM (default: sde-dpmsolver++)",
        choices=("sde-dpmsolver++", "dpmsolver++", "ddim", "ddpm"),
    )
    num_inference_steps: int | None = option(None, "sampling steps (default: 20, with `sampler` ddpm all)")
    mixed_precision: str = option("no", "no, or bf16 or fp16 weights", choices=("no", "bf16", "fp16"))
    provenance: bool = option(True, "write into PNG files which model made them, and how")

    def validate(self) -> None:
        """Checks what can be checked without the checkpoint.

        Raises:
            UserError: For values that are out of range.
        """
        if self.num_inference_steps is not None and self.num_inference_steps < 1:
            raise UserError(f"`num_inference_steps` {self.num_inference_steps} is out of range: use 1 or more.")
