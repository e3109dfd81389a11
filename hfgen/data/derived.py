"""Derived columns: what frozen networks of a recipe make of each row, computed once and kept in the cache."""

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hfgen.data.augment import crop_strips, to_float
from hfgen.data.cache import Column
from hfgen.data.columns import VARIANTS, Image, Sources, Spec, kept_columns
from hfgen.data.info import DataInfo, DerivedInfo
from hfgen.data.store import META, build_once, cache_key, cache_root
from hfgen.data.streams import CachedStream, RawBatch, Stream
from hfgen.runtime.errors import UserError

Encode = Callable[[dict[str, Any]], Mapping[str, torch.Tensor]]


def derive(
    stream: Stream, spec: Spec | Sources, encode: Encode, digest: str, device: torch.device, batch_size: int
) -> Stream:
    """Adds the derived columns that are not live to a stream, from the cache or by computing them.

    Several processes may call this at once: one computes, the others wait.

    Args:
        stream ([`~data.streams.Stream`]): As [`~data.streams.open_stream`] opened it.
        spec (`Spec` or [`~data.columns.Sources`]): What it was opened for.
        encode (`Callable`): Makes the derived columns by name, `(B, ...)`, of the other columns of a batch, without
            random numbers. Images are in [-1, 1], cropped in the centre.
        digest (`str`): Digest of the weights that `encode` uses: other weights make other columns.
        device (`torch.device`): Where batches are encoded.
        batch_size (`int`): Rows that are encoded together.

    Returns:
        [`~data.streams.Stream`]: Also yields the derived columns; on the CPU until its `to` is called.

    Raises:
        UserError: If they cannot be made or kept.
    """
    derived = kept_columns(spec)
    if not derived:
        return stream
    assert isinstance(stream, CachedStream)  # open_stream refuses to stream what is kept
    infos, sources = stream.info.columns, stream.info.sources
    asked: Any = spec.columns if isinstance(spec, Sources) else spec
    source_of = {name: asked[column.inputs[0]].source for name, column in derived.items()}
    flipped = {  # the columns whose images are mirrored
        name
        for name, column in derived.items()
        if stream.data[source_of[name]].config.random_flip
        and any(isinstance(asked[used], Image) for used in column.inputs)
    }
    counts = {name: sources[source].num_images or 0 for name, source in source_of.items()}
    config = next(iter(stream.data.values())).config
    root = cache_root(config)
    arrays: dict[str, tuple[np.ndarray, ...]] = dict.fromkeys(derived, ())
    for variant in VARIANTS if flipped else VARIANTS[:1]:
        key = cache_key(
            digest=digest,
            variant=variant,
            derived=counts,
            sources={name: source.fingerprint for name, source in sources.items()},
            columns={name: str(info) for name, info in infos.items()},
        )

        def build(folder: Path, mirror: bool = variant == "flip") -> None:
            _encode(folder, stream, encode, counts, mirror, device, batch_size)

        folder = build_once(root / f"derived-{key}", build, config.verify_cache)
        for name, shape in json.loads((folder / META).read_text()).items():
            if variant == "plain" or name in flipped:
                array = np.memmap(folder / f"{name}.f32", dtype=np.float32, mode="r", shape=tuple(shape))
                arrays[name] += (array,)
    data = dict(stream.data)
    for name, source in source_of.items():
        info = DerivedInfo(arrays[name][0].shape[1:], source=source)
        columns = {**data[source].columns, name: Column(info, digest, arrays[name])}
        described = DataInfo(data[source].info.sources, {key: column.info for key, column in columns.items()})
        data[source] = replace(data[source], info=described, columns=columns)
    return CachedStream(data, stream.seed)


def _encode(
    folder: Path,
    stream: CachedStream,
    encode: Encode,
    counts: Mapping[str, int],
    mirror: bool,
    device: torch.device,
    batch_size: int,
) -> None:
    """Writes what is derived from all rows into a folder; shorter sources are repeated beside longer ones."""
    from datasets import is_progress_bar_enabled
    from tqdm.auto import tqdm

    shapes: dict[str, list[int]] = {}
    sizes = {name: source.num_images or 0 for name, source in stream.info.sources.items()}
    total = max(counts.values())
    text = "Encoding mirrored rows" if mirror else "Encoding rows"
    with (
        contextlib.ExitStack() as stack,
        torch.no_grad(),
        tqdm(total=total, desc=text, unit="row", disable=not is_progress_bar_enabled()) as bar,
    ):
        files = {name: stack.enter_context(open(folder / f"{name}.f32", "wb")) for name in counts}
        for start in range(0, total, batch_size):
            rows = torch.arange(start, min(start + batch_size, total))
            raw = stream.take({source: rows % size for source, size in sizes.items()}).to(device)
            encoded = encode({name: _plain(raw, name, mirror) for name in raw})
            for name, file in files.items():
                if name not in encoded:
                    raise UserError(f"the family encodes {', '.join(encoded) or 'nothing'}, and no column {name!r}.")
                values = encoded[name][: max(0, counts[name] - start)].float().cpu().numpy()
                shapes[name] = [counts[name], *values.shape[1:]]
                file.write(np.ascontiguousarray(values).data)
            bar.update(len(rows))
    (folder / META).write_text(json.dumps(shapes))


def _plain(raw: RawBatch, name: str, mirror: bool) -> Any:
    """Reads a column of images without augmentation, cropped in the centre, perhaps mirrored; other columns as they
    are."""
    value = raw[name]
    if getattr(value, "dtype", None) != torch.uint8:
        return value
    if name in raw.layouts:  # not an input: open_stream refuses these
        value = crop_strips(value, raw.layouts[name], value.new_full((len(value), 1), 0.5, dtype=torch.float32))
    return to_float(value.flip(-1) if mirror else value)
