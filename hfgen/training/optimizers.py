"""Which parameters an optimizer has, in which groups, and its state by the names of the parameters."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from hfgen.training.recipe import AdamW, Phase


def select(candidates: Mapping[str, nn.Parameter], phase: Phase) -> dict[str, nn.Parameter]:
    """Returns the parameters that a phase updates, by name, in the order of its patterns."""
    chosen: dict[str, nn.Parameter] = {}
    for pattern in phase.updates:
        found = {name: parameter for name, parameter in candidates.items() if matches(name, (pattern,))}
        if not found:
            raise ValueError(f"the phase {phase.name!r} updates {pattern!r}, which no trained network has.")
        chosen |= found
    return chosen


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Says whether a weight has a name, or belongs to the part of a network that has it; `*` stands for any
    characters."""
    return any(name.startswith(f"{pattern}.") or fnmatchcase(name, pattern) for pattern in patterns)


def parameter_groups(
    parameters: Mapping[str, nn.Parameter], value: AdamW
) -> list[tuple[dict[str, nn.Parameter], float, float]]:
    """Returns parameters, learning rate and weight decay of each group that is not empty; first those without a
    group."""
    parts: list[dict[str, nn.Parameter]] = [{} for _ in range(len(value.groups) + 1)]
    for name, parameter in parameters.items():
        own = (i for i, g in enumerate(value.groups, 1) if any(fnmatchcase(name, pattern) for pattern in g.select))
        parts[next(own, 0)][name] = parameter
    rates = [value.learning_rate, *(g.learning_rate for g in value.groups)]
    decays = [value.weight_decay, *(g.weight_decay for g in value.groups)]
    return [
        (part, value.learning_rate if rate is None else rate, value.weight_decay if decay is None else decay)
        for part, rate, decay in zip(parts, rates, decays, strict=True)
        if part
    ]


def load_optimizer(optimizer: Any, parameters: dict[str, nn.Parameter], saved: dict[str, torch.Tensor]) -> None:
    """Gives an optimizer the state that a checkpoint has for each of its parameters by name."""
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in saved.items():
        name, _, moment = key.rpartition(".")
        moments.setdefault(name, {})[moment] = value
    names = {id(parameter): name for name, parameter in parameters.items()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    state = {number: moments[name] for number, name in enumerate(order) if name in moments}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if value.shape == parameter.shape:  # laid out in memory like the weight, as fused AdamW assumes
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
