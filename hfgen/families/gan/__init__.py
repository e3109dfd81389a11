"""GAN: a generator of images against a discriminator that tells them from real ones."""

from hfgen.registry import Family, PipelineEntry

FAMILY = Family(
    name="gan",
    title="GAN: a generator of images against a discriminator that tells them from real ones",
    options="hfgen.families.gan.options:GANConfig",
    presets="hfgen.families.gan.options:PRESETS",
    default_preset="stable",
    resolve="hfgen.families.gan.options:resolve",
    follow="hfgen.families.gan.options:follow",
    adopt="hfgen.families.gan.options:ADOPT",
    recipe="hfgen.families.gan.recipe:GANRecipe",
    pipelines=(
        PipelineEntry(
            "hfgen.pipelines.gan:GANPipeline",
            "hfgen.sampling.gan:GANAdapter",
            "hfgen.sampling.config:GANSamplingConfig",
        ),
    ),
    card="hfgen.families.gan:card.md",
    compare={},
)
