"""What a person looks at after a run."""

import json

import numpy as np
from PIL import Image

from hfgen.training.metrics import grouped
from hfgen.training.overview import FILES, PANEL_WIDTH, chosen, draw_metrics, read_lines, write_overview


def run_folder(folder, grids=12, lines=20):
    (folder / "samples").mkdir(parents=True)
    (folder / "logs").mkdir()
    for number in range(grids):
        array = np.full((140, 280, 3), 20 * number, np.uint8)
        Image.fromarray(array).save(folder / "samples" / f"{640 * (number + 1):012d}.png")
    records = [
        {"images_seen": 64 * i, "step": i, "loss": 1 / (i + 1), "kl_latent_00": 0.1, "images_per_second": 9.0}
        for i in range(1, lines + 1)
    ]
    text = "".join(json.dumps(line) + "\n" for line in records) + '{"images_seen": 9'
    (folder / "logs" / "metrics.jsonl").write_text(text)
    (folder / "run.json").write_text("{}")
    return folder


def test_pictures_and_page(tmp_path):
    folder = run_folder(tmp_path / "run")
    page = write_overview(folder, folder / "logs", 16).read_text()
    for name in ("run.json", "samples/", "overview/samples.gif", "logs/metrics.jsonl"):
        assert f"| `{name}` | {FILES[name]} |" in page
    assert "best/" not in page, "only what is there"
    with Image.open(folder / "overview" / "samples.gif") as gif:
        assert gif.n_frames == 12 and gif.size == (280, 140)
    with Image.open(folder / "overview" / "samples.png") as strip:
        assert strip.height == 8 * 72
        column = np.asarray(strip)[36::72, 300, 0].tolist()
        assert column == sorted(column) and column[0] == 0 and column[-1] == 220, "from the first to the last"
    with Image.open(folder / "overview" / "metrics.png") as chart:
        assert chart.width > 2 * PANEL_WIDTH and len(set(map(tuple, np.asarray(chart).reshape(-1, 3)))) > 3


def test_a_run_that_has_shown_nothing_yet(tmp_path):
    folder = run_folder(tmp_path / "run", grids=0, lines=0)
    assert "| `run.json` |" in write_overview(folder, folder / "logs", 16).read_text()
    assert [path.name for path in (folder / "overview").iterdir()] == ["README.md"]


def test_lines_and_panels(tmp_path):
    folder = run_folder(tmp_path / "run")
    lines = read_lines(folder / "logs" / "metrics.jsonl")
    assert len(lines) == 20, "a torn line is left out"
    one, two = (draw_metrics(lines + [{"images_seen": 1300, **more}]) for more in ({}, {f"m{i}": 1 for i in range(3)}))
    assert two.height > one.height
    broken = draw_metrics([{"images_seen": 64, "loss": float("nan")}, {"images_seen": 128, "loss": 1.0, "flag": True}])
    assert broken.width == one.width
    assert draw_metrics([{"images_seen": 0, "loss": 2}, {"images_seen": 0, "loss": 2}]).height > 0


def test_grids_are_chosen_evenly():
    assert chosen(list(range(100)), 4) == [0, 33, 66, 99]
    assert chosen([1, 2], 4) == [1, 2]


def test_groups_of_metrics():
    names = ["eval_fd", "kl_latent_03", "rate", "loss", "lr", "images_per_second"]
    assert [grouped(name) for name in names] == [
        *("eval/fd", "latents/kl_latent_03", "latents/rate", "train/loss", "train/lr", "train/images_per_second"),
    ]
