"""The base of networks without hfgen: it travels with a checkpoint, in place of `hfgen/models/base.py`."""

from typing import Any

import diffusers


class ModelMixin(diffusers.ModelMixin):
    """[`diffusers.ModelMixin`] of networks whose code lies beside their weights."""

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Sorts what a configuration holds, without `auto_map`, which tells [`diffusers.AutoModel`] where the code is:
        it belongs to the folder, not to the network."""
        config_dict = {name: value for name, value in config_dict.items() if name != "auto_map"}
        return super().extract_init_dict(config_dict, **kwargs)
