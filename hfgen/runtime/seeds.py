"""Seeds that are made of other values."""

import hashlib
from typing import Any

SEEDS = 2**64  # how many there are: what users give is below


def seed_from(*parts: Any) -> int:
    """Returns a seed of 64 bits that depends on all of `parts` and on nothing else.

    torch keeps all of them on a GPU, and the lower half on a CPU.
    """
    text = repr(parts).encode()
    # The lower half is the whole seed of version 0.1: runs that began with it go on as they would have.
    halves = (hashlib.blake2b(text, digest_size=4, person=half) for half in (b"", b"upper"))
    return int.from_bytes(b"".join(half.digest() for half in halves), "little")


def image_seed(seed: int, index: int, purpose: str = "image") -> int:
    """Returns the seed of one image of the set with this seed: what `torch.Generator().manual_seed` is to be given.

    Images of one set have different seeds, as long as there are no more than 2^32 of them, and those of sets with
    different seeds have nothing to do with each other.

    Args:
        seed (`int`): Seed of the set.
        index (`int`): Number of the image, from 0 on.
        purpose (`str`): Keeps sets of other things than images apart.

    Returns:
        `int`: Below 2^32, since torch's generators on a CPU keep no more.
    """
    key = seed_from(seed, purpose)
    return (key + (key >> 32 | 1) * index) % 2**32  # an odd step meets each number once
