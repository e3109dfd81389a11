"""Where a run begins: at the weights of a checkpoint, of a folder or the Hub, in place of random ones."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hfgen.data.config import IMAGE_MODES
from hfgen.pipelines.self_contained import SelfContained, check_json, index_folder
from hfgen.registry import Family, families
from hfgen.runtime.errors import UserError, one_line
from hfgen.runtime.options import as_text
from hfgen.sampling.loading import load_pipeline
from hfgen.training.checkpoint import latest_tensors
from hfgen.training.options import RunOptions
from hfgen.training.recipe import TRAINED, Recipe

INDEX = "model_index.json"
Weights = Mapping[str, torch.Tensor]


class Start:
    """The checkpoint that a run begins from: the folder of a pipeline, or of one network in it. Of the folder, no code
    is run.

    Args:
        name (`str`): A folder, or an id on the Hub.
        token (`str`, *optional*): For the Hub.

    Attributes:
        configs (`dict[str, tuple[dict, Path]]`): The configuration of each network and scheduler by the name of its
            class, and the folder where it is.

    Raises:
        UserError: If there is no checkpoint.
    """

    def __init__(self, name: str, token: str | None = None):
        self.name = name
        folder = Path(name)
        if not folder.is_dir():
            try:
                index_folder(name, token=token)  # a file of text tells sooner than all weights that there is none
                folder = Path(SelfContained.download(name, token=token))
            except Exception as error:  # of many kinds, as the network may fail in many ways
                raise UserError(
                    f"`init_from` {name} cannot be loaded: {one_line(error)}. Give a folder, or a Hub id."
                ) from None
        self.folder = folder
        self.alone = not (folder / INDEX).is_file()  # one network, as in the folder `unet` of a pipeline
        within = [] if self.alone else sorted(path for path in folder.iterdir() if path.is_dir())
        parts = [folder, *within]  # pipelines of one network, as google/ddpm-cifar10-32, may have no folders
        beside = [folder.parent / "scheduler"] if self.alone else []
        files = [file for part in (*parts, *beside) for file in (part / "config.json", part / "scheduler_config.json")]
        self.configs: dict[str, tuple[dict[str, Any], Path]] = {}
        for file in files:
            if file.is_file():
                check_json(file.parent)
                config = _read(file)
                self.configs[str(config.get("_class_name"))] = config, file.parent
        if not self.configs or (self.alone and not (folder / "config.json").is_file()):
            raise UserError(
                f"`init_from` {name} holds no checkpoint: give the `output_dir` of a finished run, any other folder "
                "of a pipeline of diffusers, the folder of one network in it, or a Hub id."
            )

    def options(self, family: Family) -> dict[str, Any]:
        """Returns the options of a family with which it makes these networks, as far as they say so."""
        known = family.load("adopt") or {}
        values: dict[str, Any] = {}
        for name, (config, folder) in self.configs.items():
            if name in known:
                values |= _shape(config)
                try:
                    values |= known[name](config, str(folder))
                except (KeyError, TypeError, IndexError, ValueError) as error:
                    raise UserError(
                        f"`init_from` {self.name}: the configuration of its {name} is broken: {one_line(error)}."
                    ) from None
        return values

    def load(self, recipe: Recipe, options: RunOptions) -> list[str]:
        """Gives the networks of a recipe the checkpoint's weights, as far as both have them.

        Rows of classes go by the names of the classes; a class that the checkpoint does not know begins as the mean of
        those that it knows.

        Returns:
            What to tell a person: which networks begin anew.

        Raises:
            UserError: If the networks differ; says in what, and which options would fit.
        """
        modules = {name: network.module for name, network in recipe.networks.items()}
        pipeline = recipe.pipeline(modules)
        trained = {name for name, network in recipe.networks.items() if network.role == TRAINED}
        parts = {
            part: name for name in trained for part, value in pipeline.components.items() if value is modules[name]
        }
        if not parts:
            raise UserError(f"`init_from`: {options.family.name} publishes none of the networks that it trains.")
        components, names = self._components({part: modules[name] for part, name in parts.items()})
        ours = _class_names(pipeline)
        training = latest_tensors(self.folder)  # of a run's folder, which also has what is not published
        for part, name in parts.items():
            module, source = modules[name], components[part]
            self._check(module, source, options)
            _copy(module, source.state_dict(), ours, names)
            if options.training.lora_rank is not None and recipe.networks[name].adaptable:
                self._require_same(module, source)
        anew = []
        for name in sorted(trained - set(parts.values())):
            if _fits(modules[name], training.get(name, {})):
                _copy(modules[name], training[name], ours, names)
            else:
                anew.append(name)
        return [f"`init_from`: {', '.join(anew)} begins anew, as the checkpoint has none that fits."] if anew else []

    def _components(self, modules: Mapping[str, nn.Module]) -> tuple[dict[str, Any], tuple[str, ...] | None]:
        """Loads the counterpart of each network, and the names of the checkpoint's classes."""
        if self.alone:
            kind: Any = type(next(iter(modules.values())))
            held = next(iter(self.configs))
            if held != kind.__name__:
                raise self._other(held, kind)
            try:
                network = kind.from_pretrained(self.folder, use_safetensors=True, low_cpu_mem_usage=False)
            except Exception as error:
                raise UserError(f"`init_from` {self.name} cannot be loaded: {one_line(error)}.") from None
            return dict.fromkeys(modules, network), None
        pipeline = load_pipeline(str(self.folder))
        found = {}
        for part, module in modules.items():
            alike = [value for value in pipeline.components.values() if type(value) is type(module)]
            if not alike:
                networks = (value for value in pipeline.components.values() if isinstance(value, nn.Module))
                raise self._other(next((type(value).__name__ for value in networks), "network"), type(module))
            same = pipeline.components.get(part)
            found[part] = same if type(same) is type(module) else alike[0]
        return found, _class_names(pipeline)

    def _other(self, held: str, kind: type) -> UserError:
        owners = [family.name for family in families().values() if held in (family.load("adopt") or {})]
        remedy = f"train {owners[0]}" if owners else "give another checkpoint"
        return UserError(
            f"`init_from` {self.name} holds a {held}, and this run trains a {kind.__name__}: {remedy}, or leave out "
            "the options that choose another architecture."
        )

    def _check(self, module: Any, source: Any, options: RunOptions) -> None:
        """Raises [`UserError`] if the networks differ in more than their classes."""
        here, there = dict(module.config), dict(source.config)
        free = {"num_class_embeds", "dropout"} | {key for key in here.keys() | there.keys() if key.startswith("_")}
        if all(a.shape == b.shape for a, b in zip(_shared(module, source), _shared(source, module), strict=True)):
            free.add("sample_size")  # the weights are those of any size
        differing = [
            key for key in here if key in there and key not in free and _plain(here[key]) != _plain(there[key])
        ]
        if not differing:
            return
        fitting = [f"`{name}` {as_text(value)}" for name, value in self._fitting(there, options).items()]
        parts = ", ".join(f"{key} {as_text(there[key])} there and {as_text(here[key])} here" for key in differing)
        remedy = f" Use {', '.join(fitting)}." if fitting else " Use another checkpoint."
        raise UserError(
            f"`init_from` {self.name} does not fit this run: its {type(module).__name__} has {parts}.{remedy}"
        )

    def _require_same(self, module: nn.Module, source: nn.Module) -> None:
        """Raises [`UserError`] if a network is not that of the checkpoint, which adapters are learnt for."""
        here, there = module.state_dict(), source.state_dict()
        if here.keys() != there.keys() or not all(
            torch.equal(value, there[name].to(value)) for name, value in here.items()
        ):
            raise UserError(
                f"`lora_rank` keeps the network of `init_from` {self.name} as it is, and this run needs other inputs "
                "for classes: train on the classes that it knows (`class_conditional`, `num_clusters`), on none if it "
                "knows none, or leave `lora_rank` out."
            )

    def _fitting(self, there: dict[str, Any], options: RunOptions) -> dict[str, Any]:
        """Returns the options that would make the checkpoint's network, where they are others than now."""
        now = options.values
        adopted = {name: _plain(value) for name, value in (_shape(there) | self.options(options.family)).items()}
        return {name: value for name, value in adopted.items() if _plain(now.get(name)) != value}


