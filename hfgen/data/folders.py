"""From a folder of images to a data set: what a person sees in it is what is loaded, or a line says what is not.

The files are listed here and handed to `datasets` one by one. Left to itself, it reads a folder by patterns, in which
brackets in a path lead to other folders, and takes every word such as "test" in a name for a split.
"""

import hashlib
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfgen.data.config import DataConfig
from hfgen.data.decode import readable_suffixes
from hfgen.runtime.notes import listed, note

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
CONTAINERS = (".parquet", ".arrow", ".tar")  # files that hold many images
TEXTS = tuple(".txt .md .json .jsonl .csv .tsv .xml .yaml .yml .html .ini .db .log .py".split())
HEIF = (".heic", ".heics", ".heif", ".heifs", ".hif")
LABELS = ("label", "labels", "class", "category", "fine_label")  # what columns of classes are usually called
SPLITS = {
    word: split
    for split, words in {
        "train": ("train", "training"),
        "validation": ("validation", "valid", "dev", "val"),
        "test": ("test", "testing", "eval", "evaluation"),
    }.items()
    for word in words
}  # as `datasets` spells them
KINDS: tuple[tuple[str, Callable[[str], Any]], ...] = (  # of values in a table of texts
    (r"0|-?[1-9]\d{0,17}", int),
    (r"-?(0|[1-9]\d{0,17})(\.\d+)?([eE][-+]?\d+)?", float),
    ("True|TRUE|true|False|FALSE|false", lambda value: value.strip().lower() == "true"),
)


@dataclass(frozen=True)
class Files:
    """The files in a folder, as paths relative to it, with `/`.

    Attributes:
        images (`list[str]`): Those that can be read, sorted.
        metadata (`list[str]`): Tables that describe images beside them.
        containers (`int`): Number of files that hold many images.
        left_out (`Counter[str]`): Number of other files by suffix, but for texts.
        empty (`list[str]`): Folders without an image in or below them, with `/` at the end, but for those within
            others.
    """

    images: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    containers: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    empty: list[str] = field(default_factory=list)

    @property
    def leftovers(self) -> str:
        """Says what is left out; empty for nothing."""
        heif = " (which needs `pip install pillow-heif`)"
        kinds = [
            f"{count} {suffix or 'without a suffix'}{heif * (suffix in HEIF)}"
            for suffix, count in self.left_out.most_common()
        ]
        return listed(kinds)


def list_files(folder: Path) -> Files:
    """Lists the files in a folder and below: links are followed, hidden names left out."""
    images, metadata, containers, left_out = [], [], 0, Counter[str]()
    folders: set[str] = set()
    for path in _walk(str(folder), "", frozenset()):
        if path.endswith("/"):
            folders.add(path)
            continue
        suffix = posixpath.splitext(path)[1].lower()
        if suffix in readable_suffixes():
            images.append(path)
        elif posixpath.basename(path) in METADATA:
            metadata.append(path)
        elif suffix not in TEXTS:
            left_out[suffix] += 1
            containers += suffix in CONTAINERS
    full = {"", *(path[: at + 1] for path in images for at, letter in enumerate(path) if letter == "/")}
    empty = sorted(path for path in folders - full if posixpath.dirname(path[:-1]) + "/" in {*full, "/"})
    return Files(sorted(images), sorted(metadata), containers, left_out, empty)


def list_paths(folder: Path) -> Iterator[str]:
    """Yields the files in a folder and below, relative to it: links are followed, hidden names left out."""
    return (path for path in _walk(str(folder), "", frozenset()) if not path.endswith("/"))


