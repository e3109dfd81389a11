"""Derived columns: once for each row, variant and digest of weights."""

import dataclasses
from pathlib import Path

import pytest
import torch
from helpers.forked import CONTEXT

from hfgen.data.augment import prepare
from hfgen.data.columns import Derived, Image, Label, Sources, Text
from hfgen.data.config import DataConfig
from hfgen.data.derived import derive
from hfgen.data.streams import open_stream
from hfgen.runtime.errors import UserError
from hfgen.training.random import StepRandom

CPU = torch.device("cpu")
SPEC = {
    "image": Image(),
    "label": Label(),
    "latent": Derived(("image",), ("plain", "flip")),
    "pooled": Derived(("label", "image"), ("plain", "flip")),
}


class Encoder(torch.nn.Module):
    """A frozen network that counts its calls."""

    def __init__(self, seed=0):
        super().__init__()
        self.net = torch.nn.Conv2d(1, 4, 4, stride=4)
        torch.nn.init.normal_(self.net.weight, generator=torch.Generator().manual_seed(seed))
        self.rows = 0

    def forward(self, batch):
        self.rows += len(batch["image"])
        latent = self.net(batch["image"])
        return {"latent": latent, "pooled": latent.mean((2, 3)) + batch["label"][:, None]}


def add(stream, spec, encode, digest="0"):
    return derive(stream, spec, encode, digest, CPU, 100)


@pytest.fixture
def config(tmp_path):
    return DataConfig(cache_dir=str(tmp_path))


def folders(config):
    return list(Path(config.cache_dir).glob("derived-*/meta.json"))


def test_it_is_encoded_once_for_each_digest_and_variant(config):
    encoder = Encoder()
    stream = add(open_stream(SPEC, config, 0), SPEC, encoder)
    assert encoder.rows == 1797
    add(open_stream(SPEC, config, 1), SPEC, encoder)
    assert encoder.rows == 1797 and len(folders(config)) == 1
    flipping = dataclasses.replace(config, random_flip=True)
    both = add(open_stream(SPEC, flipping, 0), SPEC, encoder)
    assert encoder.rows == 2 * 1797 and len(folders(config)) == 2  # the plain ones are there already
    other = Encoder(1)
    changed = add(open_stream(SPEC, config, 0), SPEC, other, digest="1")
    assert other.rows == 1797 and len(folders(config)) == 3
    larger = dataclasses.replace(config, resolution=12)
    add(open_stream(SPEC, larger, 0), SPEC, other, digest="1")
    assert other.rows == 2 * 1797
    info = stream.info.columns["latent"]
    assert (info.shape, info.dtype) == ((4, 2, 2), "float32") and "4x2x2 float32" in str(stream.info)
    assert stream.read(0, 5)["latent"].shape == (5, 1, 4, 2, 2)
    assert both.read(0, 5)["latent"].shape == (5, 2, 4, 2, 2)
    assert not torch.equal(stream.read(0, 5)["latent"], changed.read(0, 5)["latent"])


def test_it_is_what_the_network_makes_of_the_images_of_the_batch(config):
    encoder, config = Encoder(), dataclasses.replace(config, random_flip=True)
    stream = add(open_stream(SPEC, config, 0), SPEC, encoder)
    for number in range(2):
        random = StepRandom(0, number, 64, purpose="augmentation")
        batch = prepare(stream.read(1780, 64), config, random)  # over the end of an epoch
        with torch.no_grad():
            fresh = encoder(batch)
        for name in ("latent", "pooled"):
            torch.testing.assert_close(batch[name], fresh[name], rtol=1e-5, atol=1e-5)
    plain = prepare(stream.read(0, 64), config, random)["image"]
    assert not torch.equal(plain, prepare(stream.read(0, 64), DataConfig(), random)["image"])


def test_a_killed_build_leaves_nothing(config):
    class Killed(Encoder):
        def forward(self, batch):
            if self.rows >= 300:
                raise KeyboardInterrupt
            return super().forward(batch)

    with pytest.raises(KeyboardInterrupt):
        add(open_stream(SPEC, config, 0), SPEC, Killed())
    assert folders(config) == [] and list(Path(config.cache_dir).glob(".tmp-*")) == []
    encoder = Encoder()
    add(open_stream(SPEC, config, 0), SPEC, encoder)
    assert encoder.rows == 1797


def build(config, queue):
    encoder = Encoder()
    batch = add(open_stream(SPEC, config, 0), SPEC, encoder).read(0, 3)
    queue.put((encoder.rows, batch["latent"].tolist()))


def test_one_process_encodes_and_the_others_wait(config):
    queue = CONTEXT.Queue()
    workers = [CONTEXT.Process(target=build, args=(config, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(rows for rows, _ in results) == [0, 1797] and results[0][1] == results[1][1]


def test_two_sources(config):
    spec = Sources(
        {
            "a": Image(),
            "b": Image(source="b"),
            "code_a": Derived(("a",)),
            "code_b": Derived(("b",)),
        },
        {"b": dataclasses.replace(config, resolution=12)},
    )

    def encode(batch):
        return {f"code_{name}": batch[name].flatten(1)[:, :3] for name in "ab"}

    stream = add(open_stream(spec, config, 0), spec, encode)
    batch = stream.read(7, 20)
    for name in "ab":
        assert torch.equal(batch[f"code_{name}"][:, 0], batch[name].flatten(1)[:, :3].float() / 127.5 - 1)
    assert stream.info.columns["code_b"].source == "b"


def test_live_columns_are_not_kept(config):
    spec = {"image": Image(), "latent": Derived(("image",), live=True)}
    config = dataclasses.replace(config, random_rotation=5.0)
    stream = open_stream(spec, config, 0)
    assert add(stream, spec, lambda batch: pytest.fail("encoded")) is stream
    assert list(stream.read(0, 2)) == ["image"]


def test_mistakes(config):
    with pytest.raises(UserError, match="the family encodes other, and no column 'latent'"):
        add(open_stream(SPEC, config, 0), SPEC, lambda batch: {"other": batch["image"]})
    with pytest.raises(UserError, match="`random_crop` 2 changes images.*turn it off, or let the family encode live"):
        open_stream(SPEC, dataclasses.replace(config, random_crop=2), 0)
    with pytest.raises(UserError, match="no column with texts for 'caption'; it has: image"):
        open_stream({"image": Image(), "caption": Text()}, config, 0)
