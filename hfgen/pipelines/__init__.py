"""Inference: one self-contained file per family."""

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def load_pipeline(path: str, **kwargs: Any) -> "DiffusionPipeline":
    """Loads any checkpoint that hfgen writes, with the class that its `model_index.json` names.

    Runs no code from the checkpoint: the class is ours or one of diffusers.

    Args:
        path (`str`): Folder or Hub id.
        kwargs: Passed to `from_pretrained`: `revision`, `dtype`, `token`, ...

    Raises:
        UserError: If there is no such checkpoint or its class is none that we know.
    """
    import diffusers

    from hfgen.errors import UserError
    from hfgen.pipelines.ddpm_sampling import ClassConditionalDDPMPipeline
    from hfgen.pipelines.gan import GANPipeline
    from hfgen.pipelines.vae import VAEPipeline

    ours = {
        "ClassConditionalDDPMPipeline": ClassConditionalDDPMPipeline,
        "DDPMPipeline": diffusers.DDPMPipeline,
        "GANPipeline": GANPipeline,
        "VAEPipeline": VAEPipeline,
    }
    hub = {key: kwargs[key] for key in ("revision", "token", "cache_dir", "local_files_only") if key in kwargs}
    # diffusers passes an argument that huggingface_hub calls deprecated.
    warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")
    try:
        index = diffusers.DiffusionPipeline.load_config(path, **hub)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} holds no pipeline: {reason[:300]} Give the --output_dir of a finished run, or a Hub id."
        ) from None
    name = str(index.get("_class_name"))
    if name not in ours:
        raise UserError(
            f"{path} holds a {name}, which hfgen does not sample from. It knows: {', '.join(sorted(ours))}."
        )
    return ours[name].from_pretrained(path, **{"use_safetensors": True, **kwargs})
