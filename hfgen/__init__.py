"""hfgen: train, use and share image generators that you understand from end to end."""

import importlib
from typing import TYPE_CHECKING

from hfgen.runtime.version import __version__

# Public names and where they are defined. They are imported on first use (PEP 562), so that `import hfgen` costs
# nothing and `--help` does not wait for torch.
_PUBLIC = {
    "AdamW": "hfgen.training.recipe",
    "Adapter": "hfgen.sampling.capabilities",
    "AutoregressiveConfig": "hfgen.families.autoregressive.options",
    "AutoregressivePipeline": "hfgen.pipelines.autoregressive",
    "AutoregressiveRecipe": "hfgen.families.autoregressive.recipe",
    "Batch": "hfgen.training.recipe",
    "CausalTransformer": "hfgen.models.causal_transformer",
    "ClassConditionalDDPMPipeline": "hfgen.pipelines.ddpm_sampling",
    "Classes": "hfgen.data.columns",
    "ConvVAE": "hfgen.models.conv_vae",
    "DCGANDiscriminator": "hfgen.models.dcgan",
    "DCGANGenerator": "hfgen.models.dcgan",
    "DDPMConfig": "hfgen.families.ddpm.options",
    "DDPMRecipe": "hfgen.families.ddpm.recipe",
    "DDPMRestorationPipeline": "hfgen.pipelines.ddpm_restoration",
    "DataConfig": "hfgen.data.config",
    "DataInfo": "hfgen.data.info",
    "Density": "hfgen.sampling.capabilities",
    "Engine": "hfgen.training.engine",
    "Evaluator": "hfgen.evaluation.runner",
    "Family": "hfgen.registry",
    "FastGANDiscriminator": "hfgen.models.fastgan",
    "FastGANGenerator": "hfgen.models.fastgan",
    "FlowConfig": "hfgen.families.flow.options",
    "FlowPipeline": "hfgen.pipelines.flow",
    "FlowRecipe": "hfgen.families.flow.recipe",
    "GANConfig": "hfgen.families.gan.options",
    "GANPipeline": "hfgen.pipelines.gan",
    "GANRecipe": "hfgen.families.gan.recipe",
    "GaussianMixturePrior": "hfgen.models.gaussian_mixture",
    "Generates": "hfgen.sampling.capabilities",
    "Glow": "hfgen.models.glow",
    "HasDensity": "hfgen.sampling.capabilities",
    "Encodes": "hfgen.sampling.capabilities",
    "HasLatents": "hfgen.sampling.capabilities",
    "HasSteps": "hfgen.sampling.capabilities",
    "HierarchicalVAE": "hfgen.models.hierarchical_vae",
    "ImageTranslationPipeline": "hfgen.pipelines.translation",
    "MLPDiscriminator": "hfgen.models.mlp_gan",
    "MLPGenerator": "hfgen.models.mlp_gan",
    "Network": "hfgen.training.recipe",
    "ParameterGroup": "hfgen.training.recipe",
    "Phase": "hfgen.training.recipe",
    "PipelineEntry": "hfgen.registry",
    "Progress": "hfgen.training.recipe",
    "Recipe": "hfgen.training.recipe",
    "PatchDiscriminator": "hfgen.models.patch_discriminator",
    "PixelCNN": "hfgen.models.pixelcnn",
    "ReferenceConfig": "hfgen.evaluation.config",
    "ResNetTranslator": "hfgen.models.resnet_translator",
    "ResidualDiscriminator": "hfgen.models.residual_gan",
    "ResidualGenerator": "hfgen.models.residual_gan",
    "ResidualVAE": "hfgen.models.residual_vae",
    "Restores": "hfgen.sampling.capabilities",
    "Run": "hfgen.training.run",
    "Sampler": "hfgen.sampling.sampler",
    "SamplingConfig": "hfgen.sampling.config",
    "Schedule": "hfgen.training.schedules",
    "Sources": "hfgen.data.columns",
    "Step": "hfgen.sampling.capabilities",
    "StepRandom": "hfgen.training.random",
    "StyleGAN2Discriminator": "hfgen.models.stylegan2",
    "StyleGAN2Generator": "hfgen.models.stylegan2",
    "TarFlow": "hfgen.models.tarflow",
    "TrainingConfig": "hfgen.training.config",
    "Translates": "hfgen.sampling.capabilities",
    "TranslationConfig": "hfgen.families.translation.options",
    "TranslationRecipe": "hfgen.families.translation.recipe",
    "UNetTranslator": "hfgen.models.unet_translator",
    "UserError": "hfgen.runtime.errors",
    "VAEConfig": "hfgen.families.vae.options",
    "VAEPipeline": "hfgen.pipelines.vae",
    "VAERecipe": "hfgen.families.vae.recipe",
    "VQVAE": "hfgen.models.vq_vae",
    "adapter_of": "hfgen.sampling.capabilities",
    "augment": "hfgen.evaluation.augment",
    "collect": "hfgen.training.options",
    "denoise": "hfgen.pipelines.ddpm_sampling",
    "edit": "hfgen.sampling.api",
    "evaluate": "hfgen.evaluation.api",
    "find_family": "hfgen.registry",
    "image_seed": "hfgen.runtime.seeds",
    "load_extractor": "hfgen.evaluation.features",
    "load_pipeline": "hfgen.sampling.loading",
    "load_sampler": "hfgen.sampling.sampler",
    "open_stream": "hfgen.data.streams",
    "prepare": "hfgen.training.api",
    "restore": "hfgen.sampling.api",
    "sample": "hfgen.sampling.api",
    "sampling_scheduler": "hfgen.pipelines.ddpm_sampling",
    "train": "hfgen.training.api",
}

