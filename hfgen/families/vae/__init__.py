"""VAE: images into few numbers and back, with a density over them to sample from."""

from hfgen.registry import Family, PipelineEntry

FAMILY = Family(
    name="vae",
    title="VAE: images into few numbers and back, with a density over them to sample from",
    options="hfgen.families.vae.options:VAEConfig",
    presets="hfgen.families.vae.options:PRESETS",
    default_preset="residual",
    resolve="hfgen.families.vae.options:resolve",
    follow="hfgen.families.vae.options:follow",
    adopt="hfgen.families.vae.options:ADOPT",
    recipe="hfgen.families.vae.recipe:VAERecipe",
    pipelines=(
        PipelineEntry(
            "hfgen.pipelines.vae:VAEPipeline",
            "hfgen.sampling.vae:VAEAdapter",
            "hfgen.sampling.config:VAESamplingConfig",
        ),
    ),
    card="hfgen.families.vae:card.md",
    compare={},
)
