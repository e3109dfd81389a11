"""DDPM: a UNet2DModel that learns to remove noise, with the schedule of a DDPMScheduler."""

from hfgen.registry import Family, PipelineEntry

FAMILY = Family(
    name="ddpm",
    title="DDPM: a UNet2DModel that learns to remove noise, with the schedule of a DDPMScheduler",
    options="hfgen.families.ddpm.options:DDPMConfig",
    presets="hfgen.families.ddpm.options:PRESETS",
    resolve="hfgen.families.ddpm.options:resolve",
    follow="hfgen.families.ddpm.options:follow",
    adopt="hfgen.families.ddpm.options:ADOPT",
    recipe="hfgen.families.ddpm.recipe:DDPMRecipe",
    pipelines=(
        PipelineEntry(
            pipeline="diffusers:DDPMPipeline",
            adapter="hfgen.sampling.ddpm:DDPMAdapter",
            options="hfgen.sampling.config:DDPMSamplingConfig",
        ),
        PipelineEntry(
            "hfgen.pipelines.ddpm_sampling:ClassConditionalDDPMPipeline",
            "hfgen.sampling.ddpm:ClassConditionalDDPMAdapter",
            "hfgen.sampling.config:DDPMSamplingConfig",
        ),
        PipelineEntry(
            "hfgen.pipelines.ddpm_restoration:DDPMRestorationPipeline",
            "hfgen.sampling.ddpm_restorer:DDPMRestorerAdapter",
        ),
    ),
    card="hfgen.families.ddpm:card.md",
    compare={"num_clusters": None, "lr_warmup_steps": 100},
)
