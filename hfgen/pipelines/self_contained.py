"""Loading and saving checkpoints that carry their code: diffusers runs it if it is told to, and hfgen never does.

What lies in such a folder is said in `portable.py`. Without hfgen, `DiffusionPipeline.from_pretrained(folder,
trust_remote_code=True)` runs these files, and refuses to without the flag. With hfgen, `from_pretrained` of our
pipelines takes the classes that are installed: ours, those of diffusers and transformers, and those of packages that
declare a family.
"""

import contextlib
import importlib
import importlib.util
import inspect
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin, SchedulerMixin
from safetensors import SafetensorError, safe_open
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from hfgen.pipelines import export, portable
from hfgen.registry import load
from hfgen.runtime.errors import UserError, one_line

# A component's module: as diffusers calls code of a checkpoint that it ran, or as a folder does.
CODE = re.compile(r"(?:diffusers_modules\.(?:\S+\.)?)?(?:modeling|pipeline)_([A-Za-z0-9_]+?)(?:__[0-9a-f]{12})?")

DOWNLOADED = ["*.json", "*.safetensors", "*.txt", "*.model"]  # tokenizers have the last two; no code, no pickles
# More is no checkpoint, but an attempt to fill the memory.
MOST_STEPS = 100_000  # of a scheduler, which makes tables of that length
MOST_PIXELS = 4096  # height or width; networks of convolutions alone have weights of the same size for any
MOST_LEVELS = 100  # entries of a list, one for each size of feature maps
MOST_MODULES = 20_000  # of a network, with or without weights
MOST_JSON = 10_000_000  # bytes of a file
# As diffusers calls files of weights and their indexes, with the name of a variant.
WEIGHTS = re.compile(r"diffusion_pytorch_model(?:\.((?:(?!-\d+-of-)[^.])+))?\.safetensors")
SHARDS = re.compile(r"diffusion_pytorch_model(?:\.([^.]+))?\.safetensors\.index(?:\.([^.]+))?\.json")
FLOATS = re.compile("B?F[0-9]")  # as safetensors calls the types of numbers with a point
# By which a configuration of transformers may bring code from elsewhere.
FOREIGN = ("auto_map", "attn_implementation", "_attn_implementation", "quantization_config", "custom_generate")


