"""Options in their second stage: what was left out becomes numbers, from the data and the machine, without torch."""

import inspect
import subprocess
import sys
from types import SimpleNamespace

import pytest

from hfgen.families.ddpm.options import DDPMConfig
from hfgen.families.gan.networks import make_networks
from hfgen.families.gan.options import GANConfig
from hfgen.families.vae.networks import ARCHITECTURES
from hfgen.families.vae.options import VAEConfig
from hfgen.models.unet2d import build_unet
from hfgen.registry import families, find_family
from hfgen.runtime.machine import Machine

DATA = SimpleNamespace(resolution=28, channels=1)
CPU, GPU = Machine("cpu", 8 << 30), Machine("cuda", 80 << 30)


def resolve(family, options, machine=CPU):
    return find_family(family).load("resolve")(options, DATA, machine)


def test_nothing_is_left_open_that_a_network_needs():
    gan = resolve("gan", GANConfig(architecture="residual", base_channels=24, learning_rate=2e-3))
    assert (gan.group_width, gan.discriminator_learning_rate) == (0, 2e-3)
    gan = resolve("gan", GANConfig(architecture="residual", base_channels=24), GPU)
    assert gan.group_width == 8
    generator, discriminator = make_networks(gan, 8, 1, None)
    assert generator.config.group_width == discriminator.config.group_width == 8
    assert resolve("gan", GANConfig(), GPU).group_width is None  # dcgan has none
    given = GANConfig(architecture="residual", group_width=4, discriminator_learning_rate=1e-4)
    assert resolve("gan", given, GPU) == given

    assert resolve("ddpm", DDPMConfig(block_out_channels=(32, 64, 64))).attention_resolutions == (7,)
    for given in (DDPMConfig(attention_resolutions=()), DDPMConfig(model_config_name_or_path="x")):
        assert resolve("ddpm", given) == given
    left, named = (build_unet(28, 1, (32, 64, 64), attention_resolutions=sizes) for sizes in (None, (7,)))
    assert left.config == named.config

    assert resolve("vae", VAEConfig(task="denoise")).task_level == 0.3
    assert resolve("vae", VAEConfig(task="super_resolve")).task_level == 2.0
    assert resolve("vae", VAEConfig(task="denoise", task_level=0.1)).task_level == 0.1
    given = VAEConfig(latent_channels=3, block_out_channels=(8,))
    assert resolve("vae", given) == given


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_defaults_of_the_vaes_are_those_of_their_networks(architecture):
    options = resolve("vae", VAEConfig(architecture=architecture))
    parameters = inspect.signature(ARCHITECTURES[architecture].network.__init__).parameters
    for name in ("latent_channels", "block_out_channels"):
        assert getattr(options, name) == parameters[name].default, name


@pytest.mark.parametrize("family", families())
def test_twice_is_once(family):
    options = find_family(family).load("options")()
    once = resolve(family, options, GPU)
    assert resolve(family, once, CPU) == once  # a record is resolved already, whatever machine reads it


def test_no_torch():
    code = "import sys\nfrom hfgen.registry import families\nfrom hfgen.runtime.machine import Machine\n"
    code += "[(f.load('resolve'), f.load('options')) for f in families().values()]\nprint('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_this_machine(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    here = Machine.here()
    assert here.kind == "cpu" and here.memory > 1 << 28
