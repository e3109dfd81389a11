"""Defaults that follow the data: a default run of few and of many images, small and large, is a sensible one."""

import pytest
from helpers import data_info

from hfgen.registry import families
from hfgen.runtime.machine import Machine
from hfgen.training.alarms import Patience
from hfgen.training.defaults import batch_size, widths
from hfgen.training.options import collect
from hfgen.training.recipe import Progress
from hfgen.training.schedules import Schedule

CPU, GPU = Machine("cpu", 8 << 30), Machine("cuda", 80 << 30)


def planned(family, count, resolution=64, mode="RGB", machine=CPU, preset=None, **given):
    options = collect(family, preset, dataset_name="user/pictures", **given)
    info = data_info(resolution=resolution, mode=mode, num_images=count, class_names=None)
    options = options.resolve(info, machine, "no")
    return options, Schedule(options.training, count, machine.processes)


@pytest.mark.parametrize("family", families())
@pytest.mark.parametrize("count", [80, 300, 3000, 60_000])
@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
def test_a_default_run_is_sensible(family, count, machine):
    options, schedule = planned(family, count, machine=machine)
    steps = schedule.total // schedule.batch
    assert steps >= 400, "there is time to learn"
    assert schedule.total <= 2000 * count, "no image is seen more often than helps"
    assert schedule.warmup * 10 <= schedule.total
    assert 8 <= schedule.total // schedule.images <= 20, "so many grids"
    assert schedule.total / schedule.checkpointing >= 5, "not much is lost when it is killed"
    assert schedule.total // schedule.logging >= 10
    assert 4 * schedule.batch <= count, "a step is a small part of the data"
    few, many = planned(family, 80)[1], planned(family, 60_000)[1]
    assert few.total <= many.total + few.batch  # of whole steps


def test_the_stated_lengths():
    """What README and benchmarks say of MNIST."""
    for family, images in {"gan": 600_000, "vae": 600_000, "autoregressive": 60_000, "flow": 225_000}.items():
        options, schedule = planned(family, 60_000, 28, "L")
        assert images <= schedule.total < images + schedule.batch, family
        assert options.followed["num_epochs"] == images / 60_000
    assert planned("ddpm", 60_000, 28, "L")[1].total == 126_016
    assert planned("vae", 60_000, 28, "L", preset="vq")[1].total == 240_000


@pytest.mark.parametrize("resolution", [32, 64, 100, 128, 256])
@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
def test_the_networks_follow_the_size(resolution, machine):
    own = planned("ddpm", 3000, resolution, machine=machine)[0].own
    lowest = resolution >> len(own.block_out_channels) - 1
    assert lowest <= 8 or lowest % 2, "halved until attention is cheap"
    assert own.attention_resolutions == (lowest,)
    assert list(own.block_out_channels) == sorted(own.block_out_channels)
    vae = planned("vae", 3000, resolution, machine=machine)[0].own
    assert resolution / 2 ** len(vae.block_out_channels) <= 4
    assert vae.latent_channels == {32: 32, 64: 64}.get(resolution, 128)
    gan = planned("gan", 3000, resolution, machine=machine)[0].own
    assert gan.base_channels == (32 if machine is GPU else {128: 16, 256: 8}.get(resolution, 32))


def test_what_somebody_decided_stays():
    options, schedule = planned("ddpm", 300, num_epochs=3, train_batch_size=5, save_images_epochs=1)
    assert (options.training.num_epochs, options.training.train_batch_size) == (3, 5)
    assert options.training.save_images_steps is None and schedule.images == 300
    assert not {"num_epochs", "train_batch_size", "save_images_steps"} & options.followed.keys()
    assert planned("ddpm", 300, save_images_epochs=0)[1].images is None
    assert planned("ddpm", 300, max_train_steps=50)[1].total == 50 * 64
    short, schedule = planned("ddpm", 300, max_train_steps=20)
    assert schedule.total // schedule.images == 10, "12 grids at most, however short"
    own = planned("ddpm", 300, block_out_channels=(8, 8), norm_num_groups=4, machine=GPU)[0].own
    assert own.block_out_channels == (8, 8) and own.layers_per_block == 1  # no part of another network beside it
    assert planned("ddpm", 300, preset="mnist")[0].own.block_out_channels == (32, 64, 64)
    without = planned("gan", 300, ada_target=None)[0]
    assert without.own.ada_target is None and "ada_images" not in without.followed
    assert planned("gan", 300, preset="dcgan")[0].own.ada_target is None


def test_few_images_are_augmented_at_a_speed_that_suits_the_run():
    for count in (80, 300, 3000):
        options, schedule = planned("gan", count)
        assert options.own.ada_target == 0.6
        assert options.own.ada_images * 5 <= schedule.total
    assert planned("gan", 60_000)[0].own.ada_target is None
    asked, schedule = planned("gan", 60_000, ada_target=0.7)
    assert asked.own.ada_target == 0.7 and asked.own.ada_images * 5 <= schedule.total
    assert collect("gan", dataset_name="x").data.groups_for(80) == 5


def test_a_stream_has_the_length_that_is_given():
    options, schedule = planned("gan", None, streaming=True, max_train_steps=600)
    assert schedule.total == 600 * 64 and schedule.images == 50 * 64 and "num_epochs" not in options.followed


def test_a_resumed_run_keeps_what_was_chosen(tmp_path):
    import json

    folder = tmp_path / "run"
    folder.mkdir()
    options = planned("gan", 80, output_dir=str(folder))[0]
    (folder / "run.json").write_text(json.dumps({"family": "gan", "config": options.values}))
    again = collect("gan", output_dir=str(folder), resume_from_checkpoint="latest")
    info = data_info(resolution=64, mode="RGB", num_images=60_000, class_names=None)
    resumed = again.resolve(info, GPU, "no")
    assert resumed.values | {"resume_from_checkpoint": None} == options.values and resumed.followed == {}


def test_processes_share_the_steps():
    one, two = (planned("ddpm", 3000, machine=Machine("cpu", None, count)) for count in (1, 2))
    assert one[1].total == pytest.approx(two[1].total, rel=0.01)
    assert 8 <= two[1].total // two[1].images <= 20


def test_batches_and_widths():
    shape = {"mode": "RGB", "class_names": None}
    for resolution, count, size in [(28, 60_000, 64), (64, 80, 16), (64, 30, 8), (128, 60_000, 16), (256, 60_000, 4)]:
        assert batch_size(64, data_info(resolution=resolution, num_images=count, **shape)) == size
    assert widths(28, 32, 64) == widths(32, 32, 64) == (32, 64, 64)
    assert widths(256, 16, 128) == (16, 32, 64, 128, 128, 128)
    assert widths(100, 32, 128) == (32, 64, 128) and widths(7, 32, 64) == (32,)


def test_a_sign_must_last_a_share_of_a_short_run():
    """A run of 300 images collapsed between its steps 50 and 100, and never said so: 50,000 images did not come."""
    patience = Patience(50_000)
    told = [patience.lasts("collapse", seen >= 6400, Progress(seen, seen / 64_000)) for seen in range(0, 64_000, 640)]
    assert [lasted for lasted in told if lasted is not None] == [3200]
    assert told.index(3200) * 640 <= 6400 + 0.1 * 64_000
    long = Patience(50_000)
    told = [long.lasts("collapse", True, Progress(seen, seen / 10**8)) for seen in range(0, 200_000, 10_000)]
    assert told[5] == 50_000 and told.count(None) == len(told) - 1
