"""Two sets of images, a frozen network with a derived column, a pool for each process, phases that share a step."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from hfgen.data.columns import Derived, Image, Sources
from hfgen.registry import Family, PipelineEntry
from hfgen.runtime.options import Options, option
from hfgen.sampling.capabilities import Translates
from hfgen.training.recipe import FROZEN, STATE, AdamW, Batch, Network, ParameterGroup, Phase, Recipe


@dataclass(frozen=True)
class ToyPairConfig(Options):
    """Translation toy: the second set, and the learning rate."""

    target_dataset_name: str | None = option(None, "folder of the images to translate to (default: the same data)")
    pool_size: int = option(8, "past translations that each process keeps")
    live: bool = option(False, "encode in each step instead of once")
    learning_rate: float = option(1e-2, "peak learning rate of AdamW")


def spec(options: ToyPairConfig, data: Any) -> Sources:
    """Two sets, each in an order of its own, and the features of the first."""
    target = dataclasses.replace(data, dataset_name=options.target_dataset_name or data.dataset_name)
    columns = {"a": Image(), "b": Image(source="b"), "code": Derived(("a",), ("plain", "flip"), options.live)}
    return Sources(columns, {"b": target})


class ToyPairRecipe(Recipe):
    def __init__(self, options: ToyPairConfig, data: Any):
        import torch
        from toy_pair.model import Features, Pool, Translator

        self.translator = Translator(data.resolution, data.channels)
        with torch.random.fork_rng([]):
            torch.manual_seed(0)  # "weights from the Hub"
            self.features = Features(data.channels)
        self.pool = Pool(options.pool_size, (data.channels, data.resolution, data.resolution))
        self.networks = {
            "translator": Network(self.translator, averaged=True),
            "features": Network(self.features, FROZEN, origin="toys/features@1"),
            "pool": Network(self.pool, STATE, buffers="own"),
        }
        slow = ParameterGroup(("*.bias",), learning_rate=options.learning_rate / 10)
        self.phases = (
            Phase("head", ("translator.head.*",), AdamW(options.learning_rate, groups=(slow,))),
            Phase("tail", ("translator.tail.*",), AdamW(options.learning_rate, weight_decay=0.1)),
        )

    def encode(self, columns: Any) -> Any:
        return {"code": self.features(columns["a"])}

    def loss(self, phase: Phase, batch: Batch, progress: Any) -> Any:
        if phase.name == "head":
            fake = self.translator(batch["a"])
            batch.carry["fake"] = fake.detach()
            self.pool.add(fake)
            loss = (self.features(fake) - batch["code"]).square().mean()
        else:
            loss = (self.translator(batch.carry["fake"]) - batch["b"]).square().mean()
        return loss, {f"{phase.name}_loss": loss.detach()}

    def pipeline(self, modules: Any, fitted: Any = None) -> Any:
        from toy_pair.pipeline import ToyPairPipeline

        return ToyPairPipeline(modules["translator"])

    def card_images(self, modules: Any, batches: Any) -> Any:
        images = next(batches)["a"][:4]
        return [images / 2 + 0.5, (modules["translator"](images).detach() / 2 + 0.5)]


class ToyPairAdapter(Translates):
    kind = "translator"

    def translate(self, images: Any, generators: Any = None, options: Any = None) -> Any:
        return self.pipe(images, output_type="pt").images


FAMILY = Family(
    name="toy_pair",
    title="A translation toy between two sets of images",
    options="toy_pair.family:ToyPairConfig",
    spec="toy_pair.family:spec",
    recipe="toy_pair.family:ToyPairRecipe",
    pipelines=(
        PipelineEntry(
            pipeline="toy_pair.pipeline:ToyPairPipeline",
            adapter="toy_pair.family:ToyPairAdapter",
        ),
    ),
)
