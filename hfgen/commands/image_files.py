"""Images that a command reads, and the files that it makes of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfgen.runtime.errors import UserError

GRID, IN_GRID = "grid.png", 10


def find_images(source: str) -> dict[str, Path]:
    """Finds the images of `input`: by the name of the file that each becomes, without the suffix.

    Raises:
        UserError: If there are none.
    """
    from hfgen.data.folders import list_files

    path = Path(source)
    if path.is_file():
        return {path.stem: path}
    if not path.is_dir():
        raise UserError(f"`input` {source} is neither an image nor a folder: give one of them.")
    found: dict[str, Path] = {}
    files = list_files(path).images
    if not files:
        raise UserError(f"`input` {source} holds no images that can be read.")
    stems = [str(Path(file).with_suffix("")).replace("/", "-") for file in files]
    for file, stem in zip(files, stems, strict=True):
        found[stem if stems.count(stem) == 1 else file.replace("/", "-")] = path / file
    return found


def places_for(names: Mapping[str, Any], folder: Path, overwrite: bool) -> dict[str, Path]:
    """Returns where the image of each name goes.

    Raises:
        UserError: If the folder cannot be written to, or holds one of them, and that is not to be replaced or not
            ours.
    """
    from hfgen.runtime.writable import require_folder, require_ours

    require_folder(folder, "output_dir")
    files = {name: folder / f"{name}.png" for name in names}
    present = [path for path in (*files.values(), folder / GRID) if path.exists()]
    if present and not overwrite:
        raise UserError(f"`output_dir` {folder} holds {present[0].name}: add `overwrite_output_dir` or give another.")
    require_ours(present, "output_dir", "give another folder, or delete it")
    return files


def read_image(path: Path) -> Any:
    """Decodes an image, upright.

    Raises:
        UserError: If it cannot be read.
    """
    from hfgen.data.decode import decode

    try:
        return decode({"path": str(path)})
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}. Take it away, or give another.") from None