class SelfContained(portable.SelfContained):
    """A pipeline whose checkpoints carry their code, and that runs none of it."""

    @staticmethod
    def code_of(module: str) -> dict[str, str]:
        """See [`~export.code_of`]."""
        return export.code_of(module)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """See [`DiffusionPipeline.save_pretrained`]. Writes no pickles.

        Raises:
            UserError: If it is asked for pickles, or if the push fails.
        """
        if not safe_serialization:
            raise UserError("safe_serialization is False, but weights are written as safetensors alone: leave it out.")
        super().save_pretrained(save_directory, variant=variant, max_shard_size=max_shard_size)
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", None) or Path(save_directory).resolve().name
            self.push_to_hub(repo_id, variant=variant, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        revision: str | None = None,
    ) -> str:
        """Uploads the pipeline to the Hub, with the card of the folder that it was loaded from.

        Args:
            repo_id (`str`): `name` or `user/name`. The repository is made if need be.
            commit_message (`str`, *optional*, defaults to `"Upload <class>"`): Title of the commit.
            private (`bool`, *optional*): Whether the repository must be private.
            token (`str`, *optional*): By default what `HF_TOKEN` or `hf auth login` say.
            create_pr (`bool`, *optional*, defaults to `False`): Whether to open a pull request.
            safe_serialization (`bool`, *optional*, defaults to `True`): Nothing else is written.
            variant (`str`, *optional*): Part of the name of the weights' files.
            revision (`str`, *optional*): Branch, made if need be. By default `main`.

        Returns:
            `str`: The address.

        Raises:
            UserError: If the Hub cannot take it.
        """
        if not safe_serialization:
            raise UserError("safe_serialization is False, but weights are written as safetensors alone: leave it out.")
        title = commit_message or f"Upload {type(self).__name__}"
        push_pipeline = load("hfgen.hub.push:push_pipeline", "what pushes pipelines")
        return push_pipeline(self, repo_id, revision, create_pr, title, private=private, token=token, variant=variant)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """See [`DiffusionPipeline.from_pretrained`]. Runs no code of the checkpoint and reads no pickles.

        Raises:
            UserError: For a checkpoint with parts that we do not load, or with sizes that its weights do not fill.
        """
        if kwargs.get("use_safetensors") is False:
            raise UserError("use_safetensors is False, but weights are read from safetensors alone: leave it out.")
        kwargs |= {"use_safetensors": True, "trust_remote_code": False}
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Reads `model_index.json`, with the classes that are installed in place of those that the folder holds.

        Raises:
            UserError: For a component that is no network or scheduler, or that does not fit the files in its folder.
        """
        loaded = super().load_config(pretrained_model_name_or_path, **kwargs)
        index = loaded[0] if isinstance(loaded, tuple) else loaded
        index["_class_name"] = cls.__name__
        check_components(cls, index, Path(pretrained_model_name_or_path))
        return loaded

    @classmethod
    def download(cls, pretrained_model_name: Any, **kwargs: Any) -> Any:
        """Downloads a checkpoint without its code.

        diffusers' own method would run the code, or refuse to.
        """
        from huggingface_hub import snapshot_download

        known = ("cache_dir", "force_download", "local_files_only", "token", "revision")
        options = {name: kwargs[name] for name in known if name in kwargs}
        return snapshot_download(pretrained_model_name, allow_patterns=DOWNLOADED, **options)


# Loading


def check_components(pipeline: type, index: dict[str, Any], folder: Path) -> dict[str, type]:
    """Looks at all components that `model_index.json` names, and reads no weights; puts the modules of the classes
    that are installed into the index.

    Args:
        pipeline (`type`): The class of the pipeline.
        index (`dict`): What the file holds.
        folder (`Path`): Where it is.

    Returns:
        `dict[str, type]`: The classes of the components.

    Raises:
        UserError: For a component that the pipeline does not have, that is no network or scheduler, or that does not
            fit the files in its folder.
    """
    check_json(folder)
    parameters = inspect.signature(pipeline.__init__).parameters  # type: ignore[misc]
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    kinds = {}
    for name, value in index.items():
        if isinstance(value, list) and name != "_class_name" and value != [None, None]:
            index[name], kinds[name] = installed(name, value)
            if name not in parameters and not open_ended:
                raise UserError(
                    f"model_index.json says that there is a component {name}, which a {pipeline.__name__} does not "
                    "have: the checkpoint is broken."
                )
            check_files(kinds[name], folder / name)
    return kinds


def installed(name: str, value: list) -> tuple[list[str], type]:
    """Returns the class that an entry of `model_index.json` stands for, without running code of the checkpoint.

    Args:
        name (`str`): The component.
        value (`list`): Its entry: a module and a class.

    Returns:
        The entry with the module where that class is, and the class: a network of ours or of a package that declares a
        family, a network or scheduler of diffusers, a model, tokenizer or image processor of transformers, or one from
        a module that was imported already.

    Raises:
        UserError: If it is another class.
    """
    if not name.isidentifier() or len(value) != 2 or not all(isinstance(part, str) for part in value):
        raise UserError(f"model_index.json says that {name} is {value}, which is no module and class.")
    module, kind = value
    match = CODE.fullmatch(module)
    if match:
        module = installed_module(match[1])
        if not module:
            raise UserError(
                f"model_index.json says that {name} is a {kind} from {value[0]}.py, which is in no package that is "
                f"installed here: update hfgen, or install the package of its family."
            )
    top = module.partition(".")[0]
    if importable(module):
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(module)
    bases: tuple[type, ...] = (ModelMixin, SchedulerMixin)
    if top == "transformers":
        import transformers

        bases = (transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase)
        bases += (transformers.FeatureExtractionMixin, transformers.ImageProcessingMixin)
    installed_class = getattr(sys.modules.get(module), kind, None)
    if not (isinstance(installed_class, type) and issubclass(installed_class, bases)):
        raise UserError(
            f"model_index.json says that {name} is {kind} of {module}, which is no network or scheduler of hfgen, "
            "diffusers, a package that declares a family or a module that was imported before, and no model or "
            f"tokenizer of transformers: if it is yours, import {module} first."
        )
    return [module, kind], installed_class


def importable(module: str) -> bool:
    """Returns whether a checkpoint may name a module to be imported: one of our networks, or of a package with a
    family."""
    top = module.partition(".")[0]
    return module.startswith("hfgen.models.") if top == "hfgen" else top in export.packages()


def installed_module(name: str) -> str | None:
    """Finds the module whose name, with `_` for each dot, is part of the name of a file: `hfgen_dcgan` or
    `toy_nets_model`; those of hfgen are its networks."""
    top, _, rest = name.partition("_")
    if top == "hfgen":
        roots, last = ["hfgen.models"], [rest]
    else:
        tops = [top for top in export.packages() if name == top or name.startswith(f"{top}_")]
        if name in tops:
            return name
        roots = sorted(tops)
        last = [name.removeprefix(f"{top}_") for top in roots]
    for root, rest in zip(roots, last, strict=True):
        module = _below(root, rest)
        if module:
            return module
    return None


def _below(package: str, rest: str) -> str | None:
    """Finds the module `package.rest`, where some of the `_` in `rest` may stand for dots."""
    words = rest.split("_")
    for count in range(len(words), 0, -1):
        module = f"{package}.{'_'.join(words[:count])}"
        try:
            there = importlib.util.find_spec(module) is not None
        except (ModuleNotFoundError, ValueError):
            there = False
        if there and count == len(words):
            return module
        if there:
            inner_module = _below(module, "_".join(words[count:]))
            if inner_module:
                return inner_module
    return None


def index_folder(name: str, **options: Any) -> Path:
    """Returns the folder with the `model_index.json` of a checkpoint, a folder or on the Hub; nothing else is
    downloaded.

    Raises:
        UserError: If it is too large to be read.
    """
    from huggingface_hub import hf_hub_download

    folder = Path(name)
    if not folder.is_dir():
        folder = Path(hf_hub_download(name, SelfContained.config_name, **options)).parent
    check_json(folder)
    return folder


def check_json(folder: Path) -> None:
    """Raises [`UserError`] for JSON that would take seconds and gigabytes to read."""
    for file in folder.glob("*.json"):
        if file.stat().st_size > MOST_JSON:
            raise UserError(
                f"{file} has {file.stat().st_size} bytes, more than {MOST_JSON}: the checkpoint is broken."
            )


def check_files(kind: Any, folder: Path) -> None:
    """Looks at a component's files before anything of their size is made.

    Args:
        kind (`type`): The class of the component.
        folder (`Path`): Its folder.

    Raises:
        UserError: If a file is too large, an index names files elsewhere, a network has more numbers than its files
            have bytes, or something else of it is beyond the limits above.
    """
    check_json(folder)
    for index in folder.glob("*.index*.json"):
        for shard in set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()):
            if Path(shard).name != shard:
                raise UserError(f"{index} names {shard}, which is no file of its folder: the checkpoint is broken.")
    if kind.__module__.startswith("transformers."):
        check_foreign(kind, folder)
        return
    file = folder / kind.config_name
    if not file.exists():
        return  # diffusers says so
    config = kind.load_config(folder)
    levels = max((len(value) for value in config.values() if isinstance(value, list)), default=0)
    scheduler = issubclass(kind, SchedulerMixin)
    if levels > MOST_LEVELS and not scheduler:
        raise UserError(f"{file} has a list of {levels} entries, more than {MOST_LEVELS}: the checkpoint is broken.")
    most = MOST_STEPS if scheduler else MOST_PIXELS
    for name in config if scheduler else ["sample_size"]:  # schedulers make tables of various lengths
        values = config.get(name)
        for value in values if isinstance(values, list) else [values]:
            no_number = value is not None and name in ("num_train_timesteps", "sample_size")
            if value > most if isinstance(value, int) else no_number:
                raise UserError(
                    f"{file} has {name} {value!r}, but at most {most} is possible: the checkpoint is broken."
                )
    ours = kind.__module__.partition(".")[0] in {"diffusers", *export.packages()}
    if not scheduler and ours:  # others may make networks that cannot be tried like this
        network = check_size(file, lambda: kind.from_config(config))
        for files in weight_files(folder) if network is not None else ():
            check_weights(network, files)


def weight_files(folder: Path) -> list[list[Path]]:
    """Finds the weights of a component: the files of each variant, of which diffusers loads one."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        if match := WEIGHTS.fullmatch(file.name):
            found[match[1] or ""] = [file]
    for index in sorted(folder.glob("*.json")):  # which diffusers prefers
        if match := SHARDS.fullmatch(index.name):
            shards = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()
            found[match[1] or match[2] or ""] = [folder / shard for shard in sorted(set(shards))]
    return list(found.values())


