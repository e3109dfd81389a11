"""The base of pipelines with networks of our own: classes, running the network, and images in and out."""

import math
import numbers
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from hfgen.pipelines.classes import ClassPipeline, Generators
from hfgen.runtime.files import write_at_once

AT_ONCE = 64  # images in one pass of the methods that make many
STRENGTHS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # of an edit, unless told otherwise
PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class Pipeline(ClassPipeline):
    """A pipeline around one network: the component that `network_name` names."""

    network_name = "model"

    @property
    def network(self) -> Any:
        """The network that makes the images."""
        return getattr(self, self.network_name)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Any:
        """See [`DiffusionPipeline.from_pipe`], which by itself takes over only networks of the very class that
        `__init__` names: here that is the base of all."""
        return super().from_pipe(pipeline, **{**pipeline.components, **kwargs})

    # Classes

    def _check_names(self, id2label: dict | None, unnamed: int = 0) -> dict | None:
        """Returns the names of the network's classes; their numbers, if it is given none. The last `unnamed` classes
        may have no name."""
        count = self.network.config.num_class_embeds or 0
        names = id2label or {number: str(number) for number in range(count)}
        counts = range(max(0, count - unnamed), count + 1)
        if {str(key) for key in names} not in [{str(number) for number in range(one)} for one in counts]:
            raise ValueError(
                f"id2label has the keys {sorted(map(str, names))}, but the model has {count} classes: "
                "give one name for each number from 0 on, or leave it out."
            )
        return names or None

    def _given_classes(self, class_labels: Any, count: int) -> torch.Tensor | None:
        if class_labels is None and self.class_names:
            names = f"of {self.class_names}" if len(self.class_names) <= 20 else f"below {len(self.class_names)}"
            raise ValueError(f"class_labels is missing: give the class of each image, {names}.")
        return self.class_numbers(class_labels, count)

    @staticmethod
    def _batch_size(batch_size: int | None, latents: Any, class_labels: Any, generator: Generators = None) -> int:
        """Returns the number of images of a call: by default as many as there are latents, labels or generators, or
        1."""
        if batch_size is None:
            given = latents if latents is not None else class_labels
            several = isinstance(generator, Sequence) and not np.ndim(given)
            batch_size = len(generator) if several else len(given) if np.ndim(given) else 1  # type: ignore[arg-type]
        at_least("batch_size", batch_size, 1)
        return batch_size

    # Running the model

    @contextmanager
    def _running(self, *others: torch.nn.Module) -> Iterator[None]:
        """Moves the network, and others that run with it, to their device and into evaluation mode; afterwards they
        are as they were."""
        networks = (self.network, *others)
        for network in networks:
            hook = getattr(network, "_hf_hook", None)
            if hook is not None:  # offloading brings a model back for `forward`, but not for its other methods
                hook.pre_forward(network)
        training = [module for network in networks for module in network.modules() if module.training]
        for network in networks:
            network.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True
        self.maybe_free_model_hooks()

    def _noise(self, count: int, shape: Sequence[int], generator: Generators) -> torch.Tensor:
        """Draws standard normal numbers `(count, *shape)`, float32."""
        generator = check_generators(generator, count)
        # Drawn in float32 and on the generator's device: the same whatever the model's precision and device.
        return randn_tensor((count, *shape), generator=generator, device=self._execution_device, dtype=torch.float32)

    def _given_latents(self, latents: Any, shape: Sequence[int], meaning: str) -> torch.Tensor:
        """Takes the latents that a call was given to the device, float32.

        Raises:
            ValueError: If they are no tensor of `shape`, or not finite.
        """
        try:
            given = torch.as_tensor(latents, dtype=torch.float32, device=self._execution_device)
        except (TypeError, ValueError, RuntimeError):
            given = None
        if given is None:
            raise ValueError(
                f"latents is a {type(latents).__name__}, but must be a tensor of shape {tuple(shape)}: {meaning}."
            )
        if tuple(given.shape) != tuple(shape):
            raise ValueError(f"latents has shape {tuple(given.shape)}, but must have {tuple(shape)}: {meaning}.")
        if not given.isfinite().all():
            raise ValueError("latents has NaN or infinite values: give finite ones.")
        return given

    def _minimise(
        self, loss: Callable[[torch.Tensor], torch.Tensor], points: torch.Tensor, steps: int, learning_rate: float
    ) -> torch.Tensor:
        """Minimises `loss`, one value per point, with Adam and a learning rate that falls to 0 along a cosine. The
        points do not affect each other, and the model gets no gradients."""
        points = points.clone().requires_grad_()
        adam = torch.optim.Adam([points], lr=learning_rate)
        for step in self.progress_bar(range(steps)):
            adam.param_groups[0]["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            with torch.enable_grad():
                (points.grad,) = torch.autograd.grad(loss(points).sum(), points)
            adam.step()
        return points.detach()

    @staticmethod
    def _in_parts(
        make: Callable[..., torch.Tensor], *inputs: torch.Tensor | None, at_once: int = AT_ONCE
    ) -> torch.Tensor:
        """Calls `make` with parts of `inputs`, which have one entry per image or are `None`, and joins the results."""
        parts = [slice(start, start + at_once) for start in range(0, len(inputs[0]), at_once)]  # type: ignore[arg-type]
        return torch.cat([make(*(None if given is None else given[part] for given in inputs)) for part in parts])

    # Images in and out

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the model's images."""
        config = self.network.config
        channels = config.out_channels if "out_channels" in config else config.in_channels
        height, width = (config.sample_size,) * 2 if isinstance(config.sample_size, int) else config.sample_size
        return channels, height, width

    def _pixels(
        self,
        image: Any,
        name: str = "image",
        shape: tuple[int, int, int] | None = None,
        limits: tuple[float, float] = (0, 1),
    ) -> torch.Tensor:
        """Converts images as [`read_pixels`] does; by default those of the model's shape."""
        must = "the model makes" if shape is None else "must be"
        return read_pixels(image, shape or self.image_shape, name, limits, must)

    def _mask(self, mask: Any, count: int, whole: bool = False) -> torch.Tensor:
        """Reads where to paint, `(count, 1, H, W)`; `whole` images if that is asked for."""
        return read_mask(mask, self.image_shape[1:], count, whole)

    def _check_output(self, output_type: str, latents: bool = False) -> None:
        """Raises `ValueError` for an output of no kind that there is; `latents` are one, where a call makes images."""
        kinds = ("pil", "np", "pt", "latent") if latents else ("pil", "np", "pt")
        if output_type not in kinds:
            raise ValueError(f"output_type is {output_type!r}, but must be one of {', '.join(kinds)}.")
        if output_type == "pil" and self.image_shape[0] not in PIL_MODES:
            raise ValueError(f"output_type is 'pil', which has no {self.image_shape[0]} channels: use 'np' or 'pt'.")

    def _export(self, images: torch.Tensor, output_type: str) -> Any:
        """Turns `(B, C, H, W)` or rows `(B, S, C, H, W)` in [0, 1] into what `output_type` says; latents stay."""
        if output_type in ("pt", "latent"):
            return images
        arrays = images.cpu().movedim(-3, -1).numpy()
        if output_type == "np":
            return arrays
        return [self.numpy_to_pil(row) for row in arrays] if arrays.ndim == 5 else self.numpy_to_pil(arrays)

    @staticmethod
    def save_gif(frames: Sequence[Image.Image], path: str | os.PathLike, fps: float = 10, scale: int = 1) -> None:
        """Writes frames as a GIF that repeats forever: whole, or not at all. Each is enlarged `scale` times, without
        smoothing.

        The format counts in hundredths of a second: `fps` is met as nearly as they allow. Equal frames in a row are
        joined into one that lasts as long.

        Raises:
            ValueError: If there are no frames, they differ in size or mode, `fps` is not in (0, 100], or `scale` is no
                whole number from 1 to 64.
        """
        _check_frames(frames)
        if not (isinstance(scale, int) and 1 <= scale <= 64):
            raise ValueError(f"scale is {scale!r}, but must be a whole number from 1 to 64.")
        size = frames[0].width * scale, frames[0].height * scale
        frames = [frame.resize(size, Image.Resampling.NEAREST) if scale > 1 else frame for frame in frames]
        if not 0 < fps <= 100:
            raise ValueError(f"fps is {fps}, but a GIF shows more than 0 and at most 100 frames per second.")
        options = {"save_all": True, "append_images": list(frames[1:]), "duration": 10 * round(100 / fps), "loop": 0}
        with write_at_once(Path(path)) as temporary:
            frames[0].save(temporary, format="GIF", **options)

    @staticmethod
    def make_strip(frames: Sequence[Image.Image]) -> Image.Image:
        """Puts frames side by side, from left to right.

        Raises:
            ValueError: If there are no frames, or they differ in size or mode.
        """
        _check_frames(frames)
        width, height = frames[0].size
        strip = Image.new(frames[0].mode, (width * len(frames), height))
        for index, frame in enumerate(frames):
            strip.paste(frame, (width * index, 0))
        return strip


class SteppedPipeline(Pipeline):
    """A pipeline whose calls take steps, with what diffusers promises of such: `callback_on_step_end` sees each step,
    and may change the latents, change the guidance (`pipe._guidance_scale`) or stop (`pipe._interrupt = True`)."""

    _callback_tensor_inputs = ["latents"]
    _guidance_scale = 1.0
    _guided = False
    _num_timesteps = 0
    _interrupt = False

    @property
    def guidance_scale(self) -> float:
        """The guidance of the call, as it is now; afterwards, as it was in the end."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the next step is guided: there is something to follow, and the guidance is not 1."""
        return self._guided and self._guidance_scale != 1

    @property
    def num_timesteps(self) -> int:
        """How many steps the call takes, or took if no callback stopped it."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback has stopped the call."""
        return self._interrupt

    def _begin(self, guidance_scale: float, guided: bool) -> None:
        """Notes with what a call begins. `guided` says whether there is something to follow."""
        self._guidance_scale, self._guided = guidance_scale, guided
        self._num_timesteps, self._interrupt = 0, False

    def _steps(self, timesteps: torch.Tensor) -> Iterator[torch.Tensor]:
        """Goes through the timesteps, until a callback stops it."""
        self._num_timesteps = len(timesteps)
        for timestep in self.progress_bar(timesteps):
            yield timestep
            if self._interrupt:
                return

    def _step_end(self, callback: Any, tensor_inputs: Sequence[str]) -> Callable[..., torch.Tensor] | None:
        """Makes of a call's callback a function of a step's number, its timestep and the latents after it, which
        returns the latents to go on with.

        Raises:
            ValueError: For what is no function, and for tensors that callbacks cannot have; later, if it returns what
                cannot be gone on with.
        """
        if callback is not None and not callable(callback):
            raise ValueError(
                f"callback_on_step_end is {callback!r}, but must be a function: callback_on_step_end(pipe, step, "
                "timestep, callback_kwargs)."
            )
        inputs = getattr(callback, "tensor_inputs", tensor_inputs)  # those of diffusers say themselves what they need
        if not isinstance(inputs, (list, tuple)) or not set(inputs) <= set(self._callback_tensor_inputs):
            raise ValueError(
                f"callback_on_step_end_tensor_inputs is {inputs!r}, but must be a list, and may only have "
                f"{self._callback_tensor_inputs}."
            )
        if callback is None:
            return None

        def step_end(step: int, timestep: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
            returned = callback(self, step, timestep, {"latents": latents} if inputs else {})
            if returned is None:  # as a function without a `return` does: it changes nothing
                return latents
            if not isinstance(returned, dict):
                raise ValueError(
                    f"callback_on_step_end returned {returned!r}, but must return callback_kwargs, or nothing."
                )
            changed = returned.get("latents", latents)
            if not isinstance(changed, torch.Tensor) or changed.shape != latents.shape:
                raise ValueError(
                    f"callback_on_step_end returned latents that are no tensor of shape {tuple(latents.shape)}: "
                    "return those that it was given, or others of that shape."
                )
            return changed

        return step_end


def at_least(name: str, value: float, least: float, whole: bool = True) -> None:
    """Raises `ValueError` if an argument is no number, is too small or, where it must be `whole`, has a fraction."""
    kind = numbers.Integral if whole else numbers.Real
    # True and False are whole numbers to Python.
    if not isinstance(value, kind) or isinstance(value, bool) or not math.isfinite(value):
        limit = "" if least == -math.inf else f" of at least {least}"
        raise ValueError(f"{name} is {value!r}, but must be a {'whole' if whole else 'finite'} number{limit}.")
    if value < least:
        raise ValueError(f"{name} is {value}, but must be at least {least}.")


def check_generators(generator: Generators, count: int) -> torch.Generator | list[torch.Generator] | None:
    """Raises `ValueError` for what is no generator, and for several of them, but not one per image."""
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    generators = list(generator) if isinstance(generator, Sequence) else [generator]
    for one in generators:
        if not isinstance(one, torch.Generator):
            raise ValueError(
                f"generator: {one!r} is no torch.Generator. Give one, such as torch.Generator().manual_seed(0), or a "
                "list of one per image."
            )
    if len(generators) != count:
        raise ValueError(f"generator has {len(generators)} entries for batch_size {count}: give one per image.")
    return generators


def _check_frames(frames: Sequence[Image.Image]) -> None:
    if not len(frames) or not all(isinstance(frame, Image.Image) for frame in frames):
        raise ValueError("frames must be at least one PIL image: make them with output_type='pil'.")
    kinds = sorted({f"{frame.width}x{frame.height} {frame.mode}" for frame in frames})
    if len(kinds) > 1:
        raise ValueError(f"frames are {' and '.join(kinds)}, but must all have one size and mode.")


def slerp(start: torch.Tensor, end: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
    """Interpolates on the sphere, linearly in the angle (Shoemake, "Animating rotation with quaternion curves", 1985).

    The direction turns at constant speed and the norm changes linearly, so that each point is as far out as a sample
    of the prior is; a straight line would pass through the unlikely middle. Vectors less than 1e-4 rad from parallel
    or antiparallel, or of norm 0, are joined by a straight line: they span no plane to turn in. The ends are exact.

    Args:
        start, end (`torch.Tensor` of shape `(..., D)`): The ends.
        fraction (`torch.Tensor` of shape `(...)`): 0 is `start`, 1 is `end`.

    Returns:
        `torch.Tensor` of shape `(..., D)`; computed in float64.
    """
    a, b, t = start.cpu().double(), end.cpu().double(), fraction.cpu().double().unsqueeze(-1)
    norm_a, norm_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    product = norm_a * norm_b
    angle = ((a * b).sum(-1, keepdim=True) / product).clamp(-1, 1).acos()
    turned = (((1 - t) * angle).sin() * a / norm_a + (t * angle).sin() * b / norm_b) / angle.sin()
    straight = (product == 0) | (angle.sin() < 1e-4)
    return torch.where(straight, (1 - t) * a + t * b, turned * ((1 - t) * norm_a + t * norm_b)).to(start)


def read_pixels(
    image: Any,
    shape: tuple[int, int, int],
    name: str = "image",
    limits: tuple[float, float] = (0, 1),
    must: str = "must be",
) -> torch.Tensor:
    """Converts images of any accepted kind to a float32 tensor of shape `(B, C, H, W)` on the CPU.

    Args:
        image (`PIL.Image.Image`, list of them, `np.ndarray` or `torch.Tensor`): The images.
        shape (`tuple[int, int, int]`): Channels, height and width.
        name (`str`): The argument, for messages.
        limits (`tuple[float, float]`): What the pixels of arrays and tensors may be.
        must (`str`): The words in front of the shape, for messages.

    Raises:
        ValueError: For images of another kind, shape or range.
    """
    channels, height, width = shape
    images = [image] if isinstance(image, Image.Image) else image
    if isinstance(images, (list, tuple)) and images and all(isinstance(one, Image.Image) for one in images):
        expected = f"{width}x{height} in mode {PIL_MODES.get(channels, f'with {channels} channels')}"
        for given in (f"{one.width}x{one.height} in mode {one.mode}" for one in images):
            if given != expected:
                raise ValueError(f"{name} is {given}, but {must} {expected}: resize or convert it first.")
        images = np.stack([np.asarray(one).reshape(height, width, channels) for one in images]) / 255
    if not isinstance(images, (np.ndarray, torch.Tensor)):
        raise ValueError(f"{name} is a {type(image).__name__}: give PIL images, an array or a tensor.")
    is_array = isinstance(images, np.ndarray)
    wanted_shape = (height, width, channels) if is_array else (channels, height, width)
    if images.ndim == 4 and not len(images):
        raise ValueError(f"{name} has no images: give at least one.")
    if tuple(images.shape[-3:]) != wanted_shape or images.ndim > 4 or not len(images):
        raise ValueError(
            f"{name} has shape {tuple(images.shape)}, but {must} {wanted_shape}: resize or convert it first, "
            f"and give {'an array' if is_array else 'a tensor'} of that shape or a batch of them."
        )
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.array(images, np.float32, order="C"))
    pixels = images.float().reshape(-1, *wanted_shape)
    least, most = limits
    if not (pixels.min() >= least and pixels.max() <= most):
        raise ValueError(
            f"{name} goes from {pixels.min():g} to {pixels.max():g}, but must be in [{least:g}, {most:g}]: scale it."
        )
    return pixels.movedim(-1, 1) if is_array else pixels


def read_mask(mask: Any, size: tuple[int, int], count: int, whole: bool = False) -> torch.Tensor:
    """Reads masks: white, 1 or `True`, or everything from 0.5 on.

    Args:
        mask (`PIL.Image.Image`, list of them, `np.ndarray` or `torch.Tensor`): One for all images or one for each:
            `(H, W)`, `(B, H, W)`, arrays `(B, H, W, 1)` or tensors `(B, 1, H, W)`.
        size (`tuple[int, int]`): Height and width.
        count (`int`): How many images.
        whole (`bool`): Whether one may cover a whole image.

    Returns:
        `torch.Tensor` of shape `(count, 1, H, W)`, bool: On the mask's device.

    Raises:
        ValueError: For masks of another kind, shape or range, and one that covers a whole image.
    """
    masks = [mask] if isinstance(mask, Image.Image) else mask
    if isinstance(masks, (list, tuple)) and masks and all(isinstance(one, Image.Image) for one in masks):
        if len({one.size for one in masks}) > 1:
            raise ValueError(f"mask has the sizes {sorted({one.size for one in masks})}: give one size.")
        masks = np.stack([np.asarray(one.convert("L")) for one in masks]) / 255
    if isinstance(masks, np.ndarray):
        masks = torch.from_numpy(np.array(masks, np.float32))
        masks = masks[..., 0] if masks.ndim > 2 and masks.shape[-1] == 1 else masks
    elif isinstance(masks, torch.Tensor):
        masks = masks[:, 0] if masks.ndim == 4 and masks.shape[1] == 1 else masks
    else:
        raise ValueError(f"mask is a {type(mask).__name__}: give a PIL image, an array or a tensor.")
    masks = masks.float()[None] if masks.ndim == 2 else masks.float()
    if masks.ndim != 3 or tuple(masks.shape[1:]) != tuple(size) or len(masks) not in (1, count):
        raise ValueError(
            f"mask has shape {tuple(masks.shape)}, but must have {tuple(size)}: one for all images, or one for each "
            f"of the {count}."
        )
    if not (masks.min() >= 0 and masks.max() <= 1):
        raise ValueError(f"mask goes from {masks.min():g} to {masks.max():g}, but must be in [0, 1]: scale it.")
    if not whole and (masks >= 0.5).flatten(1).all(1).any():
        raise ValueError("mask covers a whole image, of which nothing is left then: sample one instead.")
    return (masks >= 0.5)[:, None].expand(count, 1, *size)
