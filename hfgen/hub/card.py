"""Model cards, filled from `run.json` and reports of evaluations: nothing is stated that was not recorded."""

import functools
import importlib.resources
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import build_hf_headers, get_session

import hfgen
from hfgen.data.config import CLUSTER_FEATURES
from hfgen.registry import Family, PipelineEntry, family_of, find_family, pipeline_entries
from hfgen.runtime.errors import UserError
from hfgen.runtime.files import write_text
from hfgen.runtime.png import GRID_CELL, GRID_GAP
from hfgen.sampling.capabilities import Adapter, Generates, Restores, Translates, adapter_class

RESULTS = "## Results"
AFTER_RESULTS = "## Intended use and limits"
REAL_IMAGES = ("fd", "fid", "kd", "kid", "cmmd", "precision", "recall", "density", "coverage", "ndb")  # compared with
MODES = {"L": "gray", "RGB": "colour (RGB)", "RGBA": "colour with transparency (RGBA)"}
PATIENCE = 5.0  # seconds for a page that a card can do without
NOT_YET = "Nothing was measured yet."
UNMEASURED = f"{NOT_YET} `hfgen evaluate --help` says how; with `update_card` it writes the results here."
PATH = re.compile(r"(?<![\w.~:/-])/(?:[^\s/'\"]+/)+([^\s/'\"]*)")  # an absolute one, in a text
HERE = "."  # where a card says that its model is: beside it, until it is pushed
# Options that name what a run leaves, not what it reads, or that change nothing that is trained.
NOT_READ = ("output_dir", "logging_dir", "cache_dir", "eval_extractor", "eval_extractor_weights")

# What would make Markdown of a name: tags, cells of tables, code, and links.
MARKUP = str.maketrans({"<": "&lt;", "[": "&#91;", "]": "&#93;", "|": "&#124;", "`": "'"})


def render(template: str, **values: Any) -> str:
    """Fills a template: one of ours by its name, `"short.md"`, or that of a family, `"package:file.md"`.

    Raises:
        UserError: If it is not there.
    """

    def read(name: str) -> str:
        package, _, file = name.rpartition(":")
        folder = (
            importlib.resources.files(package) if package else importlib.resources.files("hfgen.hub") / "templates"
        )
        return (folder / file).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    try:
        return environment.get_template(template).render(values)
    except (OSError, ModuleNotFoundError, jinja2.TemplateError) as error:
        raise UserError(f"the model card {template} cannot be filled: {error or type(error).__name__}.") from None


