"""Data sets of generated images: files that `datasets` and hfgen read as any other data, with a card that says what
they are."""

import io
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from huggingface_hub import DatasetCardData
from tqdm.auto import tqdm

from hfgen.hub.card import escape_markdown, public_path, render
from hfgen.runtime.distributed import batches_of_process
from hfgen.runtime.errors import UserError
from hfgen.runtime.files import write_at_once, write_json, write_text
from hfgen.runtime.png import enlarge, save_png, to_pil
from hfgen.runtime.seeds import image_seed
from hfgen.runtime.version import __version__
from hfgen.sampling.folder import AT_ONCE, RECORD
from hfgen.sampling.sampler import Sampler

KINDS = ("imagefolder", "parquet")
CARD = "README.md"
FILES = (CARD, RECORD, "train/*.png", "train/*/*.png", "data/train-*.parquet")
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def dataset_files(folder: Path) -> list[Path]:
    """Returns the files that [`write_dataset`] wrote into a folder, or would replace."""
    return [path for pattern in FILES for path in sorted(folder.glob(pattern))]


def write_dataset(
    sampler: Sampler,
    accelerator: Accelerator,
    folder: Path,
    kind: str,
    num_images: int,
    seed: int = 0,
    batch_size: int | None = None,
    origin: dict[str, Any] | None = None,
    record: dict[str, Any] | None = None,
    scale: int = 1,
) -> None:
    """Writes the images of a seeded set as a data set, in place of the one that the folder holds: a column `image`;
    the class as `label`, if the model has classes with a meaning; and `seed`, which repeats the image alone. Every
    process must call this.

    Args:
        sampler ([`Sampler`]): Makes the images.
        accelerator (`Accelerator`): The processes, which take batches in turn.
        folder (`Path`): Where to write.
        kind (`str`): `"imagefolder"`, PNG files in a folder for each class, whose seeds are in `samples.json`, or
            `"parquet"`, one file for each process.
        num_images (`int`), seed (`int`), batch_size (`int`, *optional*): As for [`~sampling.folder.write_images`].
        origin, record, scale (*optional*): As there.

    Raises:
        UserError: If the names of classes are no names of folders.
    """
    names = () if sampler.grouped else sampler.class_names
    if kind == "imagefolder" and len({name.casefold() for name in names if is_folder(name)}) < len(names):
        wrong = next((name for name in names if not is_folder(name)), "two that differ in capitals")
        raise UserError(
            f"`as_dataset` imagefolder has a folder for each class, which cannot be called {wrong!r}: use parquet."
        )
    if accelerator.is_main_process:
        for path in dataset_files(folder):
            path.unlink()
    accelerator.wait_for_everyone()
    rows = _rows(sampler, accelerator, num_images, seed, batch_size, names, origin, scale)
    write = _write_parquet if kind == "parquet" else _write_files
    table = sorted(gather_object(write(folder, rows, names, accelerator)), key=lambda line: line["file"])
    if accelerator.is_main_process:
        counts = Counter(line["class"] for line in table if line["class"] is not None)
        about = {**(record or {}), "seed": seed, **sampler.settings, "precision": sampler.precision}
        write_json(folder / RECORD, {**about, "hfgen": __version__, "images": table})
        write_text(folder / CARD, card(sampler, kind, num_images, names, counts, about))
    accelerator.wait_for_everyone()


def _rows(
    sampler: Sampler,
    accelerator: Accelerator,
    num_images: int,
    seed: int,
    batch_size: int | None,
    names: tuple[str, ...],
    origin: dict[str, Any] | None,
    scale: int,
) -> Iterator[dict[str, Any]]:
    """Makes the images of this process, as PNG files in memory."""
    size = batch_size or min(AT_ONCE, num_images)
    with tqdm(total=num_images, unit="img", disable=not accelerator.is_main_process) as bar:
        for batch in batches_of_process(num_images, size, accelerator.process_index, accelerator.num_processes):
            for index, image in zip(batch, sampler(batch, seed).permute(0, 2, 3, 1).cpu().numpy(), strict=True):
                own = {"seed": image_seed(seed, index), "class_label": sampler.class_of(index, seed)}
                yield {
                    "name": f"{index:06d}.png",
                    "label": own["class_label"] if names else None,
                    "class": names[own["class_label"]] if names and own["class_label"] is not None else None,
                    "seed": own["seed"],
                    "png": _png(image, scale, origin and origin | own),
                }
            bar.update(min(len(batch) * accelerator.num_processes, num_images - int(bar.n)))


def _png(image: np.ndarray, scale: int, origin: dict[str, Any] | None) -> bytes:
    file = io.BytesIO()
    save_png(to_pil(enlarge(image, scale)), file, origin)
    return file.getvalue()


def is_folder(name: str) -> bool:
    """Says whether the name of a class can be that of a folder, on any system and for `datasets`."""
    return (
        bool(re.fullmatch(r"[^\\/:*?\"<>|\[\]\x00-\x1f]{1,200}", name))
        and not name.startswith((".", "_"))
        and name.strip(". ") == name
    )


