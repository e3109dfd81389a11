"""The cards in model_cards/: what they print runs, in its order, and each command finds what those before it made."""

import re
import shlex

import pytest
from helpers import ROOT, TINY, TINY_GAN, TINY_VAE, Command
from huggingface_hub import ModelCard

from hfgen.evaluation.explanations import explain

SHORT = {"ddpm": [*TINY, "--num_clusters", "4"], "gan": [*TINY_GAN, "--num_clusters", "4"], "vae": TINY_VAE}


@pytest.mark.parametrize("name", SHORT)
def test_a_card_of_ours_runs_as_it_is_printed(name, tmp_path, monkeypatch):
    """On the digits, for a few steps: MNIST would have to be downloaded."""
    path = ROOT / "model_cards" / f"{name}-mnist" / "README.md"
    card = ModelCard.load(path)
    monkeypatch.chdir(tmp_path)
    made, ran = set(), []
    for kind, block in re.findall(r"```(bash|python)\n(.*?)```", card.text, re.DOTALL):
        for line in block.splitlines() if kind == "bash" else []:
            command, verb, *words = shlex.split(line)
            assert command == "hfgen"
            ran.append(verb)
            options = Command(verb).read_options(words)
            if verb == "train":
                made.add(options[1].output_dir)
                Command(verb).main(
                    [*words, *SHORT[name], "--max_train_steps", "1", "--output_dir", options[1].output_dir]
                )
            elif verb == "classify":
                made.add(options[1].output_dir)
            else:  # what it needs was made by the commands before it
                config = options[0][0]
                assert verb == "evaluate" and {*config.model, config.extractor} <= made
        if kind == "python":
            namespace = {}
            exec(block, namespace)
            assert len(namespace["images"]) == 4
            ran.append("python")
    assert ran == ["train", "python", "python", "classify", "evaluate"]

    assert "No licence was chosen" in card.text and "The weights are not in this repository." in card.text
    for result in card.data.eval_results:  # each number has a title that is explained
        title = re.match(r"(.*) \(((classifier \w+|exact|bound|estimate), )?[\d,]+ images\)$", result.metric_name)[1]
        assert f"- **{title}:** {explain(result.metric_type)}\n" in card.text
    assert (name == "ddpm") == ("figures are of the sampler `dpmsolver++`" in card.text)
