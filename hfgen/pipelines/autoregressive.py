"""The pipeline of autoregressive models: drawing images position by position, and how probable images are."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import ImagePipelineOutput, ModelMixin

from hfgen.objectives import autoregressive, elbo
from hfgen.pipelines.base import Generators, Pipeline, at_least, check_generators
from hfgen.pipelines.classes import draw_quantiles


class AutoregressivePipeline(Pipeline):
    r"""
    Pipeline for autoregressive models: a network gives the distribution of each position from those before it, in
    raster order, and a position is drawn at a time.

    This model inherits from [`DiffusionPipeline`]. Check the superclass documentation for the generic methods
    implemented for all pipelines (downloading, saving, running on a particular device, etc.).

    Parameters:
        model ([`ModelMixin`]):
            The network: a [`PixelCNN`] or [`CausalTransformer`], with `log_prob(sample, class_labels)`,
            `start(batch_size, class_labels)`, `step(cache, levels)` and `level_log_probs(parameters, before)`.
        vae ([`ModelMixin`], *optional*):
            A [`VQVAE`], for a network whose positions hold the numbers of its codes instead of pixels. The probability
            of an image is then a lower bound: that of its codes, and of its pixels given these.
        id2label (`dict[int, str]`, *optional*):
            Names of the classes, for a class-conditional model.
        class_shares (`list[float]` or `dict[int, float]`, *optional*):
            How often each class is in the data, and so how often it is drawn where no `class_labels` are given.
        class_kind (`str`, *optional*):
            `"labels"`, or `"groups"` for classes without a meaning (groups of similar images found by clustering);
            by default groups if there are `class_shares`.

    All methods share these arguments:
        image (`PIL.Image.Image`, list of them, `np.ndarray` or `torch.Tensor`):
            Images of the model's size and channels; arrays `(B, H, W, C)` or `(H, W, C)` and tensors `(B, C, H, W)` or
            `(C, H, W)` in [0, 1], on the levels of 8 bit.
        class_labels (`int`, `str`, list of them or `torch.Tensor`, *optional*):
            Classes by number or by name, one for all or one per image. A conditional model needs them, but to sample;
            one whose classes are groups never does.
        temperature (`float`, *optional*, defaults to 1.0):
            Divides the log-probabilities of the levels before each is drawn: below 1 for more typical images, 0 for
            the likeliest level at each position, which makes a dull image.
        top_p (`float`, *optional*, defaults to 1.0):
            Leaves the fewest likeliest levels of each position whose shares reach it together
            (https://huggingface.co/papers/1904.09751).
        generator (`torch.Generator` or list of them, *optional*):
            Makes the result repeatable; with one per image, each depends on its own alone.
        output_type (`str`, *optional*, defaults to `"pil"`):
            `"pil"`, `"np"` (float32 in [0, 1], `(B, H, W, C)`) or `"pt"` (float32 in [0, 1], `(B, C, H, W)`).

    Example:

    ```py
    >>> import numpy as np

    >>> from hfgen import AutoregressivePipeline

    >>> pipe = AutoregressivePipeline.from_pretrained("out/autoregressive-mnist")
    >>> images = pipe(batch_size=16, generator=torch.Generator().manual_seed(0)).images
    >>> nats = pipe.log_prob(images)
    >>> mask = np.zeros((28, 28), dtype=bool)
    >>> mask[14:] = True  # the lower half is drawn anew
    >>> pipe.make_strip(pipe.complete(images, mask)).save("completed.png")
    ```
    """

    model_cpu_offload_seq = "model->vae"
    _optional_components = ["vae"]

    def __init__(
        self,
        model: ModelMixin,
        vae: ModelMixin | None = None,
        id2label: dict | None = None,
        class_shares: Sequence[float] | dict | None = None,
        class_kind: str | None = None,
    ):
        super().__init__()
        self.register_modules(model=model, vae=vae)
        self._register_classes(self._check_names(id2label), class_shares, class_kind)
        if vae is None:
            return
        if not hasattr(vae, "lookup"):
            raise ValueError(f"vae is a {type(vae).__name__}, which has no codes: give a VQVAE.")
        if model.config.in_channels != 1:
            raise ValueError(
                f"the model has {model.config.in_channels} channels, but codes have one: give the network that was "
                "trained on them."
            )
        wanted = (vae.latent_shape[1], vae.config.num_vq_embeddings)
        if (model.config.sample_size, model.config.num_levels) != wanted:
            raise ValueError(
                f"vae has {wanted[0]}x{wanted[0]} positions and {wanted[1]} codes, but the model was made for "
                f"{model.config.sample_size}x{model.config.sample_size} and {model.config.num_levels}: give the VAE "
                "whose codes it was trained on."
            )
        if vae.config.num_class_embeds not in (None, model.config.num_class_embeds):
            raise ValueError(
                f"vae knows {vae.config.num_class_embeds} classes, but the model {model.config.num_class_embeds}: "
                "give the VAE whose codes it was trained on."
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        if self.vae is None:
            return super().image_shape
        return self.vae.config.in_channels, self.vae.config.sample_size, self.vae.config.sample_size

    @property
    def grid_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what is drawn: of the image, or of its codes."""
        return self.model.config.in_channels, self.model.config.sample_size, self.model.config.sample_size

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        r"""
        The call function to the pipeline for generation; the class describes the arguments that are not listed here.

        Args:
            batch_size (`int`, *optional*):
                Number of images, made together; by default as many as there are `latents` or `class_labels`, or 1.
            class_labels (*optional*):
                Without it, the classes of a conditional model are drawn, as `class_shares` says or uniformly: a
                generator draws noise first, then its class.
            latents (`torch.Tensor` of shape `(B, C, h, w)`, *optional*):
                Standard normal numbers, one for each level to be drawn, instead of drawing them: at each channel of
                each position (of [`~AutoregressivePipeline.grid_shape`]), how far along its distribution to go.
            output_type:
                Or `"latent"`, for these numbers in the place of the images, which are not drawn then.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return an [`ImagePipelineOutput`] instead of a tuple.

        Raises:
            ValueError: For classes that the model does not know, or an argument of the wrong shape, length or range.
        """
        self._check_output(output_type, latents=True)
        _check_sampling(temperature, top_p)
        batch_size = self._batch_size(batch_size, latents, class_labels)
        if output_type == "latent":
            images, _ = self._chances(batch_size, class_labels, latents, generator)
        else:
            images = self.draw(batch_size, class_labels, latents, temperature, top_p, generator, self.progress_bar)
        output = self._export(images, output_type)
        return ImagePipelineOutput(images=output) if return_dict else (output,)

    @torch.no_grad()
    def draw(
        self,
        batch_size: int,
        class_labels: Any = None,
        latents: torch.Tensor | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        generator: Generators = None,
        progress: Callable[[Any], Any] = iter,
        on_position: Callable[[int, Callable[[], torch.Tensor]], None] | None = None,
    ) -> torch.Tensor:
        r"""
        Draws images as a call of the pipeline does, as a tensor.

        Args:
            progress (`Callable`, *optional*):
                Wraps the positions, for a progress bar; by default there is none.
            on_position (`Callable`, *optional*):
                Is given, after each position, how many have been drawn, and a function without arguments that makes
                images `(B, C, H, W)` in [0, 1] of them, with level or code 0 at the others.

        Returns:
            `torch.Tensor` of shape `(B, C, H, W)`: Images in [0, 1].
        """
        _check_sampling(temperature, top_p)
        with self._running(*self._others):
            latents, labels = self._chances(batch_size, class_labels, latents, generator)
            seen = None
            if on_position is not None:
                seen = lambda count, levels: on_position(count, lambda: self._render(levels, labels))  # noqa: E731
            levels = draw_grid(self.model, latents, labels, temperature, top_p, progress=progress, on_position=seen)
            return self._render(levels, labels)

    def _chances(
        self, batch_size: int, class_labels: Any, latents: Any, generator: Generators
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Draws what is left to chance, or takes what is given: latents and classes."""
        if latents is None:
            latents = self._noise(batch_size, self.grid_shape, generator)
        else:
            check_generators(generator, batch_size)
            latents = self._given_latents(latents, (batch_size, *self.grid_shape), "one number per level")
        return latents, self.class_numbers(class_labels, batch_size, generator)

    @torch.no_grad()
    def complete(
        self,
        image: Any,
        mask: Any,
        class_labels: Any = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        generator: Generators = None,
        output_type: str = "pil",
    ) -> Any:
        r"""
        Draws the rest of images whose beginning is given, which is left exactly as it was.

        Without `class_labels`, a model whose classes are groups draws the group of each image, by how probable its
        beginning is in each.

        Args:
            mask (`PIL.Image.Image`, list of them, `np.ndarray` or `torch.Tensor`):
                What to draw: white, 1 or `True`, or everything from 0.5 on; all pixels from some one on in raster
                order, row by row from the top. One mask for all images or one per image, of their height and width:
                `(H, W)`, `(B, H, W)`, arrays `(B, H, W, 1)` or tensors `(B, 1, H, W)`.

        Returns:
            The images, as `output_type` says.

        Raises:
            ValueError: For a model of codes, whose positions are not pixels; images or a mask of another shape or
                range; a mask that leaves a pixel after one that it draws; or missing or unknown classes.
        """
        self._check_output(output_type)
        _check_sampling(temperature, top_p)
        if self.vae is not None:
            raise ValueError(
                "this model draws the codes of a VAE, each of which stands for many pixels, so that it cannot begin "
                "at a pixel: use a model of pixels."
            )
        target = self._pixels(image).to(self._execution_device)
        unknown = self._mask(mask, len(target), whole=True).to(target.device)
        after = unknown.flatten(1).cummax(1).values.view_as(unknown)
        if not torch.equal(after, unknown):
            row, column = (after & ~unknown)[:, 0].nonzero()[0, 1:].tolist()
            raise ValueError(
                "mask must be all pixels from some one on in raster order, row by row from the top, as a pixel is "
                f"drawn from those before it; but the pixel in row {row} and column {column} is given, and one before "
                "it is not."
            )
        drawn = class_labels is None and self._grouped
        labels = None if drawn else self._given_classes(class_labels, len(target))
        with self._running():
            latents = self._noise(len(target), self.grid_shape, generator)
            given, known = autoregressive.to_levels(2 * target - 1, self.model.config.num_levels), ~unknown[:, 0]
            if drawn:
                joint = self._with_each_class(lambda each: self.model.log_prob(given, each, known), len(target))
                labels = autoregressive.draw_levels(joint, draw_quantiles(len(target), generator).to(joint.device))
            levels = draw_grid(self.model, latents, labels, temperature, top_p, given, known, self.progress_bar)
            images = torch.where(unknown, self._render(levels, labels), target)
        return self._export(images, output_type)

    @torch.no_grad()
    def log_prob(self, image: Any, class_labels: Any = None) -> torch.Tensor:
        r"""
        Computes the log-probability of 8-bit images in nats: exact for a model of pixels, a lower bound for one of
        codes. Divided by `-log(2)` and by the number of channels and pixels, it is in bits per dimension.

        Args:
            class_labels (*optional*):
                Without it, a model whose classes are groups sums over all of them, which takes as many times as long.

        Returns:
            `torch.Tensor` of shape `(B,)`, float32.

        Raises:
            ValueError: For images of another size, mode, shape or range, or between the levels of 8 bit; or missing or
                unknown classes.
        """
        pixels = 2 * self._pixels(image).to(self._execution_device) - 1
        if not elbo.on_levels(pixels):
            raise ValueError(
                "image has values between two of the 256 levels of 8 bit, and the model knows the probability of "
                "levels alone: round it to 8 bit."
            )
        if self.vae is not None:
            elbo.check_images(pixels, self.vae.config.likelihood)
        elif (levels := self.model.config.num_levels) != autoregressive.LEVELS:
            raise ValueError(
                f"this model's pixels have {levels} levels, and not the {autoregressive.LEVELS} of 8-bit images: use "
                "model.log_prob with levels."
            )
        with self._running(*self._others):
            if class_labels is None and self._grouped:
                return self._in_parts(self._log_prob_of_any_class, pixels)
            return self._in_parts(self._log_prob, pixels, self._given_classes(class_labels, len(pixels)))

    @property
    def _others(self) -> tuple[torch.nn.Module, ...]:
        return () if self.vae is None else (self.vae,)

    def _vae_labels(self, labels: torch.Tensor | None) -> torch.Tensor | None:
        return labels if self.vae.config.num_class_embeds else None

    def _render(self, levels: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Makes images in [0, 1] of levels `(B, C, h, w)`: of pixels, or decoded from codes."""
        if self.vae is None:
            return autoregressive.to_values(levels, self.model.config.num_levels) / 2 + 0.5
        codes = self.vae.lookup(levels[:, 0])
        images = self.vae.decode(codes, self._vae_labels(labels), force_not_quantize=True).sample
        return (images.float() / 2 + 0.5).clamp(0, 1)

    def _log_prob(self, images: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Computes the log-probability of images in [-1, 1]."""
        levels, given_levels = self._levels(images, labels)
        return given_levels + self.model.log_prob(levels, labels)

    def _log_prob_of_any_class(self, images: torch.Tensor) -> torch.Tensor:
        """Computes the same of images whose classes are not known, as the sum over all of them."""
        if self.vae is not None and self.vae.config.num_class_embeds:
            return self._with_each_class(lambda labels: self._log_prob(images, labels), len(images)).logsumexp(1)
        levels, given_levels = self._levels(images, None)
        joint = self._with_each_class(lambda labels: self.model.log_prob(levels, labels), len(images))
        return given_levels + joint.logsumexp(1)

    def _with_each_class(self, log_prob: Callable[[torch.Tensor], torch.Tensor], count: int) -> torch.Tensor:
        """Computes the log-probability of `count` images and each class together, `(B, classes)`, by that of images
        given their classes."""
        device, shares = self._execution_device, torch.tensor(self._shares())
        each = [log_prob(torch.full((count,), number, device=device)) for number in range(len(shares))]
        return torch.stack(each, dim=1) + (shares / shares.sum()).log().to(device)

    def _levels(self, images: torch.Tensor, labels: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Finds what the network models of images in [-1, 1], `(B, C, h, w)`, and the log-probability of the images
        given these."""
        if self.vae is None:
            return autoregressive.to_levels(images, self.model.config.num_levels), 0.0
        vae, config = self.vae, self.vae.config
        quantised = vae.quantize(vae.encode(images, self._vae_labels(labels)).latents)
        decoded = vae.decode(quantised.latents, self._vae_labels(labels), force_not_quantize=True)
        given_codes = elbo.level_log_likelihood(
            images, decoded.parameters, config.likelihood, vae.variance, config.num_mixtures
        )
        return quantised.indices[:, None], given_codes


def draw_grid(
    model: Any,
    latents: torch.Tensor,
    class_labels: torch.Tensor | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    given: torch.Tensor | None = None,
    known: torch.Tensor | None = None,
    progress: Callable[[Any], Any] = iter,
    on_position: Callable[[int, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Draws grids of levels from an autoregressive network, position by position.

    Args:
        model ([`ModelMixin`]): The network.
        latents (`torch.Tensor` of shape `(B, C, h, w)`): Standard normal numbers, all that is random.
        class_labels (`torch.Tensor` of shape `(B,)`, *optional*): Their classes.
        temperature, top_p (`float`): See [`AutoregressivePipeline`].
        given (`torch.Tensor` of shape `(B, C, h, w)`, *optional*): Levels that are not drawn,
        known (`torch.Tensor` of shape `(B, h, w)`, *optional*): and where, as a mask.
        progress (`Callable`, *optional*): Wraps the positions.
        on_position (`Callable`, *optional*): Is given, after each position, how many have been drawn, and the levels
            `(B, C, h, w)`, 0 where none has been.

    Returns:
        `torch.Tensor` of shape `(B, C, h, w)`, int64.
    """
    size, channels, height, width = latents.shape
    quantiles = torch.special.ndtr(autoregressive.in_float64(latents)).flatten(2)
    levels = torch.zeros(size, channels, height * width, dtype=torch.int64, device=latents.device)
    cache, before = model.start(size, class_labels), None
    for position in progress(range(height * width)):
        parameters = model.step(cache, before)
        before = levels[:, :, position]
        for channel in range(channels):
            log_probs = model.level_log_probs(parameters, before[:, :channel])
            drawn = autoregressive.draw_levels(log_probs, quantiles[:, channel, position], temperature, top_p)
            if given is not None and known is not None:
                drawn = torch.where(known.flatten(1)[:, position], given[:, channel].flatten(1)[:, position], drawn)
            before[:, channel] = drawn
        if on_position is not None:
            on_position(position + 1, levels.unflatten(2, (height, width)))
    return levels.unflatten(2, (height, width))


def _check_sampling(temperature: float, top_p: float) -> None:
    at_least("temperature", temperature, 0, whole=False)
    at_least("top_p", top_p, 0, whole=False)
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}, but must be more than 0 and at most 1.")
