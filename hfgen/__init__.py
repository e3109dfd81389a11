"""hfgen: train, use and share image generators that you understand from end to end."""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Public names and where they are defined. They are imported on first use (PEP 562), so that `import hfgen` costs
# nothing and `--help` of a script does not wait for torch.
_PUBLIC = {
    "ClassConditionalDDPMPipeline": "hfgen.pipelines.ddpm_sampling",
    "ConvVAE": "hfgen.models.conv_vae",
    "DCGANDiscriminator": "hfgen.models.dcgan",
    "DCGANGenerator": "hfgen.models.dcgan",
    "DDPMConfig": "hfgen.training.config",
    "DDPMRecipe": "hfgen.training.ddpm",
    "DataConfig": "hfgen.data.config",
    "Evaluator": "hfgen.evaluation.runner",
    "GANConfig": "hfgen.training.config",
    "GANPipeline": "hfgen.pipelines.gan",
    "GANRecipe": "hfgen.training.gan",
    "GaussianMixturePrior": "hfgen.models.gaussian_mixture",
    "HierarchicalVAE": "hfgen.models.hierarchical_vae",
    "MLPDiscriminator": "hfgen.models.mlp_gan",
    "MLPGenerator": "hfgen.models.mlp_gan",
    "Recipe": "hfgen.training.recipe",
    "ReferenceConfig": "hfgen.evaluation.config",
    "ResidualDiscriminator": "hfgen.models.residual_gan",
    "ResidualGenerator": "hfgen.models.residual_gan",
    "ResidualVAE": "hfgen.models.residual_vae",
    "Sampler": "hfgen.evaluation.sampling",
    "SamplingConfig": "hfgen.evaluation.config",
    "StyleGAN2Discriminator": "hfgen.models.stylegan2",
    "StyleGAN2Generator": "hfgen.models.stylegan2",
    "Trainer": "hfgen.training.loop",
    "TrainingConfig": "hfgen.training.config",
    "UserError": "hfgen.errors",
    "VAEConfig": "hfgen.training.config",
    "VAEPipeline": "hfgen.pipelines.vae",
    "VAERecipe": "hfgen.training.vae",
    "VQVAE": "hfgen.models.vq_vae",
    "denoise": "hfgen.pipelines.ddpm_sampling",
    "evaluate": "hfgen.evaluation.runner",
    "load_extractor": "hfgen.evaluation.features",
    "load_pipeline": "hfgen.pipelines",
    "load_sampler": "hfgen.evaluation.sampling",
    "open_images": "hfgen.data.images",
    "sampling_scheduler": "hfgen.pipelines.ddpm_sampling",
}

if TYPE_CHECKING:
    from hfgen.data.config import DataConfig
    from hfgen.data.images import open_images
    from hfgen.errors import UserError
    from hfgen.evaluation.config import ReferenceConfig, SamplingConfig
    from hfgen.evaluation.features import load_extractor
    from hfgen.evaluation.runner import Evaluator, evaluate
    from hfgen.evaluation.sampling import Sampler, load_sampler
    from hfgen.models.conv_vae import ConvVAE
    from hfgen.models.dcgan import DCGANDiscriminator, DCGANGenerator
    from hfgen.models.gaussian_mixture import GaussianMixturePrior
    from hfgen.models.hierarchical_vae import HierarchicalVAE
    from hfgen.models.mlp_gan import MLPDiscriminator, MLPGenerator
    from hfgen.models.residual_gan import ResidualDiscriminator, ResidualGenerator
    from hfgen.models.residual_vae import ResidualVAE
    from hfgen.models.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
    from hfgen.models.vq_vae import VQVAE
    from hfgen.pipelines import load_pipeline
    from hfgen.pipelines.ddpm_sampling import ClassConditionalDDPMPipeline, denoise, sampling_scheduler
    from hfgen.pipelines.gan import GANPipeline
    from hfgen.pipelines.vae import VAEPipeline
    from hfgen.training.config import DDPMConfig, GANConfig, TrainingConfig, VAEConfig
    from hfgen.training.ddpm import DDPMRecipe
    from hfgen.training.gan import GANRecipe
    from hfgen.training.loop import Trainer
    from hfgen.training.recipe import Recipe
    from hfgen.training.vae import VAERecipe

__all__ = [
    "VQVAE",
    "ClassConditionalDDPMPipeline",
    "ConvVAE",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "DDPMConfig",
    "DDPMRecipe",
    "DataConfig",
    "Evaluator",
    "GANConfig",
    "GANPipeline",
    "GANRecipe",
    "GaussianMixturePrior",
    "HierarchicalVAE",
    "MLPDiscriminator",
    "MLPGenerator",
    "Recipe",
    "ReferenceConfig",
    "ResidualDiscriminator",
    "ResidualGenerator",
    "ResidualVAE",
    "Sampler",
    "SamplingConfig",
    "StyleGAN2Discriminator",
    "StyleGAN2Generator",
    "Trainer",
    "TrainingConfig",
    "UserError",
    "VAEConfig",
    "VAEPipeline",
    "VAERecipe",
    "__version__",
    "denoise",
    "evaluate",
    "load_extractor",
    "load_pipeline",
    "load_sampler",
    "open_images",
    "sampling_scheduler",
]


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'hfgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
