"""Tiny checkpoints, a tiny classifier and a small data set with two splits, for the tests of evaluation."""

import json

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from sklearn.datasets import load_digits
from transformers import ResNetConfig, ResNetForImageClassification

from hfgen.models.conv_vae import ConvVAE
from hfgen.models.dcgan import DCGANGenerator
from hfgen.models.pixelcnn import PixelCNN
from hfgen.models.stylegan2 import StyleGAN2Generator
from hfgen.models.tarflow import TarFlow
from hfgen.pipelines.autoregressive import AutoregressivePipeline
from hfgen.pipelines.flow import FlowPipeline
from hfgen.pipelines.gan import GANPipeline
from hfgen.pipelines.vae import VAEPipeline

DIGITS = {number: str(number) for number in range(10)}
README = """---
library_name: diffusers
tags:
- hfgen
license: apache-2.0
---

# A card

Written by hand.

## Intended use and limits

None that are known.
"""


def save_model(folder, kind):
    """A checkpoint with random weights, and a card."""
    torch.manual_seed(3)
    size = {"sample_size": 8}
    if kind == "gan":
        pipe = GANPipeline(DCGANGenerator(**size, latent_dim=8, base_channels=8, num_class_embeds=10))
    elif kind == "stacked":
        pipe = GANPipeline(DCGANGenerator(**size, latent_dim=8, base_channels=8, out_channels=3))
    elif kind == "stylegan2":
        pipe = GANPipeline(StyleGAN2Generator(**size, latent_dim=8, channel_base=64, channel_max=8, out_channels=1))
    elif kind == "vae":
        pipe = VAEPipeline(ConvVAE(**size, latent_channels=4, block_out_channels=(8, 8)))
    elif kind == "autoregressive":
        pipe = AutoregressivePipeline(PixelCNN(**size, base_channels=8, dilations=(1, 2), num_mixtures=2))
    elif kind == "flow":
        pipe = FlowPipeline(TarFlow(**size, patch_size=4, num_blocks=2, hidden_size=16, attention_head_dim=8))
    else:
        blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
        unet = UNet2DModel(**size, **blocks, in_channels=1, out_channels=1, block_out_channels=(8, 8),
                           layers_per_block=1, norm_num_groups=4)  # fmt: skip
        pipe = DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=20))
    pipe.save_pretrained(folder)
    (folder / "README.md").write_text(README)
    return str(folder)


def save_classifier(folder, seed=0):
    """A classifier of digits with random weights."""
    torch.manual_seed(seed)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", id2label=DIGITS,
        label2id={name: number for number, name in DIGITS.items()}, architectures=["ResNetForImageClassification"],
    )  # fmt: skip
    ResNetForImageClassification(config).eval().save_pretrained(folder)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(folder)


def save_data(folder, sizes=(("train", 1100), ("test", 400)), channels=1):
    """The digits in two splits; with three channels, some of them one upon the other."""
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(1).permutation(len(pixels))
    names = [f"{number:0{channels}d}" for number in range(10**channels)]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=names)})
    start = 0
    for split, size in sizes:
        rows = order[start : start + size]
        start += size
        stacks = np.stack([rows, *(np.roll(rows, shift) for shift in range(1, channels))], axis=1)
        images = [Image.fromarray(pixels[stack].transpose(1, 2, 0).squeeze()) for stack in stacks]
        labels = [int("".join(str(digits.target[row]) for row in stack)) for stack in stacks]
        data = Dataset.from_dict({"image": images, "label": labels}, features=features)
        (folder / "data").mkdir(parents=True, exist_ok=True)
        data.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return str(folder)
