"""Model cards, filled from `run.json`: nothing is stated that was not recorded."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData


def template_path(family: str) -> Path:
    """The card template of a family, in an installed wheel or in a checkout."""
    here = Path(__file__).parent
    candidates = (here / "templates", here.parent.parent / "model_cards" / "templates")
    return next(folder / f"{family}.md" for folder in candidates if folder.is_dir())


def write_card(folder: Path, record: dict[str, Any]) -> None:
    """Writes `README.md` into a pipeline folder.

    Args:
        folder (`Path`): The pipeline folder.
        record (`dict`): What `run.json` holds.
    """
    config, data = record["config"], record["data"]
    conditional = bool(config.get("class_conditional"))
    groups = not conditional and bool(data.get("class_shares"))
    name = config["dataset_name"]
    on_hub = (
        bool(name) and "/" in name and not Path(name).expanduser().exists() and not name.startswith((".", "/", "~"))
    )
    model_id = config["hub_model_id"] if config["push_to_hub"] and config["hub_model_id"] else config["output_dir"]
    card_data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["hfgen", record["family"], "class-conditional" if conditional else "unconditional"],
        datasets=[name] if on_hub else None,
    )
    card = ModelCard.from_template(
        card_data,
        template_path=str(template_path(record["family"])),
        title=Path(model_id).name,
        model_id=model_id,
        conditional=conditional,
        groups=groups,
        record=record,
        config=config,
        data=data,
        channels={"L": "gray", "RGB": "colour (RGB)", "RGBA": "colour with transparency (RGBA)"}[data["mode"]],
        parameters=sum(record["parameters"].values()) / 1e6,
        has_samples=(folder / "samples.png").exists(),
        has_reconstructions=(folder / "reconstructions.png").exists(),
    )
    card.save(folder / "README.md")
