"""Translates images."""

from typing import Any

import torch
from diffusers import ImagePipelineOutput, ModelMixin

from hfgen.pipelines.base import Pipeline


class ToyPairPipeline(Pipeline):
    """Images of the other set, by a [`Translator`]."""

    def __init__(self, model: ModelMixin):
        super().__init__()
        self.register_modules(model=model)

    @torch.no_grad()
    def __call__(self, image: Any, output_type: str = "pil") -> ImagePipelineOutput:
        pixels = self._pixels(image).to(self._execution_device) * 2 - 1
        with self._running():
            images = self.model(pixels).float() / 2 + 0.5
        return ImagePipelineOutput(images=self._export(images, output_type))
