"""The page of a checkpoint of a foreign family: it samples what `hfgen sample` does, and has no tab too many."""

import numpy as np
import pytest

import hfgen
from hfgen.runtime.errors import UserError

pytest.importorskip("gradio")

TINY = {"dataset_name": "digits", "resolution": 8, "train_batch_size": 16, "max_train_steps": 2, "eval_batch_size": 4}
TINY |= {"mixed_precision": "no", "cpu_threads": 1, "save_images_epochs": 0.0}


def test_the_page(tmp_path, toys, on_the_cpu):
    from hfgen.demo import actions
    from hfgen.demo.page import build

    run = hfgen.train("toy_ar", **TINY, output_dir=str(tmp_path / "ar"), say=str)
    adapter = hfgen.adapter_of(hfgen.load_pipeline(str(run.folder.path)))
    tabs = {
        block["props"]["label"] for block in build(adapter, "ar", 4).config["components"] if block["type"] == "tabitem"
    }
    assert len(tabs) == 1  # neither latents to walk through nor holes to fill
    shown = actions.sample(adapter, "ar", 4, 7, 3)
    same = hfgen.sample(str(run.folder.path), num_images=3, seed=7)
    assert all(np.array_equal(image, other) for (image, _), other in zip(shown, same, strict=True))
    assert [caption for _, caption in shown] == ["image 0", "image 1", "image 2"]


def test_what_a_translator_lacks_is_said(tmp_path, toys, on_the_cpu):
    run = hfgen.train("toy_pair", **TINY, output_dir=str(tmp_path / "pair"), say=str)
    with pytest.raises(UserError, match="translator, which makes no images from seeds"):
        hfgen.sample(str(run.folder.path), num_images=2)