def _write_files(
    folder: Path, rows: Iterator[dict[str, Any]], names: tuple[str, ...], accelerator: Accelerator
) -> list[dict[str, Any]]:
    """Writes the images of this process as files; returns what `samples.json` says of them."""
    table = []
    for row in rows:
        file = "/".join(["train", *([row["class"]] if row["class"] is not None else []), row["name"]])
        with write_at_once(folder / file) as temporary:
            temporary.write_bytes(row["png"])
        table.append({"file": file, "class": row["class"], "seed": row["seed"]})
    return table


def _write_parquet(
    folder: Path, rows: Iterator[dict[str, Any]], names: tuple[str, ...], accelerator: Accelerator
) -> list[dict[str, Any]]:
    """Writes a file of this process, a block of rows at a time; returns what `samples.json` says of them."""
    from datasets import ClassLabel, Features, Image, Value
    from datasets.arrow_writer import ParquetWriter

    features: dict[str, Any] = {"image": Image()}
    features |= {"label": ClassLabel(names=list(names))} if names else {}
    features |= {"seed": Value("uint32")}
    name = f"train-{accelerator.process_index:05d}-of-{accelerator.num_processes:05d}.parquet"
    (folder / "data").mkdir(parents=True, exist_ok=True)
    table = []
    with (
        write_at_once(folder / "data" / name) as temporary,
        ParquetWriter(features=Features(features), path=str(temporary), writer_batch_size=100) as writer,
    ):
        for row in rows:
            label = {"label": row["label"]} if names else {}
            writer.write({"image": {"path": row["name"], "bytes": row["png"]}, **label, "seed": row["seed"]})
            table.append({"file": row["name"], "class": row["class"], "seed": row["seed"]})
        writer.finalize()
    return table


def card(
    sampler: Sampler,
    kind: str,
    num_images: int,
    names: tuple[str, ...],
    counts: Mapping[str, int],
    about: dict[str, Any],
) -> str:
    """Writes the card of a data set of generated images."""
    model = str(about.get("model", sampler.name))
    local = Path(model).is_dir()
    parquet = kind == "parquet"
    features: list[dict[str, Any]] = [{"name": "image", "dtype": "image"}]
    if names:
        classes = {str(number): name for number, name in enumerate(names)}
        features.append({"name": "label", "dtype": {"class_label": {"names": classes}}})
    features += [{"name": "seed", "dtype": "uint32"}] if parquet else []
    files = [{"split": "train", "path": "data/train-*" if parquet else "train/**"}]
    data = DatasetCardData(
        tags=["synthetic", "hfgen"],
        task_categories=["image-classification" if names else "unconditional-image-generation"],
        size_categories=[next((text for most, text in SIZES if num_images < most), "n>1M")],
        pretty_name=f"Images generated by {public_path(model)}",
        configs=[{"config_name": "default", "data_files": files}],
        dataset_info={"features": features},
    )
    settings = {key: value for key, value in about.items() if key not in ("model", "revision") and value is not None}
    return render(
        "dataset.md",
        card_data=data.to_yaml(),
        model=escape_markdown(public_path(model)),
        on_hub=not local,
        num_images=num_images,
        shape=sampler.image_shape,
        counts=escape_markdown(dict(counts)),
        settings=escape_markdown({key: str(value) for key, value in settings.items()}),
        memorisation=_memorisation(Path(model)) if local else None,
        seeds="the column" if parquet else "`samples.json`",
        measure=shlex.join(["hfgen", "evaluate", "--model", public_path(model), "--metrics", "memorisation"]),
        version=__version__,
    )


def _memorisation(folder: Path) -> dict[str, Any] | None:
    """Returns what the last evaluation of a model found of copies, as far as it is of the weights that there are."""
    try:
        reports = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["models"]
        report = next(report for report in reports if "near_duplicates" in report["results"])
        result = report["results"]["near_duplicates"]
        if any(
            (folder / name).stat().st_mtime > (folder / "evaluation.json").stat().st_mtime
            for name in report["model"]["weights"]
        ):
            return None
        return {
            "value": float(result["value"]),
            "real": None if result["real"] is None else float(result["real"]),
            "data": escape_markdown(report["data"]["name"]),
            "num_images": int(report["data"]["num_images"]),
            "generated": int(report["generation"]["num_images"]),
        }
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None


def dataset_contents(folder: Path) -> dict[str, bytes | Path]:
    """Returns the files of a data set that `hfgen sample` wrote, as they may be published.

    Raises:
        UserError: If the folder holds no such data set.
    """
    files = {path.relative_to(folder).as_posix(): path for path in dataset_files(folder)}
    if CARD not in files or RECORD not in files or len(files) < 3:
        raise UserError(f"{folder} holds no data set: give the folder that `hfgen sample` wrote with `as_dataset`.")
    return dict(files)
