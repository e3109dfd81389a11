"""The pipeline of VAEs: sampling, encoding, walks, traversals, edits, and restoring damaged images."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ImagePipelineOutput, ModelMixin

from hfgen.pipelines.base import Generators, at_least, check_generators
from hfgen.pipelines.restoration import RestoringPipeline

TASKS = ("denoise", "super_resolve")


class VAEPipeline(RestoringPipeline):
    r"""
    Pipeline for VAEs: everything that an encoder, a decoder and a prior can do.

    This model inherits from [`DiffusionPipeline`]. Check the superclass documentation for the generic methods
    implemented for all pipelines (downloading, saving, running on a particular device, etc.).

    Parameters:
        model ([`ModelMixin`]):
            The VAE: `encode(sample, class_labels).latent_dist`, or `.latents` of one that quantises them, and
            `decode(latents, class_labels).sample`; with `latent_shape`, and `variance` of the pixels around the
            decoder's mean, in [-1, 1].
        prior ([`GaussianMixturePrior`], *optional*):
            A density that was fitted to the latents. [`~hfgen.families.vae.prior.fit_mixture`] makes one.
        id2label (`dict[int, str]`, *optional*):
            Names of the classes, for a class-conditional model.
        class_shares (`list[float]` or `dict[int, float]`, *optional*):
            How often each class is in the data, and so how often it is drawn where no `class_labels` are given.
        task (`str`, *optional*):
            `"denoise"` or `"super_resolve"`, for a model that was trained to make clean images of damaged ones. Its
            encoder expects damaged images, small ones enlarged by bilinear interpolation.
        task_level (`float`, *optional*):
            The damage: the standard deviation of the noise, for pixels in [0, 1]; or the factor of the sizes.
        class_kind (`str`, *optional*):
            `"labels"`, or `"groups"` for classes without a meaning (groups of similar images found by clustering);
            by default groups if there are `class_shares`, which is what checkpoints of version 0.1 mean.

    All methods share these arguments:
        image, start, end (`PIL.Image.Image`, list of them, `np.ndarray` or `torch.Tensor`):
            Images of the model's size and channels; arrays `(B, H, W, C)` or `(H, W, C)` and tensors `(B, C, H, W)` or
            `(C, H, W)` in [0, 1]. `start` and `end` may be latents as well: tensors `(B, D, h, w)` or `(D, h, w)`.
        latents (`torch.Tensor` of shape `(B, D, h, w)`):
            What `encode` gives. Of hierarchical models these are the whitened latents of all groups; of models that
            quantise, the encoder's output before that.
        class_labels (`int`, `str`, list of them or `torch.Tensor`, *optional*):
            Classes by number or by name, one for all or one per image. A conditional model needs them, but to sample.
        prior (`str`, *optional*):
            `"normal"`, the standard normal distribution with which the model was trained, or `"mixture"`, the one
            fitted afterwards; by default the latter if there is one.
        generator (`torch.Generator` or list of them, *optional*):
            Makes the result repeatable; with one per image, each depends on its own alone.
        output_type (`str`, *optional*, defaults to `"pil"`):
            `"pil"`, `"np"` (float32 in [0, 1], `(B, H, W, C)`) or `"pt"` (float32 in [0, 1], `(B, C, H, W)`).

    `denoise`, `inpaint` and `super_resolve` search for latents z with a high p(y | z) p(z) for the damaged image y, by
    the decoder's mean and variance, and return the mean image given z and y. They share:
        method (`str`, *optional*):
            `"gradient"` maximises, with Adam and a learning rate that falls to 0 along a cosine. `"langevin"` samples:
            from there it makes as many steps of the Metropolis-adjusted Langevin algorithm (Roberts and Tweedie,
            1996), whose size adapts in the first half. `"amortised"` is one pass of encoder and decoder without a
            search, and the default where the model was trained for it, as `"gradient"` is elsewhere.
        steps (`int`, *optional*, defaults to 200):
            Steps of Adam, and of Langevin.
        learning_rate (`float`, *optional*, defaults to 0.1):
            Size of the first step.
        restarts (`int`, *optional*, defaults to 16):
            Starting points per image, of which the best result counts: what the encoder makes of the damaged image,
            and of images drawn from the prior that were corrected by what is known. One, where there is no prior.

    Example:

    ```py
    >>> import numpy as np

    >>> from hfgen import VAEPipeline

    >>> pipe = VAEPipeline.from_pretrained("out/vae-mnist")
    >>> images = pipe(batch_size=16, generator=torch.Generator().manual_seed(0)).images
    >>> pipe.save_gif(pipe.interpolate(images[0], images[1], frames=24), "walk.gif", fps=12)
    >>> mask = np.zeros((28, 28), dtype=bool)
    >>> mask[14:] = True  # the lower half is painted anew
    >>> pipe.make_strip(pipe.inpaint(images, mask)).save("inpainted.png")
    ```
    """

    model_cpu_offload_seq = "model"
    _optional_components = ["prior"]
    _exclude_from_cpu_offload = ["prior"]

    def __init__(
        self,
        model: ModelMixin,
        prior: ModelMixin | None = None,
        id2label: dict | None = None,
        class_shares: Sequence[float] | dict | None = None,
        task: str | None = None,
        task_level: float | None = None,
        class_kind: str | None = None,
    ):
        super().__init__()
        self.register_modules(model=model, prior=prior)
        self._register_classes(self._check_names(id2label), class_shares, class_kind)
        if prior is not None:
            shape, classes = tuple(prior.config.latent_shape), prior.config.num_class_embeds
            if shape != tuple(model.latent_shape) or classes not in (None, model.config.num_class_embeds):
                raise ValueError(
                    f"prior has latents of shape {shape} and {classes} classes, but the model has "
                    f"{tuple(model.latent_shape)} and {model.config.num_class_embeds}: fit it to this model's latents."
                )
        if task is not None and task not in TASKS:
            raise ValueError(f"task is {task!r}, but must be one of {', '.join(TASKS)}, or be left out.")
        if (task is None) != (task_level is None):
            raise ValueError(f"task is {task!r} and task_level is {task_level}: give both or neither.")
        self.register_to_config(task=task, task_level=task_level)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        temperature: float = 1.0,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        prior: str | None = None,
    ) -> ImagePipelineOutput | tuple:
        r"""
        The call function to the pipeline for generation; the class describes the arguments that are not listed here.

        Args:
            batch_size (`int`, *optional*):
                Number of images, made in one pass; by default as many as there are `latents` or `class_labels`, or 1.
            class_labels (*optional*):
                Without it, the classes of a conditional model are drawn, as `class_shares` says or uniformly: a
                generator draws noise first, then its class.
            latents (`torch.Tensor` of shape `(B, D, h, w)`, *optional*):
                Latents, instead of drawing them.
            temperature (`float`, *optional*, defaults to 1.0):
                Scales the distance of the latents drawn from the mean of the prior, or of their component of it: less
                is more alike and less likely to fail.
            output_type:
                Or `"latent"`, for the latents of the images in their place, float32 `(B, D, h, w)`.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return an [`ImagePipelineOutput`] instead of a tuple.

        Raises:
            ValueError: For classes that the model does not know, a prior that there is not, or an argument of the
                wrong shape or length.
        """
        self._check_output(output_type, latents=True)
        batch_size = self._batch_size(batch_size, latents, class_labels)
        at_least("temperature", temperature, 0, whole=False)
        if latents is not None and temperature != 1:
            raise ValueError(f"temperature is {temperature}, but does not change given latents: leave it at 1.")
        with self._running():
            if latents is not None:
                check_generators(generator, batch_size)
                latents = self._latents(latents, batch_size)
                labels = self.class_numbers(class_labels, batch_size, generator)
            else:
                latents, labels = self.draw_latents(batch_size, class_labels, temperature, generator, prior)
            images = latents if output_type == "latent" else self._pass(latents, labels).clamp(0, 1)
        output = self._export(images, output_type)
        return ImagePipelineOutput(images=output) if return_dict else (output,)

    @torch.no_grad()
    def draw_latents(
        self,
        batch_size: int | None = None,
        class_labels: Any = None,
        temperature: float = 1.0,
        generator: Generators = None,
        prior: str | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        r"""
        Draws latents and classes, as a call with the same arguments does for its images.

        Args:
            batch_size (`int`, *optional*):
                How many; by default as many as there are `class_labels` or generators, or 1.

        Returns:
            `tuple[torch.Tensor, torch.Tensor | None]`: The latents, float32 `(B, D, h, w)`, and the classes `(B,)`,
            `None` for a model without.

        Raises:
            ValueError: As the call.
        """
        batch_size = self._batch_size(batch_size, None, class_labels, generator)
        at_least("temperature", temperature, 0, whole=False)
        prior = self._choose_prior(prior)
        if prior is None:
            raise ValueError(
                "latents is missing: this model quantises latents and was trained without a prior. Fit one with "
                "hfgen.families.vae.prior.fit_mixture and give it to the pipeline."
            )
        noise = self._noise(batch_size, (self._noise_size(prior),), generator)
        labels = self.class_numbers(class_labels, batch_size, generator)
        with self._running():
            return self._draw(noise, labels, prior, temperature), labels
