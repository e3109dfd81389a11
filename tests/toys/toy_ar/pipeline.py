"""Draws images pixel by pixel."""

import torch
from diffusers import ImagePipelineOutput, ModelMixin

from hfgen.pipelines.base import Generators, Pipeline, check_generators


class ToyARPipeline(Pipeline):
    """Images of a [`PixelCNN`]."""

    def __init__(self, model: ModelMixin):
        super().__init__()
        self.register_modules(model=model)

    @torch.no_grad()
    def __call__(
        self, batch_size: int = 1, generator: Generators = None, output_type: str = "pil"
    ) -> ImagePipelineOutput:
        channels, height, width = self.image_shape
        generators = check_generators(generator, batch_size)
        images = torch.zeros(batch_size, channels, height, width, device=self._execution_device)
        uniform = self._noise(batch_size, (height, width), generators).erf().add(1).div(2).clamp(0, 1 - 1e-6)
        with self._running():
            for y in range(height):
                for x in range(width):
                    shares = self.model(images)[:, :, y, x].float().softmax(1).cumsum(1)
                    level = (shares < uniform[:, y, x, None]).sum(1).clamp_max(255)
                    images[:, 0, y, x] = level / 127.5 - 1
        return ImagePipelineOutput(images=self._export(images / 2 + 0.5, output_type))