def escape_markdown(value: Any) -> Any:
    """Escapes all strings in JSON-like values, so that Markdown shows them as they are, each in one line.

    Names of classes are whatever the authors of a data set wrote: they must not run, link or look like part of a card.
    """
    if isinstance(value, dict):
        return {escape_markdown(key): escape_markdown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [escape_markdown(item) for item in value]
    if not isinstance(value, str):
        return value
    text = " ".join(value.split()).translate(MARKUP)
    return text.replace("://", "&#58;//").replace("www.", "www&#46;")


def escape_code(text: str) -> str:
    """Replaces what would end the code block or span that a text is in."""
    return " ".join(text.splitlines()).replace("`", "'")


def public_path(text: str) -> str:
    """Returns a path without the folders of this machine; other texts as they are."""
    path, here = Path(text), Path.cwd()
    if not path.is_absolute():
        return text
    return str(path.relative_to(here) if path.is_relative_to(here) else path.name)


def shown_command(text: str) -> str:
    """Returns a command without the folders of this machine, since anyone can read a card."""
    shown = []
    for argument in shlex.split(text):
        flag, equals, value = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
        shown.append(flag + equals + public_path(value))
    return escape_code(shlex.join(shown))


def public_record(record: Any) -> Any:
    """Returns the record of a run as it may be published: without the folders of this machine. It holds no token."""
    if isinstance(record, dict):
        return {key: public_record(value) for key, value in record.items()}
    if isinstance(record, list):
        return [public_record(value) for value in record]
    if not isinstance(record, str):
        return record
    # One path, or one in a longer text: a command, or a call from Python.
    return PATH.sub(r"\1", record) if " " in record or "(" in record else public_path(record)


# Commands that repeat what a card tells of, from the folder that the card lies in


def command(program: Sequence[str], options: Mapping[str, Any]) -> str:
    """Writes a command for a card: a program with its arguments, and options by name."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return escape_code(shlex.join([*program, *words]))


def repeating_commands(record: dict[str, Any], home: Path) -> list[str]:
    """Returns the commands that repeat a run by its `run.json`, which lies beside the card.

    Args:
        record (`dict`): What `run.json` holds.
        home (`Path`): The folder of the card, from which paths to data of this machine start.
    """
    config = record["config"]
    commands: list[str] = []
    program = ["hfgen", "train", record["family"]]
    processes = record["images_per_step"] // (config["train_batch_size"] * config["gradient_accumulation_steps"])
    if processes > 1:
        program = [*f"torchrun --nproc_per_node {processes} -m".split(), *program]
    options = {"config": "run.json"} | {name: path_from(home, path) for name, path in read_places(config).items()}
    if config.get("eval_every") is not None and record.get("evaluation"):  # by which this pipeline was chosen
        commands, more = extractor_options(config["eval_extractor"], "eval_extractor")
        options |= more
    elif config.get("eval_every") is not None:  # changes no weights, and may need what is not published
        options |= {name: "none" for name in ("eval_every", "metric_for_best_model") if config[name] is not None}
    return [*commands, command(program, options | {"output_dir": "again"})]


def read_places(config: dict[str, Any]) -> dict[str, Path]:
    """Returns the options of a run that name files or folders of this machine which it reads, by name."""
    return {
        name: Path(value).expanduser()
        for name, value in config.items()
        if isinstance(value, str) and name not in NOT_READ and value not in ("digits", *CLUSTER_FEATURES)
        if name.endswith(("_dir", "_path", "_from", "dataset_name", "dataset_b", "cluster_features"))
        if Path(value).expanduser().exists()
    }


def path_from(home: Path, path: Path) -> str:
    """Returns a path as it is written in the folder `home`."""
    return Path(os.path.relpath(path.resolve(), home.resolve())).as_posix()


def extractor_options(extractor: str, option: str) -> tuple[list[str], dict[str, str]]:
    """Returns the commands that make an extractor of this machine, as far as it tells, and the options that name it.

    Args:
        extractor (`str`): What was given as `option`: a name, a folder or a Hub id.
        option (`str`): `"extractor"`, or the option of a training.
    """
    if extractor.startswith("inception"):
        return [], {option: extractor, f"{option}_weights": "download"}
    folder = Path(extractor).expanduser()
    if not folder.is_dir():
        return [], {option: extractor}
    name = folder.resolve().name
    try:
        words = shlex.split(shown_command(json.loads((folder / "eval.json").read_text(encoding="utf-8"))["command"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        words = []
    if "classify" not in words:
        return [], {option: name}
    made = command(["hfgen", *words[words.index("classify") :]], {"output_dir": name})  # of two, the last one counts
    return [made], {option: name}


@functools.cache
def license_of_data(name: str, token: str | None = None) -> str | None:
    """Returns the licence that the page of a data set on the Hub names; `None` if it cannot be read at once."""
    try:
        address = huggingface_hub.hf_hub_url(name, "README.md", repo_type="dataset")
        page = get_session().get(address, headers=build_hf_headers(token=token), timeout=PATIENCE)
        page.raise_for_status()
        licence = huggingface_hub.DatasetCard(page.text).data.to_dict().get("license")
    except Exception:  # without a page, a connection or readable YAML it is not known, which is no reason to stop
        return None
    return licence if isinstance(licence, str) else None


def write_card(folder: Path, record: dict[str, Any], home: Path | None = None, token: str | None = None) -> None:
    """Writes `README.md` into a pipeline folder.

    Its snippets and commands run as they are in the folder that the card lies in. A push puts the name of the
    repository in the place of that folder: see [`with_location`].

    Args:
        folder (`Path`): The pipeline folder.
        record (`dict`): What `run.json` holds.
        home (`Path`, *optional*): The folder where the card will lie in the end, if it is another.
        token (`str`, *optional*): For the page of the data.
    """
    config, data, family = record["config"], record["data"], find_family(record["family"])
    conditional = bool(config.get("class_conditional"))
    # Records of version 0.1 have shares for groups alone, and no kind.
    groups = not conditional and data.get("class_kind", "groups") == "groups" and bool(data.get("class_shares"))
    entry = find_entry(folder, family)
    generates = can(entry, Generates)
    name = config["dataset_name"]
    on_hub = (
        bool(name) and "/" in name and not Path(name).expanduser().exists() and not name.startswith((".", "/", "~"))
    )
    base = config.get("init_from")
    named = config["hub_model_id"] if config["push_to_hub"] and config["hub_model_id"] else config["output_dir"]
    card_data = ModelCardData(
        library_name="diffusers",
        pipeline_tag=task_of(family, entry),
        license=config["hub_license"],
        tags=[
            *("hfgen", family.name),
            *["class-conditional" if conditional else "unconditional"] * generates,
            *["lora"] * ("lora" in record),
        ],
        datasets=[name] if on_hub else None,
        base_model=base if base and "/" in base and record.get("init_from") == base else None,  # an id on the Hub
    )
    shown = escape_markdown(public_record(record))
    card = render(
        family.card or "base.md",
        family=family,
        pipeline=Shown.of(entry.pipeline),
        generates=generates,
        call="class_labels=[0]" if conditional else "batch_size=4",
        image=first_image(data["resolution"], data["mode"]) if can(entry, Translates) and not generates else None,
        card_data=card_data.to_yaml(),
        title=escape_markdown(Path(named).name),
        model_id=HERE,
        base=None if base is None else base_location(base, home or folder),
        commands=repeating_commands(record, home or folder),
        private_data=sorted(read_places(config)),
        conditional=conditional,
        groups=groups,
        record=shown,
        config=shown["config"],
        data=shown["data"],
        on_hub=on_hub,
        data_license=escape_markdown(license_of_data(name, token)) if on_hub else None,
        channels=MODES[data["mode"]],
        parameters=sum(record["parameters"].values()) / 1e6,
        has_samples=(folder / "samples.png").exists(),
        # Of a pipeline that makes nothing from seeds, both show the same.
        has_reconstructions=generates and (folder / "reconstructions.png").exists(),
        unmeasured=UNMEASURED if generates or can(entry, Translates) else NOT_YET,
    )
    write_text(folder / "README.md", str(ModelCard(card)))


def base_location(base: str, home: Path) -> str:
    """Returns what a snippet in the folder `home` loads the pipeline from that a run began with."""
    folder = Path(base).expanduser()
    if not folder.is_dir():
        return base
    alone = not (folder / "model_index.json").is_file() and (folder.parent / "model_index.json").is_file()
    return path_from(home, folder.parent if alone else folder)


def can(entry: PipelineEntry | None, capability: type[Adapter]) -> bool:
    """Returns whether pipelines have a capability; those that no adapter speaks for make images from seeds."""
    if entry is None or not entry.adapter:
        return capability is Generates
    return issubclass(adapter_class(entry), capability)


def task_of(family: Family, entry: PipelineEntry | None) -> str:
    """Returns what the Hub calls what a pipeline does: what its family says, unless that is left at what only those
    do that make images from seeds."""
    takes_images = can(entry, Translates) or can(entry, Restores)
    return "image-to-image" if takes_images and not can(entry, Generates) else family.task


def first_image(resolution: int, mode: str) -> str:
    """Writes how a snippet gets an image to translate: the first training image on the card's picture, where
    [`~runtime.png.make_grid`] puts it."""
    factor = max(1, GRID_CELL // resolution)
    end = GRID_GAP + resolution * factor
    part = f"crop(({GRID_GAP}, {GRID_GAP}, {end}, {end}))"
    return f'Image.open("samples.png").{part}.reduce({factor}).convert("{mode}")'


@dataclass(frozen=True)
class Shown:
    """A pipeline class, as a card shows how to import it.

    Attributes:
        name (`str`): The class.
        module (`str`): From where users import it.
        stock (`bool`): Whether it is one of diffusers, which needs nothing of hfgen.
    """

    name: str
    module: str
    stock: bool

    @classmethod
    def of(cls, where: str) -> "Shown":
        """Describes the class at `"package.module:Class"`."""
        module, _, name = where.partition(":")
        public = module.startswith("hfgen.") and name in hfgen.__all__
        return cls(name, "hfgen" if public else module, module.partition(".")[0] == "diffusers")


def find_entry(folder: Path, family: Family) -> PipelineEntry:
    """Returns the entry of the pipeline of a folder; of one without pipeline, the first of its family."""
    try:
        name = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError):
        name = None
    name = name[-1] if isinstance(name, list) else name
    entries = {entry.class_name: entry for entry in family.pipelines}
    return entries.get(name, family.pipelines[0])


def write_classifier_card(folder: Path, name: str, report: dict[str, Any], weak: bool) -> None:
    """Writes `README.md` for a classifier of images.

    Args:
        folder (`Path`): Where to write.
        name (`str`): What the card calls it.
        report (`dict`): What `eval.json` holds; nothing else is stated.
        weak (`bool`): Whether its accuracy is too low to measure other images by.
    """
    source, test = report["config"]["dataset_name"], report["test_data"]
    on_hub = bool(source) and "/" in source and not Path(source).expanduser().exists()
    accuracy = EvalResult(
        task_type="image-classification",
        dataset_type=source if on_hub else test["name"],
        dataset_name=test["name"],
        dataset_split=test["split"],
        metric_type="accuracy",
        metric_value=report["test_accuracy"],
    )
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["hfgen"],
        datasets=[source] if on_hub else None,
        model_name=name,
        eval_results=[accuracy],
    )
    card = render(
        "classifier.md",
        card_data=data.to_yaml(),
        name=name,
        command=repeating_classifier(report["config"], folder),
        train=escape_markdown(report["train_data"]),
        test=escape_markdown(test),
        weak=weak,
        percent="{:.2%}".format,
        **{key: value for key, value in escape_markdown(report).items() if key != "command"},
    )
    write_text(folder / "README.md", str(ModelCard(card)))


def repeating_classifier(config: dict[str, Any], home: Path) -> str:
    """Returns the command that repeats the training of a classifier by its `eval.json`, which lies beside the card."""
    places = {name: path_from(home, path) for name, path in read_places(config).items()}
    return command(["hfgen", "classify"], {"config": "eval.json", **places, "output_dir": "again"})


def write_short_card(folder: Path, pipeline: Any, model_id: str) -> None:
    """Writes `README.md` for a pipeline of which only the class is known."""
    kind = type(pipeline)
    family, entry = family_of(kind.__name__), pipeline_entries().get(kind.__name__)
    task = task_of(family, entry) if family is not None else Family.task
    data = ModelCardData(library_name="diffusers", pipeline_tag=task, tags=["hfgen"])
    draws = bool(pipeline.config.get("class_shares")) or not getattr(pipeline, "class_names", [])
    shown = Shown.of(f"{kind.__module__}:{kind.__name__}")
    card = render(
        "short.md",
        card_data=data.to_yaml(),
        title=Path(model_id).name,
        model_id=model_id,
        pipeline=shown,
        generates=can(entry, Generates),
        call="batch_size=4" if draws else "class_labels=[0]",
    )
    write_text(folder / "README.md", str(ModelCard(card)))


def with_location(text: str, location: str, **options: str | None) -> str:
    """Returns a card of ours as it is in a repository: its snippets load the model from there, and its commands read
    the record of the run from there and nothing from this machine.

    Args:
        text (`str`): The card. The place that it names is what its first snippet loads.
        location (`str`): The name of the repository.
        options: `revision` and `variant`, where they are needed to load it.
    """
    load = r'(\w+Pipeline\.from_pretrained\()"([^"\n]+)"'
    first = re.search(load, text)
    if not first:
        return text
    extra = "".join(f', {name}="{value}"' for name, value in options.items() if value is not None)
    text = re.sub(load, lambda match: f'{match[1]}"{location}"{extra}' if match[2] == first[2] else match[0], text)
    text = re.sub(r'(Pipeline\.from_pretrained\(")\.\./[^"\n]*?([^"/\n]+)"', r'\1\2"', text)
    # The last one in cards of earlier versions.
    for start in ("hfgen sample --model", "hfgen evaluate --model", "scripts/sample.py --model"):
        text = text.replace(f"{start} {first[2]} ", f"{start} {location} ")
    text = re.sub(r"(?m)^Run from the folder that holds this card.*\n\n", "", text)
    where = {"revision": options["revision"]} if options.get("revision") else {}
    fetch = command(f"hf download {location} run.json --local-dir .".split(), where)
    text = re.sub(r"(?m)^.*\bhfgen train .*--config run\.json.*$", rf"{fetch}\n\g<0>", text)
    return re.sub(r"(?m)^(?:hfgen|torchrun) .*\.\./.*$", lambda line: _without_places(line[0]), text)


def _without_places(line: str) -> str:
    """Returns a command of a card with names in place of the paths to data of this machine."""
    words = []
    for word in shlex.split(line):
        flag, equals, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
        words.append(flag + equals + (Path(value).name if value.startswith("../") else value))
    return escape_code(shlex.join(words))


def add_results(folder: Path, report: dict[str, Any], extractor: dict[str, Any], section: str) -> None:
    """Writes the results of an evaluation into the card of a pipeline folder; the rest of the card stays as it is.

    They go into the `model-index` of its head, where those of the same name on the same data are replaced, and into a
    section "Results", where the part with the same heading is replaced.

    Args:
        folder (`Path`): The pipeline folder.
        report (`dict`): What `evaluate` found for this model.
        extractor (`dict`): What the extractor says of itself.
        section (`str`): The text for people. Its first line is a heading `### ...`.

    Raises:
        UserError: If there is no card, or one whose head cannot be read.
    """
    path = folder / "README.md"
    try:
        card = ModelCard.load(path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the card {path} cannot be read: {reason}. Fix it, or leave `update_card` out.") from None
    new = eval_results(report, extractor, card.data.pipeline_tag or Family.task)
    kept = [result for result in card.data.eval_results or [] if all(map(functools.partial(differ, result), new))]
    title = re.search(r"(?m)^# (.+)$", card.text)
    card.data.model_name = card.data.model_name or (title[1] if title else folder.resolve().name)
    card.data.eval_results = kept + new
    card.text = insert_section(card.text, section)
    write_text(path, str(card))


def eval_results(report: dict[str, Any], extractor: dict[str, Any], task: str = Family.task) -> list[EvalResult]:
    """Makes one entry for each number; names say whose features they are of and how many images were taken."""
    data, generation = report["data"], report["generation"]
    network = f"{extractor['id']} {extractor['fingerprint'][:8]}"
    entries = []
    for key, result in report["results"].items():
        if result["value"] is None:
            continue
        of_real = key == "bits_per_dim"  # measured on real images, without an extractor
        count = result["details"]["num_images"] if of_real else generation["num_images"]
        kind = result["details"].get("kind") if of_real else None
        about = [network] if not of_real else [kind] if kind else []
        args = {"num_images": count, "seeds": generation["seeds"]}
        if key.startswith(REAL_IMAGES):
            args["num_real_images"] = data["num_images"]
        if not of_real:
            args |= {"extractor": extractor["id"], "extractor_fingerprint": extractor["fingerprint"]}
            args |= {
                name: value for name, value in generation.items() if name not in (*args, "batch_size", "precision")
            }
            args = {name: value for name, value in args.items() if value is not None}
            args["mixed_precision"] = generation["precision"]
        entries.append(
            EvalResult(
                task_type=task,
                dataset_type=data["name"],
                dataset_name=data["name"],
                dataset_split=data["held_out"]["split"] if of_real else data["split"],
                metric_type=key,
                metric_name=f"{result['title']} ({', '.join([*about, f'{count:,} images'])})",
                metric_value=result["value"],
                metric_args=args,
            )
        )
    return entries


def differ(first: EvalResult, second: EvalResult) -> bool:
    """Returns whether two entries are about different things, whatever their values and seeds."""

    def about(result: EvalResult) -> Any:  # not by its title, which says the same in the words of a version
        args = {name: value for name, value in (result.metric_args or {}).items() if name != "seeds"}
        return result.unique_identifier, result.metric_type, args

    return about(first) != about(second)


def insert_section(text: str, section: str) -> str:
    """Puts a `### ` section into the `## Results` of a card, in place of one with the same heading; a new `## Results`
    goes before `## Intended use and limits`, or to the end."""
    parts = re.split(r"(?m)^(?=## )", text)
    starts = [part.partition("\n")[0].strip() for part in parts]
    if RESULTS not in starts:
        index = starts.index(AFTER_RESULTS) if AFTER_RESULTS in starts else len(parts)
        if index == len(parts):
            parts[-1] = parts[-1].rstrip("\n") + "\n\n"
        parts.insert(index, f"{RESULTS}\n\n")
        starts.insert(index, RESULTS)
    index = starts.index(RESULTS)
    parts[index] = re.sub(r"(?m)^Nothing was measured yet\. .*\n\n", "", parts[index])  # as any version said it
    sections = re.split(r"(?m)^(?=### )", parts[index])
    headings = [part.partition("\n")[0].strip() for part in sections]
    heading = section.partition("\n")[0].strip()
    section = section.rstrip("\n") + "\n\n"
    if heading in headings:
        sections[headings.index(heading)] = section
    else:
        sections[-1] = sections[-1].rstrip("\n") + "\n\n"
        sections.append(section)
    parts[index] = "".join(sections)
    if index == len(parts) - 1:
        parts[index] = parts[index].rstrip("\n") + "\n"
    return "".join(parts)
