"""The GAN recipe: a generator and a discriminator in two phases, each a function of the other's output."""

import math
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.nn import functional as F

from hfgen.data.info import DataInfo
from hfgen.families.gan.networks import make_networks
from hfgen.families.gan.options import GANConfig
from hfgen.models.fastgan import reconstruction_targets
from hfgen.objectives.adaptive_augmentation import AdaptiveProbability, augment
from hfgen.objectives.adversarial import OBJECTIVES, interpolate, lipschitz_penalty, squared_gradients
from hfgen.objectives.path_length import PathLengthMean, path_lengths
from hfgen.pipelines.gan import GANPipeline
from hfgen.runtime.errors import UserError
from hfgen.sampling.config import GANSamplingConfig
from hfgen.training.alarms import Patience
from hfgen.training.recipe import (
    STATE,
    AdamW,
    Batch,
    Network,
    Phase,
    Progress,
    Recipe,
    class_arguments,
    class_names,
)


class GANRecipe(Recipe):
    """Trains a pair of networks against each other; by class, or by group of similar images, if asked to.

    Args:
        config ([`GANConfig`]): The options.
        info ([`~data.info.DataInfo`]): Size, channels and classes of the images.

    Raises:
        UserError: If networks and data do not fit.
    """

    def __init__(self, config: GANConfig, info: DataInfo):
        self.config = config
        self.class_names, self.needs_labels = class_names(info, config.class_conditional), config.class_conditional
        self.objective = OBJECTIVES[config.objective]
        try:
            classes = len(self.class_names) if self.class_names else None
            generator, discriminator = make_networks(config, info.resolution, info.channels, classes)
        except ValueError as error:
            flag = f"`base_channels` {config.base_channels}" if "channel_base" in str(error) else "`resolution`"
            raise UserError(
                f"{flag} does not fit {config.architecture} at {info.resolution} pixels: {error}"
            ) from None
        self.generator, self.discriminator = generator, discriminator
        eager = None
        if config.penalised:
            eager = (
                "its gradient penalty differentiates twice, which compiled code cannot. To compile it, set "
                "`r1_gamma`, `r2_gamma` and `lipschitz_weight` to 0."
            )
        self.networks = {
            "generator": Network(generator, averaged=True),
            "discriminator": Network(discriminator, eager_reason=eager),
        }
        if discriminator.mixes_samples:
            self.batch_statistics = "the deviation within a batch, which the discriminator sees,"
        self.adaptive: AdaptiveProbability | None = None
        if config.ada_target is not None:
            self.adaptive = AdaptiveProbability(config.ada_target, config.augment_probability, config.ada_images)
            self.networks["augmentation"] = Network(self.adaptive, STATE)
        self.path_length: PathLengthMean | None = None
        if config.path_length_weight:
            self.path_length = PathLengthMean()
            self.networks["path_length"] = Network(self.path_length, STATE)
        self.sampling = GANSamplingConfig(truncation=config.truncation)
        self._class_arguments = class_arguments(info, self.class_names)

        def adam(learning_rate: float) -> AdamW:
            return AdamW(learning_rate, (config.adam_beta1, config.adam_beta2), config.adam_epsilon)

        self.phases = (
            Phase(
                "discriminator", ("discriminator",), adam(config.discriminator_learning_rate or config.learning_rate)
            ),
            Phase("generator", ("generator",), adam(config.learning_rate), every=config.discriminator_steps),
        )
        self._alarms = Alarms(config)

    def loss(self, phase: Phase, batch: Batch, progress: Progress) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        latents = batch.random.normal(self.config.latent_dim)
        labels = batch["label"] if self.class_names else None  # pairs share their class, as relativistic ones must
        generator: Any = self.generator
        noise = [batch.random.normal(*shape) for shape in generator.noise_shapes]
        more = ({"noise": noise} if noise else {}) | self._second_styles(batch)
        fake = generator(latents, labels, **more).sample
        if phase.name == "discriminator":
            return self._discriminator_loss(batch, fake.detach(), labels, progress)
        loss, metrics = self._generator_loss(batch, fake, labels)
        interval = self.config.path_length_interval
        if self.path_length is not None and progress.step // phase.every % interval == 0:
            penalty, lengths = self._path_length_penalty(batch, latents, labels, more)
            loss = loss + interval * self.config.path_length_weight * penalty
            metrics |= {"path_length": lengths.mean(), "path_length_penalty": penalty.detach()}
        return loss, metrics

    def _second_styles(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Draws latents of second styles for style mixing, and the layers from which on they count."""
        if not self.config.style_mixing:
            return {}
        generator: Any = self.generator
        other, (mixed, where) = batch.random.normal(self.config.latent_dim), batch.random.uniform(2).unbind(1)
        crossover = 1 + (where * (generator.num_layers - 1)).long()
        crossover = torch.where(mixed < self.config.style_mixing, crossover, generator.num_layers)
        return {"other_latents": other, "crossover": crossover}

    def _path_length_penalty(
        self, batch: Batch, latents: torch.Tensor, labels: torch.Tensor | None, more: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the mean penalty and the lengths of every other image, as the paper does to save memory, in float32.

        Latents and noise are those of the batch, and `w_avg` has followed these already.
        """
        generator: Any = self.generator
        assert self.path_length is not None
        half = slice(None, None, 2)
        labels = None if labels is None else labels[half]
        with torch.autocast(latents.device.type, enabled=False):
            first = generator.map(latents[half], labels, update_w_avg=False)
            styles = first[:, None].expand(-1, generator.num_layers, -1)
            if "crossover" in more:
                other = generator.map(more["other_latents"][half], labels, update_w_avg=False)
                styles = generator.mix(first, other, more["crossover"][half])
            images = generator.synthesize(styles, [noise[half] for noise in more["noise"]])
            lengths = path_lengths(images, styles, batch.random.normal(*images.shape[1:])[half])
            penalty = (lengths - self.path_length.mean).square().mean()
        self.path_length.observe(lengths.detach())
        return penalty, lengths.detach()

    def _discriminator_loss(
        self, batch: Batch, fake: torch.Tensor, labels: torch.Tensor | None, progress: Progress
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        config = self.config
        real, penalties = batch["image"].detach(), {}
        if progress.step % config.penalty_interval == 0:
            penalised = (("r1", config.r1_gamma, real), ("r2", config.r2_gamma, fake))
            penalties = {name: (weight, images.requires_grad_()) for name, weight, images in penalised if weight}
        real_seen, fake_seen = self._augment(batch, real), self._augment(batch, fake)
        restored = None
        if config.reconstruction_weight:
            judged = self.discriminator(real_seen, labels)
            real_logits, fake_logits = judged.logits, self._judge(fake_seen, labels)
            restored = self._reconstruction_error(batch, real_seen, judged)
        elif self.discriminator.mixes_samples:
            real_logits, fake_logits = self._judge(real_seen, labels), self._judge(fake_seen, labels)
        else:
            both = None if labels is None else torch.cat([labels, labels])
            real_logits, fake_logits = self._judge(torch.cat([real_seen, fake_seen]), both).chunk(2)
        centred = real_logits.detach()
        if not self.objective.centred:  # where 0 has no meaning, the middle between the two means stands for it
            centred = centred - (centred.mean() + fake_logits.detach().mean()) / 2
        if self.adaptive is not None:
            self.adaptive.observe(centred)
        smoothing = {"smoothing": config.label_smoothing} if self.objective.smoothing else {}
        loss = self.objective.discriminator(real_logits, fake_logits, **smoothing).mean()
        gap = (real_logits - fake_logits).detach()
        metrics = {
            "d_loss": loss.detach(),
            "logit_gap": gap.mean(),
            "ranked_right": (gap > 0).float().mean() + (gap == 0).float().mean() / 2,
            "sign_real": centred.sign().mean(),
        }
        if restored is not None:
            loss = loss + config.reconstruction_weight * restored
            metrics["reconstruction"] = restored.detach()
        if penalties:  # both from one backward pass: no logit depends on an image of the other kind
            logits = torch.cat([real_logits, fake_logits])
            values = squared_gradients(logits, *(images for _, images in penalties.values()))
            for (name, (weight, _)), penalty in zip(penalties.items(), values, strict=True):
                loss = loss + config.penalty_interval * weight / 2 * penalty.mean()
                metrics[name] = penalty.mean().detach()
        if config.lipschitz_weight:
            between = interpolate(real.detach(), fake.detach(), batch.random.uniform()).requires_grad_()
            penalty = lipschitz_penalty(self._judge(self._augment(batch, between), labels), between).mean()
            loss = loss + config.lipschitz_weight * penalty
            metrics["lipschitz"] = penalty.detach()
        if self.adaptive is not None:
            metrics["augment_probability"] = self.adaptive.probability.clone()
        return loss, metrics

    def _reconstruction_error(self, batch: Batch, images: torch.Tensor, judged: Any) -> torch.Tensor:
        """Returns how far the images that the discriminator restores from its features are from what it saw: the mean
        distance of pixels, in place of the paper's in the features of a network that was trained on other images."""
        discriminator: Any = self.discriminator
        quarters = (4 * batch.random.uniform()).long().clamp(max=3)
        restored = discriminator.reconstruct(judged.last_map, judged.map_before, quarters)
        targets = reconstruction_targets(images, quarters, restored)
        return torch.stack([F.l1_loss(*pair) for pair in zip(restored, targets, strict=True)]).sum()

    def _generator_loss(
        self, batch: Batch, fake: torch.Tensor, labels: torch.Tensor | None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        fake_logits = self._judge(self._augment(batch, fake), labels)
        real_logits = None
        if self.objective.relativistic:
            with torch.no_grad():
                real_logits = self._judge(self._augment(batch, batch["image"]), labels)
        loss = self.objective.generator(real_logits, fake_logits).mean()
        spread = torch.stack([within_class_scatter(images.detach(), labels) for images in (fake, batch["image"])])
        return loss, {"g_loss": loss.detach(), "diversity": spread}

    def _judge(self, images: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        return self.discriminator(images, labels).logits

    def _augment(self, batch: Batch, images: torch.Tensor) -> torch.Tensor:
        """Augments what the discriminator sees: penalties are taken with respect to the image before."""
        probability = self.adaptive.probability if self.adaptive is not None else self.config.augment_probability
        if self.adaptive is None and not self.config.augment_probability:
            return images
        return augment(images, batch.random, probability, self.config.augmentations)

    def after_step(self, images: int) -> None:
        if self.adaptive is not None:
            self.adaptive.update(images)
        if self.path_length is not None:
            self.path_length.update()

    def warnings(self, means: dict[str, float], progress: Progress) -> list[str]:
        return self._alarms(means, progress)

    def pipeline(self, modules: dict[str, nn.Module], fitted: Any = None) -> DiffusionPipeline:
        return GANPipeline(modules["generator"], **self._class_arguments)


def within_class_scatter(images: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
    """Measures how much the images of a batch differ: their squared distance from their mean, or from that of their
    class.

    The mean squared distance of two images is twice their variance. Between classes there is always some, whatever a
    generator makes of its latents; so only what differs within a class counts.

    Args:
        images (`torch.Tensor` of shape `(B, C, H, W)`): Images.
        labels (`torch.Tensor` of shape `(B,)`, *optional*): Classes. An image that is alone in its class counts as 0.

    Returns:
        A scalar, the sum over images and pixels.
    """
    flat = images.float().flatten(1)
    labels = torch.zeros(len(flat), dtype=torch.int64, device=flat.device) if labels is None else labels
    same = (labels[:, None] == labels).float()
    with torch.autocast(flat.device.type, enabled=False):
        return (flat - same @ flat / same.sum(1, keepdim=True)).square().sum()


class Alarms:
    """Says in plain words when a GAN goes wrong, once for each time that it does.

    Args:
        config ([`GANConfig`]): What is in use already is not advised.
        patience (`int`, *optional*, defaults to 50000): Images over which a sign must last, in a long run.
    """

    def __init__(self, config: GANConfig, patience: int = 50_000):
        self.config, self.patience = config, Patience(patience)

    def __call__(self, means: dict[str, float], progress: Progress) -> list[str]:
        """Returns warnings about the means of an interval of steps, and of how far the run is at its end."""
        ranked, diversity = means.get("ranked_right", math.nan), means.get("diversity", math.nan)
        saturated = (
            f"the discriminator is saturated: it tells {ranked:.1%} of the pairs apart, and the generator learns "
            f"little from it. Try {self._bound()}{self._penalties()}, `ada_target` 0.6, or a lower "
            "`discriminator_learning_rate`."
        )
        stuck = (
            f"the loss is stuck: the discriminator tells only {ranked:.1%} of the pairs apart, half by chance, and "
            f"yet the generated images differ from each other only {diversity:.2f} times as much as real ones. Try a "
            "higher `discriminator_learning_rate`, or weaker penalties."
        )
        collapsed = (
            f"the generator collapses: its images (of one class or group) differ from each other only "
            f"{diversity:.2f} times as much as real ones. Look at the sample grid; try {self._bound()}`objective` "
            f"relativistic, {self._penalties()}, a lower `learning_rate`, or a larger batch."
        )
        signs = {
            # A critic of bounded slope is meant to tell all pairs apart.
            saturated: ranked >= 0.99 and self.config.objective != "wasserstein",
            stuck: ranked <= 0.52 and diversity < 0.5,  # ranks by chance and good images are what success looks like
            collapsed: diversity < 0.25,
        }
        messages = []
        for text, sign in signs.items():
            lasted = self.patience.lasts(text.partition(":")[0], sign, progress)
            if lasted is not None:
                messages.append(f"for {lasted} images {text}")
        return messages

    def _bound(self) -> str:
        return "`output_activation` tanh, " if self.config.output_activation == "none" else ""

    def _penalties(self) -> str:
        if self.config.r1_gamma and self.config.r2_gamma:
            return "higher `r1_gamma` and `r2_gamma`"
        batch_norm = self.config.discriminator_norm == "batch"
        return "`r1_gamma` 0.05 `r2_gamma` 0.05" + (" with `discriminator_norm` group" if batch_norm else "")
