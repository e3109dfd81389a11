"""LoRA (https://huggingface.co/papers/2106.09685) by peft: the weights of a checkpoint stay as they are, and low-rank
adapters beside some layers learn what is added to their outputs.

peft is imported when an adapter is asked for.
"""

import copy
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from hfgen.hub.push import ADAPTERS
from hfgen.runtime.errors import UserError
from hfgen.training.config import TrainingConfig
from hfgen.training.recipe import Network

METADATA = "lora_adapter_metadata"  # where diffusers has the configuration of peft, in the head of the file
ADAPTER = "default"  # peft's name of the only one


def require_peft() -> None:
    """Raises [`UserError`] if peft is not installed."""
    if not importlib.util.find_spec("peft"):
        raise UserError('`lora_rank` needs peft, which is not installed: `pip install "hfgen[lora]"`.')


def adapted_name(networks: Mapping[str, Network], family: str) -> str:
    """Returns the name of the network that a family lets LoRA adapt.

    Raises:
        UserError: If it has none.
    """
    names = [name for name, network in networks.items() if network.adaptable]
    if len(names) > 1:
        raise ValueError(
            f"{family} has several adaptable networks, {', '.join(names)}, and a checkpoint has one file."
        )
    if not names:
        raise UserError(
            f"`lora_rank`: no network of {family} can be adapted. Leave it out, and use `freeze` or `lower_rates`."
        )
    return names[0]


def adapt(module: nn.Module, config: TrainingConfig) -> None:
    """Puts adapters beside layers of a network, in place. They begin as nothing, and they alone have gradients.

    Args:
        module (`nn.Module`): The network.
        config ([`TrainingConfig`]): Rank, strength and layers.

    Raises:
        UserError: If a name is that of no layer, or no layer is left.
    """
    from peft import LoraConfig, inject_adapter_in_model

    rank, targets = config.lora_rank, config.lora_target_modules
    assert rank is not None
    # A subclass may use its weights in a way that an adapter, which is called beside the layer, does not follow.
    layers = {
        name: part
        for name, part in module.named_modules()
        if type(part) in (nn.Linear, nn.Conv2d) and getattr(part, "groups", 1) == 1
    }
    for target in targets:
        if not any(_ends(name, target) for name in layers):
            ends = ", ".join(sorted({_end(name) for name in layers}))
            raise UserError(
                f"`lora_target_modules` {target} is the name of no linear layer or convolution. Their names end in: "
                f"{ends}."
            )
    chosen = [
        name
        for name, layer in layers.items()
        if (any(_ends(name, target) for target in targets) if targets else _size(layer, rank) < layer.weight.numel())
    ]
    if not chosen:
        raise UserError(
            f"`lora_rank` {rank}: an adapter of this rank has no fewer weights than any layer. Use a lower rank."
        )
    alpha: Any = rank if config.lora_alpha is None else config.lora_alpha
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=chosen), module, ADAPTER)


def adapters(module: nn.Module) -> dict[str, Any]:
    """Returns the layers of a network that have an adapter, by name."""
    if not hasattr(module, "peft_config"):
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: part for name, part in module.named_modules() if isinstance(part, BaseTunerLayer)}


def adapter_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the weights of the adapters of a network, by the names that peft saves them under."""
    if not adapters(module):
        return {}
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(module, adapter_name=ADAPTER)


def merged(module: nn.Module) -> nn.Module:
    """Returns a copy of a network whose adapters are added to its weights: a plain network, of the same class. One
    without adapters is returned as it is."""
    if not adapters(module):
        return module
    plain = copy.deepcopy(module)
    for name, layer in adapters(plain).items():
        layer.merge()
        plain.set_submodule(name, layer.get_base_layer())
    del plain.peft_config
    return plain.requires_grad_(False)


def save_adapters(module: nn.Module, folder: Path) -> None:
    """Writes the adapters of a network, alone, into a folder, in the form of diffusers' `save_lora_adapter`, which
    `load_lora_adapter` and peft read; of one without adapters, nothing."""
    weights = adapter_weights(module)
    if weights:
        config: Any = module.peft_config[ADAPTER]  # type: ignore[index]
        values = {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": sorted(config.target_modules)}
        tensors = {name: value.detach().contiguous() for name, value in weights.items()}
        save_file(tensors, folder / ADAPTERS, {"format": "pt", METADATA: json.dumps(values)})


def _size(layer: nn.Module, rank: int) -> int:
    """Counts the weights of an adapter: from the inputs of a layer to `rank` numbers, from these to its outputs."""
    outputs, *inputs = layer.weight.shape  # type: ignore[misc]
    return rank * (int(outputs) + int(torch.Size(inputs).numel()))


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _end(name: str) -> str:
    """Returns the end of a name that says what a layer is: to_q, and to_out.0 with its number."""
    words = name.split(".")
    first = max((number for number, word in enumerate(words) if not word.isdecimal()), default=0)
    return ".".join(words[first:])
