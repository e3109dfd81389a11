"""Where the files of a data set may lie: what it names elsewhere is read only if the user allows it.

A row of a table may name any file, `{"bytes": None, "path": "/home/me/private.png"}`, and a README other tables.
Whoever trains on a stranger's data, and shares the model, would share what these show.
"""

import os
from dataclasses import dataclass
from typing import Any

from hfgen.data.decode import ARCHIVES
from hfgen.runtime.errors import UserError

ROWS = 10_000  # that are looked at together


@dataclass(frozen=True)
class OwnFiles:
    """The folders of a data set.

    Attributes:
        name (`str`): The option that names the data set, and its value, for messages.
        folder (`str`, *optional*): The folder that the user named, without links. Those in a path, and `..`, are
            followed before it is compared.
        downloads (`tuple[str, ...]`): Where its files are kept on this machine, by programs that take nothing but
            these, with links of their own.
        addresses (`tuple[str, ...]`): What its addresses begin with.
    """

    name: str
    folder: str | None = None
    downloads: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()

    def check(self, path: str | None) -> None:
        """Raises [`UserError`] for a file that is none of the data set's.

        Args:
            path (`str`, *optional*): As `datasets` writes it: a path, an address, or `zip://1.png::` and one of these;
                `None` is no file.
        """
        if path is None or self._has(path):
            return
        shown = path if "://" in path else os.path.abspath(path)
        raise UserError(
            f"{self.name} names a file that does not belong to it: {shown}. Take it out of the data, or, if the model "
            "may show what is in it, add `allow_outside_files`."
        )

    def check_image(self, value: Any) -> None:
        """Raises [`UserError`] for an encoded image, `{"bytes", "path"}`, in a file that is none of the data set's."""
        if isinstance(value, dict) and value.get("bytes") is None:
            self.check(value.get("path"))

    def check_rows(self, dataset: Any) -> None:
        """Raises [`UserError`] if a map-style data set names an image in a file that is none of its own."""
        import pyarrow.compute as pc

        for column, feature in dataset.features.items():
            if not is_image(feature):
                continue
            rows = dataset.select_columns([column]).with_format("arrow")
            for start in range(0, len(rows), ROWS):
                values = rows[start : start + ROWS][column]
                named = pc.struct_field(values, "path").filter(pc.is_null(pc.struct_field(values, "bytes")))
                for path in named.to_pylist():
                    self.check(path)

    def _has(self, path: str) -> bool:
        *within, file = path.split("::") if "://" in path else (path,)
        if any(each.partition("://")[0] not in ARCHIVES for each in within):
            return False  # some of them are names of other files
        if "://" in file:
            return file.startswith(self.addresses) and ".." not in file.split("/")
        if file.startswith(self.downloads) and ".." not in file.split(os.sep):
            return True
        return self.folder is not None and os.path.realpath(file).startswith(f"{self.folder}{os.sep}")


def own_files_of(builder: Any, name: str, source: str) -> OwnFiles:
    """Returns what belongs to the data set that a `datasets` builder loads.

    Args:
        builder (`DatasetBuilder`): The builder.
        name (`str`): For messages.
        source (`str`): The folder or the Hub id that it was made for.
    """
    from datasets import config
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if os.path.isdir(source):
        return OwnFiles(name, os.path.realpath(source))
    base = str(builder.base_path or "")
    if base.startswith("hf://buckets/"):  # kept under names that nobody else can choose
        return OwnFiles(name, None, (f"{config.DOWNLOADED_DATASETS_PATH}{os.sep}",), (f"{base.rstrip('/')}/",))
    ids = dict.fromkeys((builder.repo_id or source, base.removeprefix("hf://datasets/").partition("@")[0] or source))
    folders = [os.path.join(constants.HF_HUB_CACHE, repo_folder_name(repo_id=id, repo_type="dataset")) for id in ids]
    return OwnFiles(
        name, None, tuple(f"{folder}{os.sep}" for folder in folders), tuple(f"hf://datasets/{id}@" for id in ids)
    )


def is_image(feature: Any) -> bool:
    """Says whether a column of `datasets` holds images."""
    from datasets import Image

    # Parquet files written without datasets hold images as a struct of bytes and path.
    return isinstance(feature, Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})
