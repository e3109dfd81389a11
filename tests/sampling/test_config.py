"""Sampling options: what all models have, what one has, and what comes of those that were given."""

import dataclasses
import subprocess
import sys
from dataclasses import dataclass

import pytest

from hfgen import registry
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import Options, option
from hfgen.sampling.config import (
    DDPMSamplingConfig,
    FlowSamplingConfig,
    GANSamplingConfig,
    NoOptions,
    SamplingConfig,
    VAESamplingConfig,
    all_sampling_options,
    choose_options,
    given_values,
    share_options,
)
from hfgen.sampling.ddpm import DDPMAdapter
from hfgen.sampling.gan import GANAdapter


@dataclass(frozen=True)
class Other(Options):
    """Sampling of another family."""

    temperature: float = option(0.7, "another default")
    num_inference_steps: int | None = option(None, "steps")
    solver: str = option("euler", "how")


@dataclass(frozen=True)
class Clash(Options):
    """Sampling of others."""

    temperature: str = option("hot", "a word")


@pytest.fixture
def family(monkeypatch):
    """Adds a family with sampling options of a class of this file."""

    def add(kind):
        entry = registry.PipelineEntry("x:XPipeline", "x:XAdapter", f"{__name__}:{kind.__name__}")
        other = dataclasses.replace(
            registry.find_family("gan"),
            name=kind.__name__.lower(),
            pipelines=(entry, registry.PipelineEntry("x:Y", "x:Y")),
        )
        known = {**registry.families(), other.name: other}
        monkeypatch.setattr("hfgen.sampling.config.families", lambda: known)

    return add


def names(kinds):
    return [field.name for kind in kinds for field in dataclasses.fields(kind)]


def test_every_option_is_there_once(family):
    ours = all_sampling_options()
    assert ours[:4] == [SamplingConfig, DDPMSamplingConfig, GANSamplingConfig, VAESamplingConfig]
    assert names([FlowSamplingConfig]) == ["temperature", "guidance_scale"]  # which others have, too
    assert names(ours).count("temperature") == 1
    family(Other)
    kinds = all_sampling_options()
    assert names(kinds) == [*names(ours), "solver"] and kinds[-1].__doc__ == Other.__doc__
    with pytest.raises(UserError, match="`solver` is 3, but must be str"):
        kinds[-1](solver=3)  # what is left of a class checks its values, too


def test_one_name_for_two_types_is_an_error(family):
    family(Clash)
    with pytest.raises(UserError, match="'temperature' is .*float.* for vae, but .*str.* for clash"):
        all_sampling_options()


def test_options_go_to_those_that_have_them():
    gan, ddpm = GANAdapter(None), DDPMAdapter(None)
    given = {"class_labels": [3, "cat"], "truncation": 0.5, "sampler": None}
    common, own = choose_options(gan, given, "it")
    assert common == SamplingConfig(class_labels=("3", "cat")) and own == GANSamplingConfig(truncation=0.5)
    shared = share_options({"a": gan, "b": ddpm}, {"truncation": 0.5, "num_inference_steps": 3})
    assert shared["a"][1] == GANSamplingConfig(truncation=0.5)
    assert shared["b"][1] == DDPMSamplingConfig(num_inference_steps=3)
    with pytest.raises(UserError, match="`prior` normal: no model here has it"):
        share_options({"a": GANAdapter(object()), "b": ddpm}, {"prior": "normal"})
    with pytest.raises(UserError, match="`num_inference_steps` 0 is out of range"):
        choose_options(ddpm, {"num_inference_steps": 0})
    gan.options = NoOptions
    with pytest.raises(UserError, match="`truncation` 1.0: it is a GAN, which has no options of its own. Leave"):
        choose_options(gan, {"truncation": 1.0}, "it")


def test_given_values_are_those_that_differ():
    options = (SamplingConfig(class_labels=("1",)), GANSamplingConfig(), DDPMSamplingConfig(sampler="ddim"))
    assert given_values(options) == {"class_labels": ("1",), "sampler": "ddim"}
    assert SamplingConfig(class_labels=3).class_labels == ("3",)


def test_options_import_no_torch():
    code = "import sys, hfgen.sampling.config as it; it.all_sampling_options(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
