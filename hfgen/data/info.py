"""What a run knows, and records, about its data; no torch here."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hfgen.data.columns import TRAIN, Classes
from hfgen.data.config import IMAGE_MODES


@dataclass(frozen=True)
class SourceInfo:
    """A data set.

    Attributes:
        name (`str`): What it is called.
        split (`str`): The split that is read.
        num_images (`int`, *optional*): Number of rows that are used; `None` for a stream.
        skipped (`int`): Number of rows left out since an image is corrupt.
        fingerprint (`str`): Digest of the decoded columns; of the source's files for a stream.
    """

    name: str
    split: str
    num_images: int | None
    skipped: int
    fingerprint: str


@dataclass(frozen=True)
class ImageInfo:
    """A column of images.

    Attributes:
        mode (`str`): Their PIL mode: `L`, `RGB` or `RGBA`.
        resolution (`int`): Their height and width in pixels.
        source (`str`): The data set.
        value_range (`tuple[float, float]`, *optional*): The values that became 0 and 255 in images of more than 8
            bits; `None` if there are none.
        column (`str`, *optional*): Its name in the data set, where the family did not name it.
    """

    mode: str
    resolution: int
    source: str = TRAIN
    value_range: tuple[float, float] | None = None
    column: str | None = None

    @property
    def channels(self) -> int:
        return IMAGE_MODES[self.mode]

    def __str__(self) -> str:
        return f"{self.resolution}x{self.resolution} {self.mode}"


@dataclass(frozen=True)
class LabelInfo:
    """A column of classes; `column` as for images."""

    classes: Classes
    source: str = TRAIN
    column: str | None = None

    def __str__(self) -> str:
        return f"{len(self.classes.names)} {'groups of similar images' if self.classes.groups else 'classes'}"


@dataclass(frozen=True)
class TextInfo:
    """A column of texts; `missing` rows have none (`None` for a stream)."""

    missing: int | None = 0
    source: str = TRAIN

    def __str__(self) -> str:
        return f"texts ({self.missing} missing)" if self.missing else "texts"


@dataclass(frozen=True)
class DerivedInfo:
    """A column that the recipe made of others: the shape of one row and the type of its numbers."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    source: str = TRAIN

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))} {self.dtype}"


ColumnInfo = ImageInfo | LabelInfo | TextInfo | DerivedInfo


@dataclass(frozen=True)
class DataInfo:
    """The data of a run. The properties speak of the first source and of its first images and classes.

    Attributes:
        sources (`dict[str, SourceInfo]`): The data sets by name.
        columns (`dict[str, ColumnInfo]`): The columns by name. Labels that the data does not have are not there.
    """

    sources: Mapping[str, SourceInfo]
    columns: Mapping[str, ColumnInfo]

    @property
    def _source(self) -> SourceInfo:
        return next(iter(self.sources.values()))

    @property
    def _image(self) -> ImageInfo:
        return next(column for column in self.columns.values() if isinstance(column, ImageInfo))

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def split(self) -> str:
        return self._source.split

    @property
    def num_images(self) -> int | None:
        """Images in an epoch; `None` for a stream."""
        return self._source.num_images

    @property
    def skipped(self) -> int:
        return self._source.skipped

    @property
    def fingerprint(self) -> str:
        """Returns a digest of the data of all sources."""
        prints = [source.fingerprint for source in self.sources.values()]
        return prints[0] if len(prints) == 1 else hashlib.sha256(repr(prints).encode()).hexdigest()[:32]

    @property
    def mode(self) -> str:
        return self._image.mode

    @property
    def resolution(self) -> int:
        return self._image.resolution

    @property
    def channels(self) -> int:
        return self._image.channels

    @property
    def value_range(self) -> tuple[float, float] | None:
        """Returns the range of all images of more than 8 bits; `None` without such images, and for several ranges."""
        images = (column for column in self.columns.values() if isinstance(column, ImageInfo))
        ranges = {column.value_range for column in images if column.value_range}
        return ranges.pop() if len(ranges) == 1 else None

    def column_of(self, kind: type[ImageInfo] | type[LabelInfo]) -> str | None:
        """Returns the data set's column that became the first one of a kind which the family left open."""
        own = (column for column in self.columns.values() if isinstance(column, kind) and column.source == TRAIN)
        return next((column.column for column in own if column.column), None)

    @property
    def classes(self) -> Classes | None:
        return next((column.classes for column in self.columns.values() if isinstance(column, LabelInfo)), None)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.classes.names if self.classes else None

    def as_record(self) -> dict[str, Any]:
        """Returns the data's part of `run.json`: plain values, flat for the first source; all of it if there is more
        than that."""
        classes = self.classes
        record: dict[str, Any] = {
            "name": self.name,
            "split": self.split,
            "num_images": self.num_images,
            "skipped": self.skipped,
            "unlabelled": classes.unlabelled if classes else 0,
            "mode": self.mode,
            "resolution": self.resolution,
            "class_names": list(classes.names) if classes else None,
            "fingerprint": self.fingerprint,
            "class_shares": list(classes.shares) if classes and classes.shares else None,
            "class_kind": classes.kind if classes else None,
        }
        if self.value_range:
            record["value_range"] = list(self.value_range)
        if len(self.sources) > 1 or len(self.columns) > 1 + (classes is not None):
            record["sources"] = {name: asdict(source) for name, source in self.sources.items()}
            record["columns"] = {name: asdict(column) for name, column in self.columns.items()}
        return record

    def __str__(self) -> str:
        parts = []
        for name, source in self.sources.items():
            own = [column for column in self.columns.values() if column.source == name]
            rows = "images" if any(isinstance(column, ImageInfo) for column in own) else "rows"
            count = f"a stream of {rows}" if source.num_images is None else f"{source.num_images} {rows}"
            columns = [str(column) for column in own]
            skipped = [f"{source.skipped} corrupt ones skipped"] if source.skipped else []
            parts.append(f"{source.name} [{source.split}]: {', '.join([count, *columns, *skipped])}")
        return "; ".join(parts)