def public_name(name: str) -> str:
    """Returns what a card calls a checkpoint: its id on the Hub, or the name of its folder without the path."""
    path = Path(name)
    return path.resolve().name if path.exists() or path.is_absolute() else name


def _shape(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the options for images as a network makes them, as far as its configuration says so."""
    size, channels = config.get("sample_size"), config.get("out_channels", config.get("in_channels"))
    modes: dict[Any, str] = {count: mode for mode, count in IMAGE_MODES.items()}
    values = {"resolution": size if isinstance(size, int) else None, "image_mode": modes.get(channels)}
    return {name: value for name, value in values.items() if value is not None}


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"`init_from`: {file} cannot be read: {one_line(error)}.") from None
    return content if isinstance(content, dict) else {}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shared(module: nn.Module, other: nn.Module) -> list[torch.Tensor]:
    """Returns the weights of a network that another has by the same name, but for what belongs to classes."""
    names = other.state_dict().keys()
    tables = {f"{name}.weight" for name in class_tables(module)}
    return [value for name, value in module.state_dict().items() if name in names and name not in tables]


def _fits(module: nn.Module, saved: Weights) -> bool:
    """Says whether tensors are those of a network, but for the number of its classes."""
    tables = {f"{name}.weight" for name in class_tables(module)}
    own = {name: value for name, value in module.state_dict().items() if name not in tables}
    return bool(saved) and all(name in saved and saved[name].shape == value.shape for name, value in own.items())


def _class_names(pipeline: Any) -> tuple[str, ...] | None:
    """Returns the names of the classes of a pipeline, by number; `None` if it has none, or if they are groups of
    similar images, whose names mean nothing."""
    config = dict(pipeline.config)
    names = {} if config.get("class_kind") == "groups" else config.get("id2label") or {}
    return tuple(str(name) for _, name in sorted(names.items(), key=lambda item: int(item[0]))) or None


def class_tables(module: nn.Module) -> dict[str, nn.Embedding]:
    """Returns the tables of a network that have a row for each class, by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, nn.Embedding) and "class" in name}


