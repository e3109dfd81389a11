"""What pipelines with networks of our own need beyond diffusers: to find these networks."""

import importlib
from typing import Any

from diffusers import DiffusionPipeline

# diffusers takes a component's class from a module only if that is imported already.
MODEL_MODULES = ("dcgan", "mlp_gan", "residual_gan", "stylegan2")


class Pipeline(DiffusionPipeline):
    """A pipeline whose components may be networks of hfgen. No code is run from the checkpoint."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """See [`DiffusionPipeline.from_pretrained`]."""
        for name in MODEL_MODULES:
            importlib.import_module(f"hfgen.models.{name}")
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def download(cls, pretrained_model_name: Any, **kwargs: Any) -> Any:
        """Downloads a checkpoint as it is, without its code.

        diffusers' own method would look for the code of our networks in the checkpoint, and end without it.
        """
        from huggingface_hub import snapshot_download

        known = ("cache_dir", "force_download", "local_files_only", "token", "revision")
        options = {name: kwargs[name] for name in known if name in kwargs}
        patterns = ["*.py", "*.bin", "*.pt", "*.ckpt", "*.msgpack", "*.onnx", "*.h5"]
        return snapshot_download(pretrained_model_name, ignore_patterns=patterns, **options)
