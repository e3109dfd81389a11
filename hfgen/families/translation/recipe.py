"""The translation recipe: translators against discriminators, tied to their images by one or several terms."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.nn import functional as F

from hfgen.data.info import DataInfo, ImageInfo
from hfgen.families.translation.options import TranslationConfig
from hfgen.models.patch_discriminator import PatchDiscriminator
from hfgen.models.resnet_translator import ResNetTranslator
from hfgen.models.unet_translator import UNetTranslator
from hfgen.objectives.adversarial import OBJECTIVES
from hfgen.objectives.translation import ImagePool, PatchProjection, patch_contrast
from hfgen.pipelines.translation import ImageTranslationPipeline
from hfgen.runtime.errors import UserError
from hfgen.sampling.config import TranslationSamplingConfig
from hfgen.training.alarms import Patience
from hfgen.training.recipe import STATE, AdamW, Batch, Network, Phase, Progress, Recipe

SHOWN = 8  # images of each set on the card
DARK = -0.96  # of pixels in [-1, 1]: black to the eye


class TranslationRecipe(Recipe):
    """Trains translators between the sets A and B, one way or both.

    Args:
        config ([`TranslationConfig`]): The options.
        info ([`~data.info.DataInfo`]): Size and channels of the images of both sets.

    Raises:
        UserError: If networks and data do not fit.
    """

    def __init__(self, config: TranslationConfig, info: DataInfo):
        self.config = config
        a, b = info.columns["a"], info.columns["b"]
        assert isinstance(a, ImageInfo) and isinstance(b, ImageInfo)
        if a.resolution != b.resolution:
            raise UserError(
                f"the images of both sets are of different sizes, {a.resolution} and {b.resolution} pixels: give one "
                f"with `resolution`, such as {min(a.resolution, b.resolution)}."
            )
        if a.channels != b.channels and (config.paired or config.image_mode_b is None or config.contrastive_weight):
            one = "bring both to one with `image_mode`"
            reason = f"{one}, such as RGB; or say that this is meant with `image_mode_b` {b.mode}"
            if config.paired:
                reason = f"pairs are read in one mode: {one}, such as RGB"
            elif config.contrastive_weight:
                reason = f"`contrastive_weight` compares images with their translations: {one} and `image_mode_b`"
            raise UserError(f"the images of the first set are {a.mode}, and those of the second {b.mode}: {reason}.")
        self.shapes = {"a": (a.channels, a.resolution, a.resolution), "b": (b.channels, b.resolution, b.resolution)}
        self.same_channels = a.channels == b.channels
        self.objective = OBJECTIVES[config.objective]
        try:
            self.a2b = self._translator(a, b)
            self.b2a = self._translator(b, a) if config.both_ways else None
            self.discriminator_b = self._discriminator(b, a)
            self.discriminator_a = self._discriminator(a, b) if config.both_ways else None
        except ValueError as error:
            raise UserError(f"`resolution` {a.resolution} does not fit {config.architecture}: {error}") from None
        self.networks = {"a2b": Network(self.a2b, averaged=True), "discriminator_b": Network(self.discriminator_b)}
        if self.b2a is not None and self.discriminator_a is not None:
            self.networks |= {
                "b2a": Network(self.b2a, averaged=True),
                "discriminator_a": Network(self.discriminator_a),
            }
        self.projection: PatchProjection | None = None
        if config.contrastive_weight:
            translator: Any = self.a2b
            self.projection = PatchProjection(translator.feature_channels)
            self.networks["projection"] = Network(self.projection)
        self.pools: dict[str, ImagePool] = {}
        if config.pool_size:
            for name in ("a", "b") if config.both_ways else ("b",):
                self.pools[name] = ImagePool(config.pool_size, self.shapes[name])
                self.networks[f"pool_{name}"] = Network(self.pools[name], STATE, buffers="own")
            self.batch_statistics = "earlier translations, of which each process keeps its own,"
        self.sampling = TranslationSamplingConfig()
        translators = [name for name in ("a2b", "b2a", "projection") if name in self.networks]
        discriminators = [name for name in ("discriminator_a", "discriminator_b") if name in self.networks]
        adam = AdamW(config.learning_rate, (config.adam_beta1, config.adam_beta2), config.adam_epsilon)
        self.phases = (
            Phase("translator", tuple(translators), adam),
            Phase("discriminator", tuple(discriminators), adam),
        )
        self._alarms = Alarms(config)

    def _translator(self, one: ImageInfo, other: ImageInfo) -> nn.Module:
        config = self.config
        shape = {"sample_size": one.resolution, "in_channels": one.channels, "out_channels": other.channels}
        if config.architecture == "unet":
            return UNetTranslator(
                **shape,
                base_channels=config.base_channels,
                num_downsamples=config.num_downsamples,
                dropout=config.dropout,
            )
        return ResNetTranslator(
            **shape,
            base_channels=config.base_channels,
            num_blocks=config.num_blocks,
            num_downsamples=2 if config.num_downsamples is None else config.num_downsamples,
            learn_residual=config.learn_residual and one.channels == other.channels,
        )

    def _discriminator(self, judged: ImageInfo, beside: ImageInfo) -> nn.Module:
        config = self.config
        channels = judged.channels + (beside.channels if config.conditional_discriminator else 0)
        return PatchDiscriminator(channels, config.discriminator_channels, config.discriminator_layers or 1)

    # The losses

    def loss(self, phase: Phase, batch: Batch, progress: Progress) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if phase.name == "discriminator":
            return self._discriminator_loss(batch)
        a, b = batch["a"], batch["b"]
        fake_b = self.a2b(a).sample
        fakes = {"b": fake_b}
        loss, metrics = self._fooling(self.discriminator_b, a, b, fake_b), {}
        if self.b2a is not None and self.discriminator_a is not None:
            fakes["a"] = fake_a = self.b2a(b).sample
            loss = loss + self._fooling(self.discriminator_a, b, a, fake_a)
            cycle = F.l1_loss(self.b2a(fake_b).sample, a) + F.l1_loss(self.a2b(fake_a).sample, b)
            loss = loss + self.config.cycle_weight * cycle
            metrics["cycle_error"] = cycle.detach() / 2
        if self.config.identity_weight and self.same_channels:
            pairs = [(self.a2b, b)] if self.b2a is None else [(self.a2b, b), (self.b2a, a)]
            identity = torch.stack([F.l1_loss(translator(images).sample, images) for translator, images in pairs])
            loss = loss + self.config.identity_weight * identity.sum()
            metrics["identity_error"] = identity.detach().mean()
        if self.projection is not None:
            contrast = self._contrast(batch, a, fake_b)
            if self.config.contrastive_identity and self.same_channels:
                contrast = (contrast + self._contrast(batch, b, self.a2b(b).sample)) / 2
            loss = loss + self.config.contrastive_weight * contrast
            metrics["contrast"] = contrast.detach()
        if self.config.pixel_weight:
            distance = F.l1_loss(fake_b, b)
            loss = loss + self.config.pixel_weight * distance
            metrics["pixel_error"] = distance.detach()
        batch.carry["fakes"] = {name: fake.detach() for name, fake in fakes.items()}
        metrics["g_loss"] = loss.detach()
        return loss, metrics | self._signs(a, b, fake_b.detach())

    def _fooling(
        self, discriminator: nn.Module, given: torch.Tensor, real: torch.Tensor, fake: torch.Tensor
    ) -> torch.Tensor:
        real_logits = None
        if self.objective.relativistic:
            with torch.no_grad():
                real_logits = self._judge(discriminator, given, real)
        logits = self._judge(discriminator, given, fake)
        return self.objective.generator(real_logits, logits).mean()

    def _judge(self, discriminator: nn.Module, given: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Returns a logit for each patch, `(B * h * w,)`."""
        seen = torch.cat([given, images], 1) if self.config.conditional_discriminator else images
        return discriminator(seen).logits.flatten()

    def _contrast(self, batch: Batch, images: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        """Compares places of images with the same places of what was made of them."""
        translator: Any = self.a2b
        project: Any = self.projection
        places = batch.random.uniform(self.config.contrastive_places)
        keys = project(translator.features(images), places)
        queries = project(translator.features(made), places)
        each = [patch_contrast(query, key).mean() for query, key in zip(queries, keys, strict=True)]
        return torch.stack(each).mean()

    def _discriminator_loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        losses, gaps = [], []
        pairs = [(self.discriminator_b, "a", "b"), (self.discriminator_a, "b", "a")]
        for discriminator, given, judged in pairs:
            if discriminator is None:
                continue
            fake, draws = batch.carry["fakes"][judged], batch.random.uniform(2)
            if judged in self.pools:
                fake = self.pools[judged].exchange(fake, draws)
            real_logits = self._judge(discriminator, batch[given], batch[judged])
            fake_logits = self._judge(discriminator, batch[given], fake)
            losses.append(self.objective.discriminator(real_logits, fake_logits).mean())
            gaps.append((real_logits - fake_logits).detach())
        loss, gap = torch.stack(losses).sum(), torch.cat(gaps)
        ranked = (gap > 0).float().mean() + (gap == 0).float().mean() / 2
        return loss, {"d_loss": loss.detach(), "logit_gap": gap.mean(), "ranked_right": ranked}

    @torch.no_grad()
    def _signs(self, a: torch.Tensor, b: torch.Tensor, fake: torch.Tensor) -> dict[str, torch.Tensor]:
        """Measures what the alarms look at, of translations of A."""
        ours, theirs, made = (gray(images) for images in (a, b, fake))
        metrics = {
            "diversity": torch.stack([scatter(fake), scatter(b)]),
            "tone_a": ours.mean(),
            "tone_b": theirs.mean(),
            "black": (made < DARK).float().mean() - (theirs < DARK).float().mean(),
            "correlation": correlation(ours, made),
        }
        if self.same_channels:
            metrics["change"] = (fake.float() - a.float()).abs().mean()
        return metrics

    def warnings(self, means: dict[str, float], progress: Progress) -> list[str]:
        return self._alarms(means, progress)

    # What is published

    def pipeline(self, modules: dict[str, nn.Module], fitted: Any = None) -> DiffusionPipeline:
        return ImageTranslationPipeline(modules["a2b"], modules.get("b2a"))

    @torch.no_grad()
    def card_images(self, modules: dict[str, nn.Module], batches: Iterator[Batch]) -> list[torch.Tensor]:
        """Shows images of A, their translations and the way back, and the same of B; of pairs the other image."""
        found: dict[str, list[torch.Tensor]] = {"a": [], "b": []}
        while sum(map(len, found["a"])) < SHOWN:
            batch = next(batches)
            for name, own in found.items():
                own.append(batch[name])
        a, b = (torch.cat(own)[:SHOWN] for own in found.values())
        there = modules["a2b"](a).sample
        rows = [a, there]
        if "b2a" in modules:
            back = modules["b2a"](b).sample
            rows += [modules["b2a"](there).sample, b, back, modules["a2b"](back).sample]
        elif self.config.paired:
            rows.append(b)
        channels = max(row.shape[1] for row in rows)
        return [with_channels(row.float().clamp(-1, 1) / 2 + 0.5, channels) for row in rows]


def gray(images: torch.Tensor) -> torch.Tensor:
    """Returns the mean of the colours of images in [-1, 1], `(B, H, W)`, float32; transparent ones over white."""
    colours = images[:, :3].float()
    if images.shape[1] == 4:
        alpha = images[:, 3:].float() / 2 + 0.5
        colours = alpha * colours + (1 - alpha)
    return colours.mean(1)


def scatter(images: torch.Tensor) -> torch.Tensor:
    """Returns the sum over images and pixels of their squared distance from the mean of the batch."""
    flat = images.float().flatten(1)
    return (flat - flat.mean(0)).square().sum()


def correlation(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Returns the mean over images `(B, H, W)` of the correlation of their pixels; 0 for images without contrast."""
    one, two = (images.flatten(1) - images.flatten(1).mean(1, keepdim=True) for images in (first, second))
    lengths = one.norm(dim=1) * two.norm(dim=1)
    return ((one * two).sum(1) / lengths.clamp_min(1e-6)).mean()


def with_channels(images: torch.Tensor, channels: int) -> torch.Tensor:
    """Returns images in [0, 1] with so many channels: gray ones with equal colours, and opaque ones with an alpha."""
    if images.shape[1] == 1 and channels > 1:
        images = images.expand(-1, 3, -1, -1)
    if images.shape[1] == 3 and channels == 4:
        images = torch.cat([images, torch.ones_like(images[:, :1])], 1)
    return images


class Alarms:
    """Says in plain words when a translation goes wrong, once for each time that it does.

    Args:
        config ([`TranslationConfig`]): What is in use already is not advised.
        patience (`int`, *optional*, defaults to 10000): Images over which a sign must last, in a long run.
    """

    def __init__(self, config: TranslationConfig, patience: int = 10_000):
        self.config, self.patience = config, Patience(patience)

    def __call__(self, means: dict[str, float], progress: Progress) -> list[str]:
        """Returns warnings about the means of an interval of steps, and of how far the run is at its end."""

        def mean(name: str) -> float:
            return means.get(name, math.nan)

        remedy = "a higher `identity_weight`" if self.config.identity_weight else "`identity_weight` 5"
        other = ", or do without `learn_residual`" if self.config.learn_residual else ""
        near_tones = abs(mean("tone_a") - mean("tone_b")) < 0.3
        unchanged = mean("change") < 0.04
        signs = {
            f"colours are inverted: what is light in an image of A is dark in its translation (correlation "
            f"{mean('correlation'):.2f}), and both sets are about equally light. Try {remedy}, or another `seed`.": (
                mean("correlation") < -0.4 and near_tones
            ),
            f"all images get the same translation: translations differ from each other only {mean('diversity'):.2f} "
            "times as much as images of B. Try a higher `cycle_weight` or `contrastive_weight`, a lower "
            "`learning_rate`, or more images.": mean("diversity") < 0.1,
            f"nothing is changed: a translation is {mean('change') / 2:.1%} of the range of pixels away from its "
            f"image, and the discriminator tells {mean('ranked_right'):.1%} of the patches apart. Try a lower "
            f"`cycle_weight` or `identity_weight`{other}.": unchanged and mean("ranked_right") > 0.8,
            f"black spots: {mean('black'):.1%} more of the translations is black than of the images of B. Try a lower "
            "`learning_rate`.": mean("black") > 0.15 and not unchanged,
        }
        messages = []
        for text, sign in signs.items():
            lasted = self.patience.lasts(text.partition(":")[0], sign, progress)
            if lasted is not None:
                messages.append(f"for {lasted} images {text}")
        return messages
