"""Flow: images into as many normal numbers and back, with an exact density."""

from hfgen.registry import Family, PipelineEntry

FAMILY = Family(
    name="flow",
    title="Flow: images into as many normal numbers and back, with an exact density",
    options="hfgen.families.flow.options:FlowConfig",
    presets="hfgen.families.flow.options:PRESETS",
    default_preset="tarflow",
    resolve="hfgen.families.flow.options:resolve",
    follow="hfgen.families.flow.options:follow",
    adopt="hfgen.families.flow.options:ADOPT",
    recipe="hfgen.families.flow.recipe:FlowRecipe",
    pipelines=(
        PipelineEntry(
            "hfgen.pipelines.flow:FlowPipeline",
            "hfgen.sampling.flow:FlowAdapter",
            "hfgen.sampling.config:FlowSamplingConfig",
        ),
    ),
    card="hfgen.families.flow:card.md",
    compare={},
)
