"""Images from seeds: what holds for every family, one from outside included."""

import pytest
import torch
from evaluation.tiny import save_model

import hfgen
from hfgen.models.conv_vae import ConvVAE
from hfgen.models.dcgan import DCGANGenerator
from hfgen.models.gaussian_mixture import GaussianMixturePrior
from hfgen.models.hierarchical_vae import HierarchicalVAE
from hfgen.models.vq_vae import VQVAE
from hfgen.pipelines.ddpm_sampling import denoise, sampling_scheduler
from hfgen.pipelines.gan import GANPipeline
from hfgen.pipelines.vae import VAEPipeline
from hfgen.runtime.errors import UserError
from hfgen.runtime.machine import Machine
from hfgen.sampling.capabilities import Generates
from hfgen.sampling.config import DDPMSamplingConfig, GANSamplingConfig, VAESamplingConfig
from hfgen.sampling.loading import load_pipeline
from hfgen.sampling.sampler import Sampler, image_generators, load_sampler

SMALL = {"sample_size": 8, "in_channels": 1, "latent_channels": 4, "block_out_channels": (8, 8)}
KINDS = ("gan", "stylegan2", "vae", "ddpm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        save_model(folder / kind, kind)
    return folder


def toy():
    from toy_ar.model import PixelCNN
    from toy_ar.pipeline import ToyARPipeline

    torch.manual_seed(0)
    return ToyARPipeline(PixelCNN(sample_size=4))


@pytest.mark.parametrize("kind", [*KINDS, "toy"])
@pytest.mark.usefixtures("toys")
def test_an_image_depends_on_its_seed_alone(folder, kind):
    sampler = Sampler(toy()) if kind == "toy" else load_sampler(str(folder / kind))
    whole = sampler(range(6), 10)
    assert whole.dtype == torch.uint8 and whole.shape == (6, *sampler.image_shape)
    assert len(whole.flatten(1).unique(dim=0)) > 1
    parts = torch.cat([sampler([4, 5], 10), sampler(range(4), 10)])
    assert (parts[[2, 3, 4, 5, 0, 1]].int() - whole.int()).abs().max() <= 1
    assert not torch.equal(sampler(range(5), 11)[:5], whole[1:])  # neighbouring seeds share nothing


def test_images_are_those_of_the_pipelines(folder):
    generators = image_generators(3, range(4))
    pipe = load_pipeline(str(folder / "gan"))
    expected = pipe(4, class_labels=[0, 1, 2, 3], generator=generators, output_type="pt").images
    assert torch.equal(Sampler(pipe)(range(4), 3), (expected * 255).round().to(torch.uint8))
    pipe = load_pipeline(str(folder / "ddpm"))
    scheduler = sampling_scheduler(pipe.scheduler, "ddim")
    expected = denoise(pipe.unet, scheduler, 4, image_generators(3, range(4)), 5)
    sampler = Sampler(pipe, DDPMSamplingConfig(sampler="ddim", num_inference_steps=5))
    assert torch.equal(sampler(range(4), 3), (expected * 255).round().to(torch.uint8))
    assert sampler.settings == {"sampler": "ddim", "num_inference_steps": 5, "guidance_scale": None}
    assert sampler.adapter.passes(sampler.options) == 5
    assert sampler.fastest().options.num_inference_steps == 1 and sampler.options.num_inference_steps == 5


def test_memory_that_runs_out_halves_the_batch(folder, monkeypatch):
    sampler = load_sampler(str(folder / "vae"))
    whole, sizes, generate = sampler(range(6), 0), [], sampler.adapter.generate

    def small(generators, labels, options):
        sizes.append(len(generators))
        if len(generators) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return generate(generators, labels, options)

    monkeypatch.setattr(sampler.adapter, "generate", small)
    assert (sampler(range(6), 0).int() - whole.int()).abs().max() <= 1
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1] and sampler.at_once == 1


def test_classes_come_in_turn_or_are_drawn():
    torch.manual_seed(0)
    model = DCGANGenerator(sample_size=8, latent_dim=4, base_channels=4, num_class_embeds=3)
    pipe = GANPipeline(model, id2label={0: "cat", 1: "dog", 2: "7"})
    assert Sampler(pipe).classes == [0, 1, 2] and Sampler(pipe).class_of(4, seed=0) == 1
    rare = Sampler(pipe).with_shares([0.1, 0.9, 0.0])
    drawn = [rare.class_of(index, seed=0) for index in range(300)]
    assert set(drawn) == {0, 1} and 15 < drawn.count(0) < 50
    labels = torch.tensor(drawn[:4])
    expected = pipe(class_labels=labels, generator=image_generators(0, range(4)), output_type="pt").images
    assert torch.equal(rare(range(4), 0), (expected * 255).round().to(torch.uint8))
    assert Sampler(pipe, class_labels=("dog",)).with_shares([1.0, 0.0, 0.0]).class_of(0, seed=0) == 1
    assert Sampler(pipe, class_labels=("dog", "0", "7")).classes == [1, 0, 2]
    with pytest.raises(
        UserError, match="`class_labels` cow: it has no such class. Use a number below 3 or one of cat"
    ):
        Sampler(pipe, name="it", class_labels=("cow",))
    groups = GANPipeline(model, class_shares=[0.2, 0.3, 0.5])
    sampler = Sampler(groups)
    assert sampler.grouped and sampler.classes is None and sampler.class_of(0, seed=0) is None
    assert sampler.with_shares([1.0, 0.0, 0.0]) is sampler
    assert sampler.adapter.classes.shares == (0.2, 0.3, 0.5)
    assert Sampler(groups, class_labels=("2",)).classes == [2]
    labels = GANPipeline(model, class_shares=[0.2, 0.3, 0.5], class_kind="labels")
    assert not Sampler(labels).grouped and Sampler(labels).adapter.classes.shares == (0.2, 0.3, 0.5)
    with pytest.raises(ValueError, match="class_kind is 'kinds', but must be labels or groups"):
        GANPipeline(model, class_kind="kinds")
    plain = GANPipeline(DCGANGenerator(sample_size=8, latent_dim=4, base_channels=4))
    with pytest.raises(UserError, match="`class_labels` 1: it knows no classes"):
        Sampler(plain, name="it", class_labels=("1",))