def check_weights(network: Any, files: list[Path]) -> None:
    """Compares names, shapes and types of weights with what a network needs. Of the files, only the heads are read.

    Types of numbers may have any width, as half of one is as good.

    Raises:
        UserError: If they differ.
    """
    found: dict[str, tuple[str, list[int]]] = {}
    try:
        for file in files:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                    part = opened.get_slice(name)
                    found[name] = str(part.get_dtype()), list(part.get_shape())
    except (OSError, SafetensorError):
        return  # diffusers says so
    network._fix_state_dict_keys_on_load(found)  # early checkpoints of diffusers have other names
    needed = network.state_dict()
    ignored = type(network)._keys_to_ignore_on_load_unexpected or ()
    more = [name for name in found.keys() - needed.keys() if not any(re.search(one, name) for one in ignored)]
    wrong = {"lacks": needed.keys() - found.keys(), "has, beside it,": more}
    fault = next((f"{how} {len(names)}, such as {min(names)}" for how, names in wrong.items() if names), None)
    for name, tensor in needed.items() if fault is None else ():
        kind, shape = found[name]
        if shape != list(tensor.shape):
            fault = f"has {name} of shape {tuple(shape)} in place of {tuple(tensor.shape)}"
        elif FLOATS.match(kind) is None if tensor.is_floating_point() else FLOATS.match(kind) is not None:
            fault = f"has {name} of type {kind} in place of {str(tensor.dtype).removeprefix('torch.')}"
    if fault is not None:
        raise UserError(
            f"{files[0]} does not hold the weights of the {type(network).__name__} in config.json: of the tensors it "
            f"{fault}. The checkpoint is broken."
        )


