"""What the images of a data set have in common, and what a person should know of them before they are converted."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hfgen.data.config import FULL_RANGE, IMAGE_MODES, DataConfig
from hfgen.data.decode import Header, common_resolution, find_range
from hfgen.runtime.notes import note

REST = 0.002  # share of the pixels, the darkest and the brightest, that does not count where a range is looked at


@dataclass(frozen=True)
class Survey:
    """What the headers of images say, and the values of deep pixels.

    Attributes:
        modes (`dict[str, int]`): Number of images by the mode that keeps all that they have, the most frequent first.
        resolution (`int`): Pixels of a side that suit all of them.
        ratio (`float`): Longer to shorter side, of the most oblong one.
        deep (`int`): Number of images with more than 8 bits, in one channel.
        extrema (`tuple`, *optional*): The least and the greatest value in these, and whether all are whole numbers.
        reduced (`int`): Number of images with 16 bits in several channels, of which 8 are read.
        frames (`int`): Number of images with more frames than the first.
    """

    modes: dict[str, int]
    resolution: int
    ratio: float
    deep: int = 0
    extrema: tuple[float, float, bool] | None = None
    reduced: int = 0
    frames: int = 0

    @property
    def mode(self) -> str:
        """Returns the mode that loses nothing of any image."""
        return max(self.modes, key=list(IMAGE_MODES).index)

    def value_range(self, config: DataConfig) -> tuple[float, float] | None:
        """Returns the values that become black and white in deep images, as given or found; `None` if there are none
        of these."""
        if self.extrema is None:
            return None
        low, high = config.value_range or find_range(*self.extrema)
        return float(low), float(high)

    def tell(self, name: str, config: DataConfig, mode: str, levels: tuple[int, int] | None = None) -> None:
        """Says what is changed in the images, and what is lost.

        Args:
            name (`str`): The data.
            config ([`DataConfig`]): Its options.
            mode (`str`): What all images become.
            levels (`tuple[int, int]`, *optional*): The darkest and the brightest level that matter in deep images.
        """
        total, range_ = sum(self.modes.values()), self.value_range(config)
        if len(self.modes) > 1 and config.image_mode is None:
            counts = ", ".join(f"{count} {mode}" for mode, count in self.modes.items())
            note(f"{name}: the images differ in channels ({counts}); all become {mode} (`image_mode`).")
        if range_ and self.extrema:
            least, greatest, _ = self.extrema
            text = (
                f"{name}: images of more than 8 bits: {self.deep} of {total}, with values from {least:g} to "
                f"{greatest:g}; the range {range_[0]:g} to {range_[1]:g} (`value_range`) becomes 0 to 255"
            )
            if levels and levels[1] - levels[0] < 128:
                low, high = (range_[0] + level / 255 * (range_[1] - range_[0]) for level in levels)
                text += (
                    f"; most of that is empty: {1 - REST:.1%} of the pixels have {levels[1] - levels[0] + 1} of the "
                    f"256 levels, and `value_range` {low:g} {max(high, low + 1):g} would spread them"
                )
            note(text + ".")
        elif config.value_range not in (None, FULL_RANGE):
            note(f"{name}: `value_range` changes nothing, as no image has more than 8 bits in one channel.")
        if self.reduced:
            note(f"{name}: images with 16 bits per colour, of which the upper 8 are read: {self.reduced} of {total}.")
        if self.frames:
            note(f"{name}: images of several frames, of which the first is read: {self.frames} of {total}.")
        clear = self.modes.get("RGBA", 0)
        if clear and mode != "RGBA":
            how = f"lies over {config.background}" if config.background != "none" else "is dropped"
            note(
                f"{name}: images with transparency: {clear} of {total}; in {mode} it {how} (`background`), and "
                "`image_mode` RGBA keeps it."
            )


def survey(headers: Iterable[Header]) -> Survey:
    """Makes a [`Survey`] of images, of which there is at least one."""
    modes: Counter[str] = Counter()
    sizes: set[tuple[int, int]] = set()
    deep = reduced = frames = 0
    least, greatest, whole = float("inf"), float("-inf"), True
    for header in headers:
        modes[header.mode] += 1
        sizes.add(header.size)
        reduced += header.reduced
        frames += header.frames
        if header.extrema:
            deep += 1
            least, greatest = min(least, header.extrema[0]), max(greatest, header.extrema[1])
            whole = whole and header.extrema[2]
    distinct = np.array(list(sizes))
    shorter, longer = np.sort(distinct, axis=1).T
    return Survey(
        dict(modes.most_common()),
        common_resolution(distinct),
        float((longer / shorter).max()),
        deep,
        (least, greatest, whole) if deep else None,
        reduced,
        frames,
    )
