"""When something that goes wrong in a training has lasted long enough to speak of it; no torch here."""

from hfgen.training.recipe import Progress


class Patience:
    """Remembers since when each sign has been there, and says once, for each time that it comes, that it lasts.

    Args:
        images (`int`): Images over which a sign must last.
        share (`float`, *optional*, defaults to 0.05): The same as a share of the run, which counts in a short one,
        least (`int`, *optional*, defaults to 1000): but for no fewer images than these.
    """

    def __init__(self, images: int, share: float = 0.05, least: int = 1000):
        self.images, self.share, self.least = images, share, least
        self._since: dict[str, int] = {}  # images seen when a sign was first noticed
        self._told: set[str] = set()

    def lasts(self, name: str, sign: bool, progress: Progress) -> int | None:
        """Notes whether a sign is there; returns the images for which it has been when it is time to say so."""
        if not sign:
            self._since.pop(name, None)
            self._told.discard(name)
            return None
        lasted = progress.images_seen - self._since.setdefault(name, progress.images_seen)
        total = progress.images_seen / progress.fraction if progress.fraction else float("inf")
        if name in self._told or lasted < min(self.images, max(self.least, self.share * total)):
            return None
        self._told.add(name)
        return lasted
