"""The DDPM recipe, without the loop."""

import dataclasses

import pytest
import torch
from diffusers import DDPMPipeline
from helpers import data_info, modules_of

from hfgen.families.ddpm.options import DDPMConfig
from hfgen.families.ddpm.recipe import DDPMRecipe
from hfgen.pipelines.ddpm_sampling import ClassConditionalDDPMPipeline
from hfgen.runtime.errors import UserError
from hfgen.sampling.sampler import Sampler
from hfgen.training.random import StepRandom
from hfgen.training.recipe import Batch, Progress

INFO = data_info(class_names=("a", "b", "c"))
TINY = DDPMConfig(block_out_channels=(8, 8), norm_num_groups=4, attention_head_dim=8)


def batch_of(images, seen, labels=None):
    return Batch({"image": images, "label": labels}, StepRandom(0, seen, len(images)))


@pytest.mark.parametrize("conditional", [False, True])
def test_plain_torch_trains_it(conditional):
    torch.manual_seed(0)
    recipe = DDPMRecipe(dataclasses.replace(TINY, class_conditional=conditional), INFO)
    optimizer = torch.optim.AdamW(recipe.networks["unet"].module.parameters(), lr=3e-3)
    images = torch.full((32, 1, 8, 8), -1.0)
    images[:, :, 2:6, 2:6] = 1
    labels = torch.arange(32) % 3
    losses = []
    for step in range(60):
        batch = batch_of(images, step * 32, labels if conditional else None)
        loss, metrics = recipe.loss(recipe.phases[0], batch, Progress(step * 32, step / 60))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        assert torch.equal(metrics["loss"], loss.detach())
    assert losses[0] == pytest.approx(1.0, rel=0.5)  # a network that says zero
    assert sum(losses[-10:]) / 10 < 0.5 * losses[0]


def test_a_loss_is_a_pure_function():
    recipe = DDPMRecipe(TINY, INFO)
    torch.nn.init.normal_(recipe.networks["unet"].module.conv_out.weight)
    images = torch.rand(16, 1, 8, 8)
    first, second = (recipe.loss(recipe.phases[0], batch_of(images, 640), Progress(640, 0.1))[0] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, recipe.loss(recipe.phases[0], batch_of(images, 656), Progress(656, 0.1))[0])


def test_quarters_of_the_schedule_are_logged():
    recipe = DDPMRecipe(TINY, INFO)
    _, metrics = recipe.loss(recipe.phases[0], batch_of(torch.rand(16, 1, 8, 8), 0), Progress(0, 0))
    pairs = [metrics[f"noise_mse_{quarter}"] for quarter in (1, 2, 3, 4)]
    assert [pair[1].item() for pair in pairs] == [4, 4, 4, 4]


def test_labels_are_dropped_in_the_share_asked_for():
    recipe = DDPMRecipe(dataclasses.replace(TINY, class_conditional=True, label_dropout=0.25), INFO)
    assert recipe.networks["unet"].module.config.num_class_embeds == 4
    seen = []
    unet = recipe.networks["unet"].module
    unet.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["class_labels"]), with_kwargs=True)
    labels = torch.arange(512) % 3
    recipe.loss(recipe.phases[0], batch_of(torch.rand(512, 1, 8, 8), 0, labels), Progress(0, 0))
    dropped = seen[0] == recipe.null_class
    assert torch.equal(seen[0][~dropped], labels[~dropped])
    assert 0.15 < dropped.float().mean().item() < 0.35


def test_images_without_a_class_train_the_null_class():
    recipe = DDPMRecipe(dataclasses.replace(TINY, class_conditional=True), data_info(unlabelled=1))
    images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, -1, 2, -1])
    loss, _ = recipe.loss(recipe.phases[0], batch_of(images, 0, labels), Progress(0, 0))
    loss.backward()
    torch.nn.init.normal_(recipe.networks["unet"].module.conv_out.weight)
    assert loss.isfinite()


