"""Translation: images of one set into images of another, paired or not."""

from hfgen.registry import Family, PipelineEntry

FAMILY = Family(
    name="translation",
    title="Translation: images of one set into images of another, paired or not (CycleGAN, CUT, pix2pix)",
    options="hfgen.families.translation.options:TranslationConfig",
    presets="hfgen.families.translation.options:PRESETS",
    default_preset="cyclegan",
    spec="hfgen.families.translation.options:spec",
    resolve="hfgen.families.translation.options:resolve",
    follow="hfgen.families.translation.options:follow",
    adopt="hfgen.families.translation.options:ADOPT",
    recipe="hfgen.families.translation.recipe:TranslationRecipe",
    pipelines=(
        PipelineEntry(
            "hfgen.pipelines.translation:ImageTranslationPipeline",
            "hfgen.sampling.translation:TranslationAdapter",
            "hfgen.sampling.config:TranslationSamplingConfig",
        ),
    ),
    card="hfgen.families.translation:card.md",
    synonyms={"dataset_a": "dataset_name"},
)
