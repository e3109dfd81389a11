"""A run that begins from a checkpoint: its weights and architecture, classes by their names, and what does not fit."""

import json
import shutil

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

import hfgen
from hfgen.registry import find_family
from hfgen.runtime.errors import UserError
from hfgen.runtime.notes import notes_to
from hfgen.sampling.loading import load_pipeline
from hfgen.training.api import prepare
from hfgen.training.options import collect
from hfgen.training.recipe import TRAINED
from hfgen.training.start import Start, class_rows, class_tables

pytestmark = pytest.mark.usefixtures("on_the_cpu")

SHARED = {
    **{"dataset_name": "digits", "resolution": 8, "train_batch_size": 8, "max_train_steps": 2, "eval_batch_size": 2},
    **{"mixed_precision": "no", "save_images_epochs": 0, "lr_warmup_steps": 1, "checkpointing_steps": 1},
}
TINY = {
    "ddpm": {
        **{"block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 8, "prediction_type": "epsilon"},
        **{"ddpm_num_inference_steps": 2, "ddpm_beta_schedule": "linear"},
    },
    "gan": {"base_channels": 8, "latent_dim": 5, "num_clusters": 0},
    "vae": {"block_out_channels": (8, 8), "latent_channels": 3, "prior_components": 2},
    "autoregressive": {"base_channels": 8, "dilations": (1, 2), "kernel_size": 3},
    "flow": {"patch_size": 4, "num_blocks": 2, "hidden_size": 16, "attention_head_dim": 8, "pixel_channels": 0},
}
NETWORKS = [
    *((family, {}) for family in TINY),
    ("gan", {"architecture": "mlp"}),
    ("gan", {"architecture": "residual"}),
    ("gan", {"preset": "stylegan2", "latent_dim": 8, "base_channels": 1, "max_channels": 8, "num_clusters": 0}),
    ("vae", {"preset": "conv"}),
    ("vae", {"preset": "hierarchical", "block_out_channels": (8, 8)}),
    ("vae", {"preset": "vq", "num_vq_embeddings": 7}),
    ("autoregressive", {"preset": "transformer", "hidden_size": 16, "num_layers": 1, "num_attention_heads": 2}),
    ("flow", {"preset": "glow", "hidden_size": 8, "num_steps": 2}),
]


def options_of(family, changes):
    options = SHARED | TINY[family] | changes
    if options.get("preset") in ("transformer", "glow"):
        options = SHARED | changes  # a network that has none of the other options
    return options


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trains a tiny model of a family once, and returns its folder."""
    made = {}

    def train(family, **changes):
        key = family, json.dumps(changes, sort_keys=True, default=str)
        if key not in made:
            folder = tmp_path_factory.mktemp(family) / "run"
            hfgen.train(family, output_dir=str(folder), say=lambda text: None, **options_of(family, changes))
            made[key] = folder
        return made[key]

    return train


def begin(family, source, tmp_path, **options):
    """Prepares a run that begins from a checkpoint, and returns it with what it said."""
    plain = {name: value for name, value in SHARED.items() if name != "resolution"} | {"num_clusters": 0}
    said = []
    with notes_to(said.append):
        given = plain | {"init_from": str(source), "output_dir": str(tmp_path / "new")} | options
        run = prepare(collect(family, **given), said.append)
    run.lock.release()
    return run, said


@pytest.mark.parametrize(
    ("family", "changes"), NETWORKS, ids=[f"{f}-{'-'.join(map(str, c.values()))}" for f, c in NETWORKS]
)
def test_it_begins_with_the_weights_and_the_architecture(family, changes, trained, tmp_path):
    folder = trained(family, **changes)
    run, said = begin(family, folder, tmp_path)
    published = load_pipeline(str(folder)).components
    recipe = run.recipe
    pipeline = recipe.pipeline({name: network.module for name, network in recipe.networks.items()})
    compared = 0
    for part, module in pipeline.components.items():
        if any(module is n.module and n.role == TRAINED for n in recipe.networks.values()):
            theirs = published[part].state_dict()
            assert all(torch.equal(value, theirs[name]) for name, value in module.state_dict().items())
            compared += 1
    assert compared == 1
    record = json.loads((tmp_path / "new" / "run.json").read_text())
    assert record["config"]["init_from"] == str(folder) and record["init_from"] == folder.name
    assert not [text for text in said if "begins anew" in text], "a run's folder has the other networks, too"


def test_networks_that_are_not_published_come_from_the_run_or_begin_anew(trained, tmp_path):
    folder = trained("gan")
    run, _ = begin("gan", folder, tmp_path / "a")
    checkpoint = sorted(folder.glob("checkpoint-*"))[-1]
    from safetensors.torch import load_file

    saved = load_file(checkpoint / "discriminator.safetensors")
    assert all(
        torch.equal(value, saved[name]) for name, value in run.engine.modules["discriminator"].state_dict().items()
    )
    shared = shutil.copytree(folder, tmp_path / "shared", ignore=shutil.ignore_patterns("checkpoint-*", "run.json"))
    groups, said = begin("gan", folder, tmp_path / "groups", num_clusters=3)
    linear, before = groups.engine.modules["generator"].linear.weight, load_pipeline(str(folder)).components
    (generator,) = (part for part in before.values() if isinstance(part, torch.nn.Module))
    assert torch.equal(linear[:, :5], generator.linear.weight) and linear.shape[1] > 5, "inputs for classes are new"
    _, said = begin("gan", shared, tmp_path / "b")
    assert "`init_from`: discriminator begins anew, as the checkpoint has none that fits." in said


def test_a_stock_folder_of_diffusers_and_the_network_in_it(tmp_path):
    unet = UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, block_out_channels=(8, 8), norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None, flip_sin_to_cos=False, freq_shift=1, downsample_padding=0,
    )  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=50)).save_pretrained(tmp_path / "google")
    flat = shutil.copytree(tmp_path / "google", tmp_path / "flat")
    for part in ("unet", "scheduler"):  # as in google/ddpm-cifar10-32
        for file in (flat / part).iterdir():
            file.rename(flat / file.name)
        (flat / part).rmdir()
    for source, name in ((tmp_path / "google", "a"), (tmp_path / "google" / "unet", "b"), (flat, "d")):
        run, _ = begin("ddpm", source, tmp_path / name, ddpm_num_inference_steps=2)
        assert run.stream.info.resolution == 16 and run.stream.info.mode == "RGB"
        ours, theirs = run.engine.modules["unet"], unet.state_dict()
        assert ours.config.freq_shift == 1 and not ours.config.flip_sin_to_cos
        assert all(torch.equal(value, theirs[name]) for name, value in ours.state_dict().items())
        own = run.options.own
        assert (own.prediction_type, own.ddpm_beta_schedule, own.ddpm_num_steps) == ("epsilon", "linear", 50)
    larger, _ = begin("ddpm", tmp_path / "google", tmp_path / "c", resolution=32, class_conditional=True)
    assert larger.engine.modules["unet"].config.sample_size == 32, "weights of convolutions are those of any size"
    assert larger.engine.modules["unet"].config.num_class_embeds == 11


def test_classes_by_their_names(trained, tmp_path):
    folder = trained("ddpm", class_conditional=True)
    network = load_pipeline(str(folder)).unet
    before = network.class_embedding.weight
    run, _ = begin("ddpm", folder, tmp_path / "same", class_conditional=True)
    assert torch.equal(run.engine.modules["unet"].class_embedding.weight, before)
    without, _ = begin("ddpm", folder, tmp_path / "none")
    assert without.engine.modules["unet"].class_embedding is None
    rows = torch.arange(4.0)[:, None].expand(4, 2)  # a, b, c, no class
    assert class_rows(rows, 3, ("c", "new"), ("a", "b", "c"))[:, 0].tolist() == [2, 1.5, 3]
    assert class_rows(rows[:3], 2, ("c", "a"), ("a", "b", "c"))[:, 0].tolist() == [2, 0]
    assert class_rows(rows, 5, None, ("a", "b", "c"))[:, 0].tolist() == [0, 1, 2, 3, 1.5]
    for family in TINY:
        module = begin(family, trained(family), tmp_path / family, class_conditional=True)[0].recipe
        tables = [table for n in module.networks.values() for table in class_tables(n.module).values()]
        assert tables and all(len(table.weight) in (10, 11) for table in tables), family


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("ddpm", {"image_mode": "RGB"}, "in_channels 1 there and 3 here, .*Use `image_mode` L"),
        ("gan", {"resolution": 16}, "sample_size 8 there and 16 here.* Use `resolution` 8"),
        ("gan", {"latent_dim": 6}, "latent_dim 5 there and 6 here.* Use `latent_dim` 5"),
        ("vae", {"latent_channels": 4}, "latent_channels 3 there and 4 here.* Use `latent_channels` 3"),
        ("gan", {"architecture": "mlp"}, "holds a DCGANGenerator, and this run trains a MLPGenerator: train gan"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_with_the_option_that_would(family, options, message, trained, tmp_path):
    with pytest.raises(UserError, match=f"`init_from` .*{message}"):
        begin(family, trained(family), tmp_path, **options)
    assert not (tmp_path / "new").exists()


def test_what_is_no_checkpoint(trained, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="holds a DCGANGenerator, and this run trains a ResidualVAE: train gan"):
        begin("vae", trained("gan"), tmp_path)
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="`init_from` .*photos holds no checkpoint: give the `output_dir`"):
        Start(str(tmp_path / "photos"))
    with pytest.raises(UserError, match="`init_from` nobody/nothing cannot be loaded"):
        Start("nobody/nothing")
    broken = shutil.copytree(trained("gan"), tmp_path / "broken", ignore=shutil.ignore_patterns("checkpoint-*"))
    (config,) = (path for path in broken.glob("*/config.json") if "Generator" in path.read_text())
    config.write_text(json.dumps({"_class_name": "DCGANGenerator"}))
    with pytest.raises(UserError, match="the configuration of its DCGANGenerator is broken"):
        begin("gan", broken, tmp_path)
    config.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        begin("gan", broken, tmp_path)


def test_it_learns_on_is_resumed_and_says_from_what(trained, tmp_path):
    source, folder = trained("gan"), tmp_path / "new"
    given = {name: value for name, value in SHARED.items() if name != "resolution"}
    given |= {"init_from": str(source), "output_dir": str(folder), "say": lambda text: None}
    hfgen.train("gan", **given)
    whole = {path.name: path.read_bytes() for path in folder.glob("checkpoint-*/generator.safetensors")}
    assert "Its training began with the weights of" in (folder / "README.md").read_text()
    assert str(tmp_path) not in (folder / "README.md").read_text().split("began with")[1].split("\n")[0]
    last = sorted(folder.glob("checkpoint-*"))[-1]
    expected = (last / "generator.safetensors").read_bytes()
    shutil.rmtree(last)
    moved = source.rename(source.parent / "away")  # a run that goes on needs its beginning no more
    try:
        hfgen.train("gan", **given, resume_from_checkpoint="latest")
    finally:
        moved.rename(source)
    assert whole and (last / "generator.safetensors").read_bytes() == expected


def test_frozen_parts_stay_and_others_learn_slower(trained, tmp_path):
    folder = trained("ddpm")
    given = {"freeze": ("unet.down_blocks.*", "unet.conv_in"), "lower_rates": ("unet.mid_block.*=0.1",)}
    run, _ = begin("ddpm", folder, tmp_path, **given, ddpm_num_inference_steps=2)
    before = {name: value.clone() for name, value in run.engine.modules["unet"].state_dict().items()}
    run.train()
    after = run.engine.modules["unet"].state_dict()
    still = {name.split(".")[0] for name in before if torch.equal(before[name], after[name])}
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert {"down_blocks", "conv_in"} <= still and not {"down_blocks", "conv_in"} & moved and "up_blocks" in moved
    rates = {group["peak"]: len(group["params"]) for group in run.engine.optimizers["unet"].param_groups}
    assert set(rates) == {1e-3, 1e-4} and rates[1e-4] == sum(name.startswith("mid_block") for name in before)
    for options, message in [
        (
            {"freeze": ("unet.up",)},
            "`freeze` unet.up is the name of no weights. Those there are begin with: unet.conv_in",
        ),
        ({"freeze": ("unet",)}, "`freeze` unet leaves phase 'unet' nothing to train"),
        ({"lower_rates": ("decoder=0.1",)}, "`lower_rates` decoder is the name of no weights"),
        ({"lower_rates": ("unet.mid_block",)}, "`lower_rates` unet.mid_block: give names, = and a factor"),
    ]:
        with pytest.raises(UserError, match=message):
            begin("ddpm", folder, tmp_path / "mistake", **options)


def test_a_model_of_codes(trained, tmp_path):
    """The size of its network is that of the grid of codes, and not of the images."""
    codebook = trained("vae", preset="vq", num_vq_embeddings=7)
    transformer = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2}
    given = {"preset": "codes", "codes_from": str(codebook), "num_clusters": 0, **transformer}
    folder = tmp_path / "codes"
    hfgen.train("autoregressive", output_dir=str(folder), say=lambda text: None, **SHARED, **given)
    adopted = Start(str(folder)).options(find_family("autoregressive"))
    assert adopted["draws"] == "codes" and adopted["resolution"] is adopted["image_mode"] is None
    run, _ = begin("autoregressive", folder, tmp_path, preset="codes", codes_from=str(codebook), resolution=8)
    assert run.options.own.draws == "codes" and run.stream.info.resolution == 8
    theirs = load_pipeline(str(folder)).model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in run.engine.modules["model"].state_dict().items())