if TYPE_CHECKING:
    from hfgen.data.columns import Classes, Sources
    from hfgen.data.config import DataConfig
    from hfgen.data.info import DataInfo
    from hfgen.data.streams import open_stream
    from hfgen.evaluation.api import evaluate
    from hfgen.evaluation.augment import augment
    from hfgen.evaluation.config import ReferenceConfig
    from hfgen.evaluation.features import load_extractor
    from hfgen.evaluation.runner import Evaluator
    from hfgen.families.autoregressive.options import AutoregressiveConfig
    from hfgen.families.autoregressive.recipe import AutoregressiveRecipe
    from hfgen.families.ddpm.options import DDPMConfig
    from hfgen.families.ddpm.recipe import DDPMRecipe
    from hfgen.families.flow.options import FlowConfig
    from hfgen.families.flow.recipe import FlowRecipe
    from hfgen.families.gan.options import GANConfig
    from hfgen.families.gan.recipe import GANRecipe
    from hfgen.families.translation.options import TranslationConfig
    from hfgen.families.translation.recipe import TranslationRecipe
    from hfgen.families.vae.options import VAEConfig
    from hfgen.families.vae.recipe import VAERecipe
    from hfgen.models.causal_transformer import CausalTransformer
    from hfgen.models.conv_vae import ConvVAE
    from hfgen.models.dcgan import DCGANDiscriminator, DCGANGenerator
    from hfgen.models.fastgan import FastGANDiscriminator, FastGANGenerator
    from hfgen.models.gaussian_mixture import GaussianMixturePrior
    from hfgen.models.glow import Glow
    from hfgen.models.hierarchical_vae import HierarchicalVAE
    from hfgen.models.mlp_gan import MLPDiscriminator, MLPGenerator
    from hfgen.models.patch_discriminator import PatchDiscriminator
    from hfgen.models.pixelcnn import PixelCNN
    from hfgen.models.residual_gan import ResidualDiscriminator, ResidualGenerator
    from hfgen.models.residual_vae import ResidualVAE
    from hfgen.models.resnet_translator import ResNetTranslator
    from hfgen.models.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
    from hfgen.models.tarflow import TarFlow
    from hfgen.models.unet_translator import UNetTranslator
    from hfgen.models.vq_vae import VQVAE
    from hfgen.pipelines.autoregressive import AutoregressivePipeline
    from hfgen.pipelines.ddpm_restoration import DDPMRestorationPipeline
    from hfgen.pipelines.ddpm_sampling import ClassConditionalDDPMPipeline, denoise, sampling_scheduler
    from hfgen.pipelines.flow import FlowPipeline
    from hfgen.pipelines.gan import GANPipeline
    from hfgen.pipelines.translation import ImageTranslationPipeline
    from hfgen.pipelines.vae import VAEPipeline
    from hfgen.registry import Family, PipelineEntry, find_family
    from hfgen.runtime.errors import UserError
    from hfgen.runtime.seeds import image_seed
    from hfgen.sampling.api import edit, restore, sample
    from hfgen.sampling.capabilities import (
        Adapter,
        Density,
        Encodes,
        Generates,
        HasDensity,
        HasLatents,
        HasSteps,
        Restores,
        Step,
        Translates,
        adapter_of,
    )
    from hfgen.sampling.config import SamplingConfig
    from hfgen.sampling.loading import load_pipeline
    from hfgen.sampling.sampler import Sampler, load_sampler
    from hfgen.training.api import prepare, train
    from hfgen.training.config import TrainingConfig
    from hfgen.training.engine import Engine
    from hfgen.training.options import collect
    from hfgen.training.random import StepRandom
    from hfgen.training.recipe import AdamW, Batch, Network, ParameterGroup, Phase, Progress, Recipe
    from hfgen.training.run import Run
    from hfgen.training.schedules import Schedule

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'hfgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