def _copy(module: nn.Module, weights: Weights, ours: tuple[str, ...] | None, theirs: tuple[str, ...] | None) -> None:
    """Copies weights into a network, each class to the class of its name. Where a network has inputs for classes and
    the other has none, what both have is copied."""
    tables = {f"{name}.weight" for name in class_tables(module)}
    with torch.no_grad():
        for name, own in module.state_dict().items():
            if name not in weights:  # of classes, which the checkpoint does not have
                continue
            saved = weights[name].to(own)
            if name in tables:
                own.copy_(class_rows(saved, len(own), ours, theirs))
            elif own.shape == saved.shape:
                own.copy_(saved)
            else:
                overlap = tuple(slice(min(sizes)) for sizes in zip(own.shape, saved.shape, strict=True))
                own[overlap] = saved[overlap]


def class_rows(
    saved: torch.Tensor, count: int, ours: tuple[str, ...] | None, theirs: tuple[str, ...] | None
) -> torch.Tensor:
    """Returns the rows of a table of classes for others: by their names, and by their numbers where names are missing;
    the mean of all for a class that is new. A row beyond those of the classes, that for "no class", stays the last.

    Args:
        saved (`torch.Tensor` of shape `(N, D)`): The table.
        count (`int`): Rows that are needed.
        ours, theirs (`tuple[str, ...]`, *optional*): The names of the classes that are needed, and of the table's.
    """
    rows = saved.mean(0, keepdim=True).repeat(count, 1)
    if ours is None or theirs is None:
        both = min(count, len(saved))
        rows[:both] = saved[:both]
        return rows
    for row, name in enumerate(ours):
        if name in theirs:
            rows[row] = saved[theirs.index(name)]
    if count > len(ours) and len(saved) > len(theirs):  # no class
        rows[len(ours) :] = saved[len(theirs) :]
    return rows