def _walk(folder: str, prefix: str, above: frozenset[str]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in above:  # a link back
        return
    if prefix:
        yield prefix
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/", above | {real})
            else:  # a broken link, too: it is told when it is read
                yield prefix + entry.name


def is_image_folder(folder: Path, files: Files) -> bool:
    """Says whether a folder that is called a data set holds image files, and its README does not say how to read
    them."""
    return len(files.images) > files.containers and not is_declared(folder)


def is_declared(folder: Path) -> bool:
    """Says whether the README of a folder says how to read it."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    return front is not None and re.search(r"^(configs|dataset_info):", front[1], re.MULTILINE) is not None


@dataclass(frozen=True)
class Layout:
    """How a folder is divided.

    Attributes:
        root (`str`): The folder within it that holds all images, with `/` at its end; empty for itself.
        splits (`dict[str, str]`): The split of each folder at the root; empty if these are no splits.
        classes (`list[str]`): Names of the classes, sorted; empty for none.
        innermost (`bool`): Whether the class is the folder that an image lies in, not the one at the root.
    """

    root: str = ""
    splits: dict[str, str] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    innermost: bool = True

    def split(self, path: str | None) -> str | None:
        """Returns the split that an image belongs to; `None` if it lies beside the folders of splits."""
        top, slash, _ = (path or "")[len(self.root) :].partition("/")
        return (self.splits.get(top) if slash else None) if self.splits else "train"

    def inner(self, path: str) -> str:
        """Returns a path within the root, or within the folder of its split."""
        path = path[len(self.root) :]
        return path.partition("/")[2] if self.splits and self.split(self.root + path) else path

    def class_name(self, path: str | None) -> str | None:
        """Returns the class of an image; `None` if it lies beside the folders of classes."""
        *folders, _ = self.inner(path or "").split("/")
        return folders[-1 if self.innermost else 0] if folders else None


def split_of(name: str) -> str | None:
    """Returns the split that a name speaks of: `train`, `train2017`, `my-test`."""
    found = {SPLITS[word] for word in re.split(r"[-._ 0-9]+", name.lower()) if word in SPLITS}
    return found.pop() if len(found) == 1 else None


def names_split(path: str) -> bool:
    """Says whether a path leaves no doubt of its split: a folder, or the file, is called as one but for a number, as
    in `train-00000-of-00001.parquet` and `data/test/1.parquet`."""
    names = re.sub(r"\.[a-z.]*$", "", path.lower()).split("/")
    return any(re.sub(r"-\d{5}-of-\d{5}.*|[-._ 0-9]*$", "", name) in SPLITS for name in names)


def find_layout(paths: Sequence[str]) -> Layout:
    """Finds out how images are divided into splits and classes.

    Folders are splits only if all folders of a level are, each another one: in "bus, car, train" and in "control,
    test, val" they are classes. Classes are the folders that images lie in if these are all at one level, else the
    folders at the top; images beside them have none.
    """
    root = ""
    while True:
        inner = [path[len(root) :] for path in paths]
        tops = {path.partition("/")[0] for path in inner if "/" in path}
        splits = {top: split_of(top) for top in sorted(tops)}
        kinds = set(splits.values())
        plain = all(top.lower() in SPLITS for top in tops)
        if tops and None not in kinds and len(kinds) == len(tops) and (plain or "train" in kinds):
            layout = Layout(root, {top: split for top, split in splits.items() if split})
            break
        layout = Layout(root)
        if len(tops) != 1 or not all("/" in path for path in inner):
            break
        root += f"{tops.pop()}/"
    divided = [path for path in map(layout.inner, paths) if "/" in path]
    innermost = len({path.count("/") for path in divided}) == 1
    names = {path.split("/")[-2 if innermost else 0] for path in divided}
    return Layout(layout.root, layout.splits, sorted(names) if len(names) > 1 else [], innermost)


def open_folder(folder: Path, files: Files, config: DataConfig) -> Any:
    """Makes a `datasets.Dataset` of a folder's images: column `image`, with classes `label`, and with what the tables
    beside the images say of them.

    Raises:
        ValueError: If a table beside the images does not name them, and for a split that there is not.
    """
    import pyarrow as pa
    from datasets import ClassLabel, Dataset, Features, ReadInstruction
    from datasets import Image as ImageFeature
    from datasets.table import cast_table_to_features

    folder = folder.resolve()
    layout = find_layout(files.images)
    table, columns = _read_rows(folder, files)
    first = table[columns[0]].to_pylist()
    features = Features.from_arrow_schema(table.schema)
    own = [name for name in table.column_names if name in (*LABELS, config.label_column)]
    own += [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    named = {path for column in columns for path in table[column].to_pylist()}
    _tell(folder.name, files, layout, named, own[0] if own and config.label_column is None else None)
    if layout.classes and not own:
        numbers = {name: number for number, name in enumerate(layout.classes)}
        labels = [numbers.get(layout.class_name(path) or "") for path in first]
        table = table.append_column("label", pa.array(labels, pa.int64()))
        features["label"] = ClassLabel(names=layout.classes)

    rows: dict[str, list[int]] = {split: [] for split in (*layout.splits.values(), *["train"] * (not layout.splits))}
    for row, path in enumerate(first):
        rows.get(layout.split(path) or "", []).append(row)
    parts = ReadInstruction.from_spec(config.dataset_split).to_absolute({name: len(own) for name, own in rows.items()})
    table = table.take([row for part in parts for row in rows[part.splitname][part.from_ : part.to]])
    if not len(table):
        raise ValueError(f"the split {config.dataset_split!r} has no images")
    digest = hashlib.sha256(repr((str(folder), features, table.to_pydict())).encode())
    for column in columns:
        paths = [None if path is None else f"{folder.as_posix()}/{path}" for path in table[column].to_pylist()]
        digest.update(repr([_state(path) for path in paths]).encode())
        table = table.set_column(table.column_names.index(column), column, pa.array(paths, pa.string()))
        features[column] = ImageFeature()
    return Dataset(cast_table_to_features(table, features), fingerprint=digest.hexdigest()[:32])


def _state(path: str | None) -> tuple[int, int] | None:
    """Returns what changes when a file does: its size and the time of its last change."""
    try:
        state = os.stat(path or "")
        return state.st_size, state.st_mtime_ns
    except OSError:
        return None


def _read_rows(folder: Path, files: Files) -> tuple[Any, list[str]]:
    """Reads the tables beside the images, or makes one, with paths relative to the folder; also returns which columns
    these are."""
    import pyarrow as pa

    if not files.metadata:
        return pa.table({"image": pa.array(files.images, pa.string())}), ["image"]
    tables, columns = [], dict[str, None]()
    read = {path: _read_table(folder / path) for path in files.metadata}
    read |= _typed({path: table for path, table in read.items() if path.endswith(".csv")})
    for path, table in read.items():
        if not len(table):
            raise ValueError(f"{path} has no rows, and so names no image: add them, or remove the table")
        found = False
        for name in table.column_names:
            column = "image" if name == "file_name" else name.removesuffix("_file_name")
            if column == name or not (pa.types.is_string(kind := table[name].type) or pa.types.is_large_string(kind)):
                continue
            if column in table.column_names:
                table = table.drop_columns([column])
            values = [_beside(path, value) for value in table[name].to_pylist()]
            table = table.set_column(table.column_names.index(name), column, pa.array(values, pa.string()))
            columns[column], found = None, True
        if not found:
            raise ValueError(
                f"{path} has no column file_name, and does not say which images it describes (it has "
                f"{listed(table.column_names)}): add the column, or rename the table"
            )
        tables.append(table)
    return pa.concat_tables(tables, promote_options="permissive"), sorted(columns, key=lambda name: name != "image")


def _read_table(path: Path) -> Any:
    import pyarrow as pa

    if path.suffix == ".csv":
        import pandas

        text = pandas.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
        return pa.Table.from_pandas(text, preserve_index=False)
    if path.suffix == ".jsonl":
        from pyarrow import json

        return json.read_json(str(path))
    from pyarrow import parquet

    return parquet.read_table(path)


def _typed(tables: dict[str, Any]) -> dict[str, Any]:
    """Makes numbers of the columns of texts that hold nothing else, in all the tables: `1067` beside `01067` is none,
    and only what is empty is missing."""
    names = dict.fromkeys(name for table in tables.values() for name in table.column_names)
    for name in names:
        if name == "file_name" or name.endswith("_file_name"):
            continue
        own = {path: table[name].to_pylist() for path, table in tables.items() if name in table.column_names}
        present = [value.strip() for values in own.values() for value in values if value is not None]
        kind = next((kind for pattern, kind in KINDS if all(re.fullmatch(pattern, value) for value in present)), str)
        for path, values in own.items():
            typed = [None if value is None else kind(value) for value in values]
            tables[path] = tables[path].set_column(tables[path].column_names.index(name), name, _array(typed, kind))
    return tables


def _array(values: list[Any], kind: Any) -> Any:
    import pyarrow as pa

    types = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    return pa.array(values, types.get(kind, pa.bool_()))


def _beside(table: str, name: str | None) -> str | None:
    """Returns the path of an image that a table names relative to itself.

    Raises:
        ValueError: If it is not in the table's folder, or below it.
    """
    if name is None:
        return None
    path = posixpath.normpath(name.replace("\\", "/"))
    if path.startswith(("/", "../")) or path == ".." or "://" in name or os.path.isabs(name):
        raise ValueError(f"{table} names {name}, which is not in its folder: give paths relative to the table")
    return posixpath.join(posixpath.dirname(table), path)


def _tell(name: str, files: Files, layout: Layout, named: set[str | None], own: str | None) -> None:
    """Says what of a folder is not used, or not as it may seem."""
    images, total = files.images, len(files.images)
    left = sum(files.left_out.values())
    if left:
        note(f"{name}: files left out, as Pillow does not read them: {left} of {left + total} ({files.leftovers}).")
    tables = " and ".join(files.metadata)
    unnamed = len(set(images) - named) if files.metadata else 0
    if unnamed:
        note(f"{name}: images left out, as {tables} does not name them: {unnamed} of {total}.")
    if layout.splits:
        beside = sum(layout.split(path) is None for path in images)
        if beside:
            note(f"{name}: images in no split, as they lie beside {', '.join(layout.splits)}: {beside} of {total}.")
    elif all(split_of(posixpath.basename(path)) for path in images):
        kinds = sorted({str(split_of(posixpath.basename(path))) for path in images})
        if len(kinds) > 1:
            note(
                f"{name}: all images are one split, though their names speak of {', '.join(kinds)}: folders with "
                "these names would keep them apart."
            )
    full = {posixpath.dirname(path) for path in images} - {""}
    if full and files.empty and not own:
        count = len(files.empty)
        note(
            f"{name}: folders left out, as they hold no image that can be read: {count} of {count + len(full)} "
            f"({listed([path[:-1] for path in files.empty])})."
        )
    if not layout.classes:
        return
    if own:
        note(
            f"{name}: the folders ({listed(layout.classes)}) are not the classes, as {tables} has a column {own}: "
            f"`label_column` {own} takes them from there."
        )
        return
    beside = sum(layout.class_name(path) is None for path in images if layout.split(path))
    if beside:
        note(f"{name}: images beside the folders of the classes: {beside} of {total}.")
    depth = max(layout.inner(path).count("/") for path in images)
    if depth > 1:
        which = "innermost folders" if layout.innermost else "folders at the top"
        note(f"{name}: the classes are the names of the {which}: {listed(layout.classes)}.")
