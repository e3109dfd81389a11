"""Seeds: of images, and of everything else."""

import hashlib

import pytest
import torch

import hfgen
from hfgen.evaluation.config import Amounts
from hfgen.runtime.errors import UserError
from hfgen.runtime.seeds import image_seed, seed_from
from hfgen.sampling.sampler import image_generators


def test_an_images_seed_can_be_repeated_by_hand():
    (generator,) = image_generators(5, [3])
    alone = torch.Generator().manual_seed(hfgen.image_seed(5, 3))
    assert torch.equal(torch.randn(4, generator=generator), torch.randn(4, generator=alone))


def test_images_of_a_set_differ_and_sets_do_not_overlap():
    """Deviations over seeds would be zero if sets of neighbouring seeds shared their images."""
    sets = [{image_seed(seed, index) for index in range(3000)} for seed in (0, 1, 2, 2**32, 2**64 - 1)]
    assert all(len(images) == 3000 for images in sets)
    assert len(set.union(*sets)) >= 5 * 3000 - 3  # chance alone: 0.02 expected
    assert image_seed(0, 0) not in (0, 1) and image_seed(0, 5, "path") != image_seed(0, 5)
    assert all(0 <= seed < 2**32 for seed in sets[0])


def test_streams_have_64_bits_and_keep_those_of_version_01_on_a_cpu():
    old = int.from_bytes(hashlib.blake2b(repr((0, 64, "x")).encode(), digest_size=4).digest(), "little")
    new = seed_from(0, 64, "x")
    assert new % 2**32 == old and new >> 32 not in (0, old)
    draws = [torch.randn(4, generator=torch.Generator().manual_seed(seed)) for seed in (old, new)]
    assert torch.equal(*draws)


@pytest.mark.parametrize(("seed", "seeds"), [(-1, 1), (2**64, 1), (1.5, 1), (True, 1), ("3", 1), (2**64 - 2, 3)])
def test_mistakes(seed, seeds):
    with pytest.raises(UserError, match="`seed` (is )?.*( is out of range: use 0 to 2|, but must be int|for all of)"):
        Amounts(seed=seed, seeds=seeds)
    assert Amounts(seed=2**64 - 2, seeds=2)
