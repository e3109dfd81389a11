"""What every training script does once its options are read."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hfgen.data.cache import DataInfo
from hfgen.data.config import DataConfig
from hfgen.data.streams import open_batches
from hfgen.hub.push import check_push
from hfgen.training.config import TrainingConfig
from hfgen.training.folder import Run
from hfgen.training.loop import Trainer
from hfgen.training.recipe import Recipe

FIRST = 256  # images that a recipe looks at beforehand


def train(
    family: str,
    data: DataConfig,
    training: TrainingConfig,
    options: Any,
    make_recipe: Callable[[DataInfo], Recipe],
    command: str = "",
    say: Callable[[str], None] | None = None,
) -> None:
    """Trains a recipe on the data, and pushes the result if asked to.

    Args:
        family (`str`): `"ddpm"`, `"gan"`, ...: chooses the card.
        data ([`DataConfig`]), training ([`TrainingConfig`]), options: The three groups of options.
        make_recipe (`Callable`): Makes the recipe, knowing the images.
        command (`str`, *optional*): The command line, for the record.
        say (`Callable`, *optional*): Prints a line; by default beside the progress bar.

    Raises:
        UserError: For whatever a user can put right.
    """
    if training.push_to_hub:
        model_id = training.hub_model_id or Path(str(training.output_dir)).name
        if os.environ.get("RANK", "0") == "0":  # one process asks, and takes the others down if the answer is no
            model_id = check_push(model_id, training.hub_private_repo, training.hub_token)
        training = dataclasses.replace(training, hub_model_id=model_id)
    run = Run(family, (data, training, options), command)
    batches = open_batches(
        data, training.seed, training.hub_token, 0 if options.class_conditional else data.num_clusters
    )
    torch.manual_seed(training.seed)  # the initial weights
    recipe = make_recipe(batches.info)
    if not data.streaming:  # a stream's images come once
        recipe.look(batches.read(0, min(FIRST, batches.info.num_images or FIRST)).images)
    trainer = Trainer(recipe, batches, run, data, say)
    trainer.train()
    if training.push_to_hub and trainer.main:
        trainer.say(f"Pushed:   {trainer.push_to_hub()}")
