"""The base of all networks: that of diffusers, without pickles. In a checkpoint `portable.py` takes its place."""

import os
from typing import Any

from hfgen.models import portable


class ModelMixin(portable.ModelMixin):
    """[`diffusers.ModelMixin`], with weights in safetensors alone."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """See [`diffusers.ModelMixin.from_pretrained`], which by itself falls back on pickles.

        Raises:
            ValueError: If it is asked to read them.
        """
        if kwargs.get("use_safetensors") is False:
            raise ValueError("use_safetensors is False, but weights are read from safetensors alone: leave it out.")
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs | {"use_safetensors": True})

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        save_function: Any = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """See [`diffusers.ModelMixin.save_pretrained`].

        Raises:
            ValueError: If it is asked to write pickles.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization is False, but weights are written as safetensors: leave it out.")
        # All of them by name: pipelines look at the signature to see what they may pass.
        options = {"variant": variant, "max_shard_size": max_shard_size, "push_to_hub": push_to_hub}
        super().save_pretrained(save_directory, is_main_process, save_function, **options, **kwargs)
