"""The family: what hfgen has to know of it. Importing this file imports no torch."""

from dataclasses import dataclass
from typing import Any

from hfgen.registry import Family, PipelineEntry
from hfgen.runtime.options import Options, option
from hfgen.sampling.capabilities import Density, Generates, HasDensity
from hfgen.training.recipe import AdamW, Batch, Network, Phase, Recipe


@dataclass(frozen=True)
class ToyARConfig(Options):
    """Autoregressive toy: width and learning rate."""

    width: int = option(8, "channels of the hidden layers", least=1, most=1024, weighs=True)
    learning_rate: float = option(1e-2, "peak learning rate of AdamW", above=0, most=100)


def tiny() -> dict[str, Any]:
    """Eight pixels a side, a few steps."""
    return {"resolution": 8, "train_batch_size": 16, "max_train_steps": 6}


class ToyARRecipe(Recipe):
    def __init__(self, options: ToyARConfig, data: Any):
        from toy_ar.model import PixelCNN

        self.model = PixelCNN(data.resolution, data.channels, options.width)
        self.networks = {"model": Network(self.model, averaged=True)}
        self.phases = (Phase("model", ("model",), AdamW(options.learning_rate)),)

    def loss(self, phase: Phase, batch: Batch, progress: Any) -> Any:
        loss = self.model.nats(batch["image"]).mean() / batch["image"][0].numel()
        return loss, {"loss": loss.detach()}

    def pipeline(self, modules: Any, fitted: Any = None) -> Any:
        from toy_ar.pipeline import ToyARPipeline

        return ToyARPipeline(modules["model"])


class ToyARAdapter(Generates, HasDensity):
    kind = "PixelCNN"

    def generate(self, generators: Any, labels: Any, options: Any) -> Any:
        return self.pipe(len(generators), generators, output_type="pt").images

    def log_prob(self, images: Any, labels: Any = None, generator: Any = None, num_samples: int = 1) -> Density:
        exact = -self.pipe.model.nats(images)
        return Density(lower=exact, estimate=exact)


FAMILY = Family(
    name="toy_ar",
    title="An autoregressive toy, pixel by pixel",
    options="toy_ar.family:ToyARConfig",
    presets="toy_ar.family:PRESETS",
    recipe="toy_ar.family:ToyARRecipe",
    pipelines=(
        PipelineEntry(
            pipeline="toy_ar.pipeline:ToyARPipeline",
            adapter="toy_ar.family:ToyARAdapter",
        ),
    ),
)
PRESETS = {"tiny": tiny}