def check_foreign(kind: Any, folder: Path) -> None:
    """Looks at the files of a component of transformers as [`check_files`] does, and for what would run other code.

    Raises:
        UserError: See [`check_files`]; and for a configuration that names code, kernels, quantisation or adapters.
    """
    import transformers

    for file in (folder / "adapter_config.json", folder / "custom_generate"):
        if file.exists():
            raise UserError(f"{file} may bring code with it: components are loaded without.")
    for file in folder.glob("*config*.json"):
        key = foreign_key(json.loads(file.read_text(encoding="utf-8")))
        if key:
            raise UserError(
                f"{file} has {key}, which may run code that is not installed: components are loaded without."
            )
    if issubclass(kind, transformers.PreTrainedModel):
        check_size(folder / "config.json", lambda: kind(kind.config_class.from_pretrained(folder)))


def foreign_key(value: Any) -> str | None:
    """Returns the first key of a configuration of transformers by which code from elsewhere may come in."""
    for key, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        if key in FOREIGN and inner not in (None, False):
            return str(key)
        inner_key = foreign_key(inner)
        if inner_key:
            return inner_key
    return None


def check_size(file: Path, make: Callable[[], Any]) -> Any:
    """Makes a network without its weights, to see whether its configuration asks for more than its files hold.

    Returns:
        The network, on the device `meta`; `None` if there are no files.

    Raises:
        UserError: If it does, or if it describes no network.
    """
    size = sum(file.stat().st_size for file in file.parent.glob("*.safetensors"))
    if not size:
        return None  # diffusers says that there are no weights
    try:
        with limited(str(file), size), torch.device("meta"):  # no memory is touched
            return make()
    except UserError:
        raise
    except Exception as error:  # of many kinds, as the values may be anything
        raise UserError(f"{file} describes no network: {one_line(error)}.") from None


@contextlib.contextmanager
def limited(source: str, size: int) -> Iterator[None]:
    """Stops networks from being made that are larger than the files that are to fill them.

    Args:
        source (`str`): What describes them, for the message.
        size (`int`): Bytes of the files: the most numbers that may be made. There may be `MOST_MODULES` layers.

    Raises:
        UserError: If there are more.
    """
    numbers, modules, thread = 0, 0, threading.get_ident()

    def count(module: torch.nn.Module, name: str, part: torch.Tensor | torch.nn.Module | None) -> None:
        nonlocal numbers, modules
        if part is None or threading.get_ident() != thread:
            return
        if isinstance(part, torch.Tensor):
            numbers += part.numel()
        else:
            modules += 1
        if numbers > size:
            raise UserError(f"{source} describes a network larger than its weights: the checkpoint is broken.")
        if modules > MOST_MODULES:
            raise UserError(
                f"{source} describes a network of more than {MOST_MODULES} layers: the checkpoint is broken."
            )

    hooks = (
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
        register_module_module_registration_hook(count),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
