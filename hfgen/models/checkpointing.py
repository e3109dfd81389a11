"""Gradient checkpointing (https://huggingface.co/papers/1604.06174): what a block needs for its backward pass is
computed again there, instead of being kept.

Networks, and modules within them, derive from [`Checkpointing`] and compute their blocks by its methods. diffusers'
`enable_gradient_checkpointing` turns it on in all of them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Checkpointing:
    """The base of modules that can compute their blocks again in the backward pass.

    Attributes:
        gradient_checkpointing (`bool`): Whether they do; set by `enable_gradient_checkpointing` of the network.
    """

    gradient_checkpointing = False
    _gradient_checkpointing_func: Any

    @property
    def _checkpoints(self) -> bool:
        return self.gradient_checkpointing and torch.is_grad_enabled()

    def checkpointed(self, block: Callable[..., Any], *args: Any) -> Any:
        """Computes a block.

        Args:
            block (`Callable`): A module. A function, too, if it changes nothing but what it returns.
            args: What it is given.
        """
        if not self._checkpoints:
            return block(*args)
        if isinstance(block, nn.Module) and next(block.buffers(), None) is not None:
            block = Repeatable(block)
        return self._gradient_checkpointing_func(block, *args)

    def in_blocks(
        self, layers: Any, starts: type[nn.Module] | tuple[type[nn.Module], ...], hidden: torch.Tensor
    ) -> torch.Tensor:
        """Computes layers one after another.

        Args:
            layers (`Iterable[nn.Module]`): The layers.
            starts (`type` or `tuple`): The kinds of layers at which a block begins.
            hidden (`torch.Tensor`): What the first one is given.
        """
        blocks: list[list[nn.Module]] = []
        for layer in layers:
            if not self._checkpoints:
                hidden = layer(hidden)
            elif blocks and not isinstance(layer, starts):
                blocks[-1].append(layer)
            else:
                blocks.append([layer])
        for block in blocks:
            hidden = self.checkpointed(nn.Sequential(*block), hidden)
        return hidden


class Repeatable:
    """A module that gives the same result when it is called again: by the buffers that it had the first time, and
    without changing them a second time. So batch normalisation counts each batch once, and spectral normalisation
    divides by the same number.

    Args:
        module (`nn.Module`): The module.
    """

    def __init__(self, module: nn.Module):
        self.module, self.called = module, False
        self.before = [
            (owner._buffers, name, buffer.detach().clone())
            for owner in module.modules()
            for name, buffer in owner._buffers.items()
            if buffer is not None
        ]

    def __call__(self, *args: Any) -> Any:
        if not self.called:
            self.called = True
            return self.module(*args)
        now = [(buffers, name, buffers[name]) for buffers, name, _ in self.before]
        try:
            for buffers, name, value in self.before:
                buffers[name] = value.clone()
            return self.module(*args)
        finally:  # also when torch ends it early, as nothing more is needed
            for buffers, name, current in now:
                buffers[name] = current