def test_pipelines():
    plain = DDPMRecipe(TINY, INFO)
    assert isinstance(plain.pipeline(modules_of(plain)), DDPMPipeline)
    conditional = DDPMRecipe(dataclasses.replace(TINY, class_conditional=True), INFO)
    pipe = conditional.pipeline(modules_of(conditional))
    assert isinstance(pipe, ClassConditionalDDPMPipeline)
    assert pipe.class_names == ["a", "b", "c"]
    assert pipe.null_class == 3
    unguided = DDPMRecipe(dataclasses.replace(TINY, class_conditional=True, label_dropout=0.0), INFO)
    assert unguided.pipeline(modules_of(unguided)).null_class is None
    for recipe in (plain, conditional, unguided):
        sampler = Sampler(recipe.pipeline(modules_of(recipe)), recipe.sampling, "it")
        assert sampler([0, 1], 0).shape == (2, 1, 8, 8)
        assert sampler.settings["num_inference_steps"] == TINY.ddpm_num_inference_steps
    short = DDPMRecipe(dataclasses.replace(TINY, ddpm_num_steps=10), INFO)  # fewer than the steps that are usual
    assert short.sampling.num_inference_steps == 10
    assert Sampler(short.pipeline(modules_of(short)), short.sampling, "it")([0], 0).shape == (1, 1, 8, 8)


def test_channels_follow_the_data():
    for mode, channels in (("L", 1), ("RGB", 3), ("RGBA", 4)):
        unet = DDPMRecipe(TINY, data_info(mode=mode)).networks["unet"].module
        assert (unet.config.in_channels, unet.config.out_channels) == (channels, channels)


@pytest.mark.parametrize(
    ("changes", "info", "message"),
    [
        ({"rescale_betas_zero_snr": True, "prediction_type": "epsilon"}, {}, "`rescale_betas_zero_snr` does not go"),
        ({"block_out_channels": (8, 8, 8, 8, 8)}, {}, "`resolution` does not fit `resolution` 8"),
        ({"attention_resolutions": (5,)}, {}, "`attention_resolutions` does not fit"),
        ({"attention_head_dim": 16}, {}, "`attention_head_dim` does not fit .*a level with attention has 8"),
        ({"block_out_channels": (8, 6)}, {}, "`block_out_channels` 6 is no multiple of `norm_num_groups` 4"),
        ({"block_out_channels": (8, 12)}, {}, "no multiple of `attention_head_dim` 8"),
        ({"class_conditional": True}, {"class_names": None}, "`class_conditional` needs labels"),
        ({"class_conditional": True, "label_dropout": 0.0}, {"unlabelled": 2}, "2 of the images have no class"),
        ({"class_conditional": True}, {"unlabelled": 100}, "needs labels, and none of the 100 images of test has one"),
        ({"label_dropout": 1.0}, {}, "`label_dropout` 1.0"),
        ({"learning_rate": 0.0}, {}, "`learning_rate` 0.0"),
    ],
)
def test_mistakes(changes, info, message):
    with pytest.raises(UserError, match=message):
        DDPMRecipe(dataclasses.replace(TINY, **changes), data_info(**info))


def test_a_model_config_from_a_file(tmp_path):
    DDPMRecipe(dataclasses.replace(TINY, class_conditional=True), INFO).networks["unet"].module.save_config(tmp_path)
    given = dataclasses.replace(TINY, class_conditional=True, model_config_name_or_path=str(tmp_path))
    unet = DDPMRecipe(given, data_info(resolution=16)).networks["unet"].module
    assert unet.config.sample_size == 16
    assert unet.conv_out.weight.abs().max() == 0
    other = DDPMRecipe(given, data_info(class_names=tuple("abcde"), mode="RGB")).networks["unet"].module
    assert other.config.num_class_embeds == 6, "those of the run, 'no class' included"
    assert (other.config.in_channels, other.config.out_channels) == (3, 3)
    assert other.config.block_out_channels == unet.config.block_out_channels
    with pytest.raises(UserError, match="cannot be halved"):
        DDPMRecipe(given, data_info(resolution=9))
    with pytest.raises(UserError, match="cannot be loaded"):
        DDPMRecipe(dataclasses.replace(given, model_config_name_or_path=str(tmp_path / "absent")), INFO)
