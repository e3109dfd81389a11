"""The pipeline of translation: images of one set into images of another."""

from typing import Any

import numpy as np
import torch
from diffusers import ImagePipelineOutput, ModelMixin
from PIL import Image

from hfgen.pipelines.base import PIL_MODES, Pipeline

DIRECTIONS = ("a2b", "b2a")


class ImageTranslationPipeline(Pipeline):
    r"""
    Pipeline for translation: makes of images of one set images that could be of another.

    This model inherits from [`DiffusionPipeline`]. Check the superclass documentation for the generic methods
    implemented for all pipelines (downloading, saving, running on a particular device, etc.).

    Parameters:
        a2b ([`ModelMixin`]):
            The translator of images of the first set, a [`ResNetTranslator`] or [`UNetTranslator`].
        b2a ([`ModelMixin`], *optional*):
            The translator of images of the second set, of a model that knows both ways.

    Example:

    ```py
    >>> from hfgen import ImageTranslationPipeline

    >>> pipe = ImageTranslationPipeline.from_pretrained("out/translation-photos")
    >>> painted = pipe(photo).images[0]
    >>> back = pipe(painted, direction="b2a").images[0]
    ```
    """

    model_cpu_offload_seq = "a2b->b2a"
    network_name = "a2b"
    _optional_components = ["b2a"]

    def __init__(self, a2b: ModelMixin, b2a: ModelMixin | None = None):
        super().__init__()
        self.register_modules(a2b=a2b, b2a=b2a)

    @property
    def directions(self) -> tuple[str, ...]:
        """The directions that it knows."""
        return DIRECTIONS if self.b2a is not None else DIRECTIONS[:1]

    def translator(self, direction: str) -> Any:
        """Returns the network of a direction.

        Raises:
            ValueError: For one that the pipeline does not know.
        """
        if direction not in self.directions:
            raise ValueError(f"direction is {direction!r}, but must be one of {', '.join(self.directions)}.")
        return getattr(self, direction)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images of the first set in training."""
        config = self.a2b.config
        return config.in_channels, config.sample_size, config.sample_size

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        direction: str = "a2b",
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        r"""
        The call function to the pipeline.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or list of them):
                The images, of any size: a translation is as large as its image. PIL images are converted to gray or
                colour, as the network needs it. Arrays are `(H, W, C)` or `(B, H, W, C)`, tensors `(C, H, W)` or
                `(B, C, H, W)`, both in [0, 1].
            direction (`str`, *optional*, defaults to `"a2b"`):
                `"a2b"`, or `"b2a"` for the way back.
            output_type (`str`, *optional*, defaults to `"pil"`):
                `"pil"`, `"np"` (float32 in [0, 1], `(B, H, W, C)`) or `"pt"` (float32 in [0, 1], `(B, C, H, W)`); for
                images of several sizes, lists of single ones.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return an [`ImagePipelineOutput`] instead of a tuple.

        Raises:
            ValueError: For images of another kind, number of channels or range, or a direction that there is not.
        """
        translator = self.translator(direction)
        kinds = ("pil", "np", "pt")
        if output_type not in kinds:
            raise ValueError(f"output_type is {output_type!r}, but must be one of {', '.join(kinds)}.")
        channels = translator.config.out_channels
        if output_type == "pil" and channels not in PIL_MODES:
            raise ValueError(f"output_type is 'pil', which has no {channels} channels: use 'np' or 'pt'.")
        batches = [each.to(self._execution_device) for each in read_any_size(image, translator.config.in_channels)]
        with self._running(translator):
            made = [self._in_parts(lambda part: self._translate(translator, part), batch) for batch in batches]
        if len(made) == 1:
            output = self._export(made[0], output_type)
        else:
            output = [self._export(batch, output_type)[0] for batch in made]
        return ImagePipelineOutput(images=output) if return_dict else (output,)

    @staticmethod
    def _translate(translator: Any, images: torch.Tensor) -> torch.Tensor:
        made = translator((2 * images - 1).to(translator.dtype)).sample
        return (made.float() / 2 + 0.5).clamp(0, 1)


def read_any_size(image: Any, channels: int) -> list[torch.Tensor]:
    """Converts images to batches `(B, C, H, W)` in [0, 1]: one of all, or if they come one by one, one of each.

    Raises:
        ValueError: For images of another kind, number of channels or range.
    """
    several = isinstance(image, (list, tuple))
    parts = list(image) if several else [image]
    if not parts:
        raise ValueError("image has no images: give at least one.")
    batches = [_read(part, channels) for part in parts]
    if len({batch.shape[1:] for batch in batches}) == 1:
        return [torch.cat(batches)]
    if any(len(batch) > 1 for batch in batches):
        raise ValueError("image has batches of several sizes: give one batch, or single images.")
    return batches


def _read(image: Any, channels: int) -> torch.Tensor:
    if isinstance(image, Image.Image):
        mode = PIL_MODES.get(channels)
        if mode is None:
            raise ValueError(f"image is a PIL image, which has no {channels} channels: give an array or a tensor.")
        image = np.asarray(image if image.mode == mode else image.convert(mode), np.float32) / 255
        image = image[..., None] if image.ndim == 2 else image
    if not isinstance(image, (np.ndarray, torch.Tensor)):
        raise ValueError(f"image is a {type(image).__name__}: give PIL images, arrays or tensors.")
    if image.ndim not in (3, 4) or not len(image):
        raise ValueError(f"image has shape {tuple(image.shape)}, but must be an image or a batch of them.")
    if isinstance(image, np.ndarray):
        pixels = torch.from_numpy(np.array(image, np.float32)).movedim(-1, -3)
    else:
        pixels = image.float()
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    if pixels.shape[1] != channels:
        raise ValueError(f"image has {pixels.shape[1]} channels, but this direction takes {channels}: convert it.")
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(f"image goes from {pixels.min():g} to {pixels.max():g}, but must be in [0, 1]: scale it.")
    return pixels
