"""Autoregressive models: one pixel after another, each from those before it, with exact likelihoods."""

from hfgen.registry import Family, PipelineEntry

FAMILY = Family(
    name="autoregressive",
    title="Autoregressive model: one pixel after another, each from those before it, with exact likelihoods",
    options="hfgen.families.autoregressive.options:AutoregressiveConfig",
    presets="hfgen.families.autoregressive.options:PRESETS",
    default_preset="pixelcnn",
    spec="hfgen.families.autoregressive.options:spec",
    resolve="hfgen.families.autoregressive.options:resolve",
    follow="hfgen.families.autoregressive.options:follow",
    adopt="hfgen.families.autoregressive.options:ADOPT",
    recipe="hfgen.families.autoregressive.recipe:AutoregressiveRecipe",
    pipelines=(
        PipelineEntry(
            "hfgen.pipelines.autoregressive:AutoregressivePipeline",
            "hfgen.sampling.autoregressive:AutoregressiveAdapter",
            "hfgen.sampling.config:AutoregressiveSamplingConfig",
        ),
    ),
    card="hfgen.families.autoregressive:card.md",
    compare={},
)