def test_options_that_do_not_fit_name_the_model(folder):
    with pytest.raises(UserError, match="`sampler` ddim: .*gan is a GAN, which has truncation instead"):
        load_sampler(str(folder / "gan"), {"sampler": "ddim"})
    with pytest.raises(UserError, match="gan: `truncation` 0.5: this model has no mean latent"):
        load_sampler(str(folder / "gan"), {"truncation": 0.5})
    with pytest.raises(
        UserError, match="`temperatur` 1: .* which has temperature, prior instead. Did you mean tempera"
    ):
        load_sampler(str(folder / "vae"), {"temperatur": 1})
    with pytest.raises(UserError, match="ddpm: `guidance_scale` 2.0: this model knows no classes"):
        load_sampler(str(folder / "ddpm"), {"guidance_scale": 2.0})
    with pytest.raises(UserError, match="vae: `prior` mixture: none was fitted to this model"):
        load_sampler(str(folder / "vae"), {"prior": "mixture"})
    with pytest.raises(UserError, match="fp16 does not exist on a CPU"):
        load_sampler(str(folder / "vae"), {"mixed_precision": "fp16"})
    assert load_sampler(str(folder / "stylegan2"), {"truncation": 0.5}).options == GANSamplingConfig(truncation=0.5)


def test_images_that_are_not_finite_are_refused():
    pipe = VAEPipeline(ConvVAE(sample_size=8, latent_channels=4, block_out_channels=(8, 8)))
    for parameter in pipe.model.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(UserError, match="it makes images with NaN or infinite values, 2 of 2"):
        Sampler(pipe, name="it")(range(2), 0)


def test_a_model_that_makes_no_images_is_refused(toys):
    from toy_pair.model import Translator
    from toy_pair.pipeline import ToyPairPipeline

    with pytest.raises(UserError, match="it is a translator, which makes no images from seeds"):
        Sampler(ToyPairPipeline(Translator(8)), name="it")


def test_from_python(folder):
    images = hfgen.sample(str(folder / "gan"), num_images=5, seed=2, batch_size=2, class_labels=3)
    expected = load_sampler(str(folder / "gan"), {"class_labels": (3,)})(range(5), 2)
    assert [image.size for image in images] == [(8, 8)] * 5
    found = torch.stack([torch.tensor(list(image.get_flattened_data())) for image in images]).int()
    assert (found - expected.flatten(1).int()).abs().max() <= 1
    with pytest.raises(UserError, match="`num_images` 0 is out of range"):
        hfgen.sample(str(folder / "gan"), num_images=0)


def test_memory_for_the_images_is_estimated_beforehand(folder, monkeypatch):
    for name in ("here", "host"):
        monkeypatch.setattr(Machine, name, classmethod(lambda cls: cls("cpu", 10**9)))
    gan = str(folder / "gan")
    load_sampler(gan).check_memory(num_images=1000, batch_size=2**20)  # there is no larger batch than all of them
    with pytest.raises(UserError, match="^`batch_size` 1000000: 1000000 images of 1x8x8 at once need 5.312 GB, and"):
        hfgen.sample(gan, num_images=10**6, batch_size=10**6)
    with pytest.raises(UserError, match="^`num_images` 1000000: so many images, kept until all .* need 1.064 GB, and"):
        hfgen.sample(gan, num_images=10**6, batch_size=2)


@pytest.mark.parametrize(
    ("pipe", "prior", "message"),
    [
        (
            lambda: VAEPipeline(ConvVAE(**SMALL)),
            "mixture",
            "it: `prior` mixture: none was fitted to this model. Leave",
        ),
        (lambda: VAEPipeline(HierarchicalVAE(**SMALL | {"block_out_channels": (8, 8)})), "mixture", "`prior` mixture"),
        (lambda: quantised(), "normal", "it: `prior` normal: this model quantises latents, which are not normal"),
    ],
)
def test_a_prior_that_there_is_not(pipe, prior, message):
    with pytest.raises(UserError, match=message):
        Sampler(pipe(), VAESamplingConfig(prior=prior), name="it")
    assert Sampler(pipe(), name="it").options.prior is None


def quantised():
    vae = VQVAE(**SMALL)
    return VAEPipeline(vae, GaussianMixturePrior(vae.latent_shape))


def test_an_adapter_may_speak_for_its_pipeline_itself(folder):
    """Without a registry: what is asked for is the adapter alone."""

    class Stripes(Generates):
        kind = "stripes"
        image_shape = (1, 2, 2)

        def generate(self, generators, labels, options):
            return torch.stack([torch.rand(1, 1, 2, generator=one).expand(1, 2, 2) for one in generators])

    sampler = Sampler(Stripes(load_pipeline(str(folder / "vae"))), name="it")
    assert sampler(range(3), 0).shape == (3, 1, 2, 2) and sampler.settings == {}
