"""The adapter of translators."""

from collections.abc import Sequence
from typing import Any

import torch

from hfgen.runtime.errors import UserError
from hfgen.sampling.capabilities import Translates
from hfgen.sampling.config import TranslationSamplingConfig


class TranslationAdapter(Translates):
    """Speaks for an [`~pipelines.translation.ImageTranslationPipeline`]."""

    options = TranslationSamplingConfig
    kind = "translator"

    @property
    def directions(self) -> tuple[str, ...]:
        return self.pipe.directions

    @property
    def ways(self) -> tuple[TranslationSamplingConfig, ...]:
        return tuple(TranslationSamplingConfig(direction) for direction in self.directions)

    def check(self, options: TranslationSamplingConfig) -> None:
        if options.direction not in self.directions:
            raise UserError(
                f"`direction` {options.direction}: this model knows {' and '.join(self.directions)} alone."
            )

    def sets(self, options: TranslationSamplingConfig) -> tuple[str, str]:
        given, made = options.direction.split("2")
        return given, made

    def shapes(self, options: TranslationSamplingConfig) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        config = self.pipe.translator(options.direction).config
        size = config.sample_size
        return (config.in_channels, size, size), (config.out_channels, size, size)

    def translate(
        self, images: torch.Tensor, generators: Sequence[torch.Generator] | None = None, options: Any = None
    ) -> torch.Tensor:
        options = options or self.options()
        self.check(options)
        return self.pipe(images, options.direction, output_type="pt").images
