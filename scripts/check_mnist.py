"""Judge generated MNIST digits with an independent classifier.

The first run trains a small convolutional network on the real training digits (about two minutes on two CPU cores)
and keeps it in --classifier_dir; later runs reuse it. The program then reads every PNG of --images (grids left out)
and reports how many of the digits the classifier is sure of, how often each digit appears and, if the folder has a
samples.json with class labels, how often the digit drawn is the digit asked for; and the Fréchet distance of the
images to the real test images in the classifier's features (no FID: that is about another network's), which falls with
the number of images: compare equal numbers. Of Stacked MNIST (colour images, see
make_stacked_mnist.py) it judges each channel and counts which of the 1,000 kinds occur. The figures for the real test
images stand beside them, as the mark that a good generator comes close to. Read all figures together and look at the
images too: a classifier that knows digits only can be sure of noise (it may call all of it an 8).

    python scripts/check_mnist.py --images out/ddpm-mnist/images --dataset_name ylecun/mnist --output report.json
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfgen.cli import option, parse
from hfgen.data.config import DataConfig
from hfgen.errors import UserError, one_line_errors

if TYPE_CHECKING:  # torch takes seconds to import, and `--help` does not need it
    import torch

SIZE = 28  # pixels per side of an MNIST image
DIGITS = 10
SURE = 0.9  # top probability from which a digit counts as clearly readable
MAX_SHIFT = 2  # pixels, the random shift of the training images
EPOCHS = 10
BATCH_SIZE = 128
LEARNING_RATE = 5e-3
MIN_TEST_ACCURACY = 0.99  # a weaker judge says little about what it judges
WEIGHTS = "model.safetensors"
TEST = "test_features.safetensors"


@dataclass(frozen=True)
class CheckConfig:
    """Checking: which images, and by which classifier."""

    images: str | None = option(None, "folder with the generated 28x28 PNG files")
    dataset_name: str = option("ylecun/mnist", "Hub id or folder of the real digits")
    classifier_dir: str = option("out/mnist-classifier", "folder of the classifier, which is trained if it is missing")
    output: str | None = option(None, "JSON report (default: check_mnist.json in --images)")
    seed: int = option(0, "seed of the classifier's training")


def read_options(argv: Sequence[str] | None = None) -> CheckConfig:
    (config,) = parse((CheckConfig,), argv, description=str(__doc__).partition("\n")[0])
    if not config.images:
        raise UserError("--images is missing: give the folder that scripts/sample.py wrote.")
    return config


def build_model() -> "torch.nn.Module":
    """Three blocks of convolution, batch norm and pooling (28 -> 14 -> 7 -> 3 pixels), then one linear layer."""
    import torch
    from torch import nn

    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)]
        layers += [nn.MaxPool2d(2), nn.ReLU()]  # pooled first: the same result for a quarter of the ReLU's work
    model = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(128 * 3 * 3, DIGITS))
    # Twice as fast on CPU; torch's type hints do not know this form of the call.
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def to_input(images: "torch.Tensor") -> "torch.Tensor":
    """Bytes (N, 28, 28) to (N, 1, 28, 28) with the mean and the deviation of the MNIST training pixels taken out."""
    return (images[:, None].float() / 255 - 0.1307) / 0.3081


def random_shift(images: "torch.Tensor") -> "torch.Tensor":
    """Move each image by its own random offset; the pixels that come in from outside are black."""
    import torch

    padded = torch.nn.functional.pad(images, (MAX_SHIFT,) * 4)
    row_offset, column_offset = torch.randint(0, 2 * MAX_SHIFT + 1, (2, len(images), 1))
    rows, columns = torch.arange(SIZE) + row_offset, torch.arange(SIZE) + column_offset
    return padded[torch.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]


def load_split(dataset_name: str, split: str) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Images (N, 28, 28) as bytes and labels (N,) of one split."""
    import numpy as np
    import torch

    from hfgen.data.images import open_images

    data = open_images(DataConfig(dataset_name=dataset_name, dataset_split=split, image_mode="L"))
    if data.images.shape[2:] != (SIZE, SIZE) or data.labels is None or len(data.info.class_names or ()) != DIGITS:
        raise UserError(f"--dataset_name {dataset_name} is no MNIST: give {SIZE}x{SIZE} images with {DIGITS} classes.")
    return torch.from_numpy(np.array(data.images[:, 0])), torch.from_numpy(data.labels)


def classify(model: "torch.nn.Module", images: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    """Top probability and predicted digit of each image."""
    import torch

    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(to_input(batch)) for batch in images.split(1000)])
    top = logits.softmax(dim=1).max(dim=1)
    return top.values, top.indices


def feature_statistics(model: "torch.nn.Module", images: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    """Mean and covariance, in float64, of what the classifier's last layer sees of each image."""
    import torch

    model.eval()
    with torch.inference_mode():
        layers = list(model.children())[:-2]  # without dropout and the last layer
        features = torch.cat([torch.nn.Sequential(*layers)(to_input(batch)) for batch in images.split(1000)]).double()
    return features.mean(dim=0), features.T.cov()


def frechet_distance(
    first: tuple["torch.Tensor", "torch.Tensor"], second: tuple["torch.Tensor", "torch.Tensor"]
) -> float:
    """The squared Wasserstein distance of two Gaussians, each a mean and a covariance (Dowson and Landau, 1982)."""
    import torch

    roots = []
    for _, covariance in (first, second):
        values, vectors = torch.linalg.eigh(covariance)
        roots.append(vectors * values.clamp(min=0).sqrt() @ vectors.T)
    # The trace of the root of the product of both; the roots of its eigenvalues would be rough near zero.
    cross = torch.linalg.svdvals(roots[0] @ roots[1]).sum()
    return ((first[0] - second[0]).square().sum() + first[1].trace() + second[1].trace() - 2 * cross).item()


def share(hits: "torch.Tensor") -> float:
    return hits.double().mean().item()


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def train_classifier(dataset_name: str, folder: Path, seed: int) -> None:
    """Train on the train split, measure on the test split and save both the weights and the figures."""
    import torch
    from safetensors.torch import save_file

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--classifier_dir {folder}: holds something else than a classifier; name a new folder")
    (images, labels), (test_images, test_labels) = (load_split(dataset_name, split) for split in ("train", "test"))
    torch.manual_seed(seed)
    model = build_model()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    steps = EPOCHS * len(images.split(BATCH_SIZE))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps)
    start = time.perf_counter()
    for epoch in range(EPOCHS):
        model.train()
        for batch in torch.randperm(len(images)).split(BATCH_SIZE):
            # No label smoothing: it would push the top probabilities below SURE.
            loss = torch.nn.functional.cross_entropy(model(to_input(random_shift(images[batch]))), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"classifier: epoch {epoch + 1}/{EPOCHS} done after {time.perf_counter() - start:.0f} s", flush=True)

    probabilities, predictions = classify(model, test_images)
    accuracy = share(predictions == test_labels)
    if accuracy < MIN_TEST_ACCURACY:
        reason = f"gives a classifier with only {accuracy:.2%} test accuracy, {MIN_TEST_ACCURACY:.0%} is needed"
        raise UserError(f"--dataset_name {dataset_name}: {reason}; give the full MNIST data set")
    config = {
        "test_accuracy": accuracy,
        "test_share_sure": share(probabilities >= SURE),
        "num_train_images": len(images),
        "train_digit_shares": (labels.bincount(minlength=DIGITS).double() / len(labels)).tolist(),
        "epochs": EPOCHS,
        "seed": seed,
        "dataset_name": dataset_name,
    }
    # Renamed as the last step, so that a run cut short leaves no half-written classifier that the next would load.
    temporary = folder.with_name(f"{folder.name}.tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, temporary / WEIGHTS)
    save_file(dict(zip(("mean", "covariance"), feature_statistics(model, test_images), strict=True)), temporary / TEST)
    write_json(temporary / "config.json", config)
    temporary.rename(folder)


def read_images(folder: Path) -> tuple[list[str], "torch.Tensor"]:
    """Names and bytes (N, C, 28, 28) of the PNG files of the folder, grids left out; colours are three digits."""
    import numpy as np
    import torch
    from PIL import Image

    paths = [path for path in sorted(folder.glob("*.png")) if not path.name.startswith("grid")]
    if not paths:
        reason = "has no PNG files besides grids" if folder.is_dir() else "is not a folder"
        raise UserError(f"--images {folder}: {reason}; give the folder that the samples were written to")
    arrays = []
    for path in paths:
        try:
            with Image.open(path) as image:
                colour = image.mode == "RGB"
                arrays.append(np.asarray(image if colour else image.convert("L")).reshape(*image.size[::-1], -1))
        except OSError as error:
            raise UserError(f"--images {folder}: {path.name} cannot be read ({error}); remove it") from error
        if image.size != (SIZE, SIZE):
            reason = f"{path.name} is {image.width}x{image.height} pixels, not {SIZE}x{SIZE}"
            raise UserError(f"--images {folder}: {reason}; remove it or give a folder of MNIST samples")
        if arrays[-1].shape != arrays[0].shape:
            raise UserError(f"--images {folder}: {path.name} is not of the kind of {paths[0].name}; keep one kind")
    return [path.name for path in paths], torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def read_class_labels(folder: Path, names: list[str]) -> "torch.Tensor":
    """The digit (or three of them) that each image was asked to show, -1 where samples.json names none."""
    import torch

    path, labels = folder / "samples.json", {}
    if path.is_file():
        labels = {s["file"]: s["class_label"] for s in json.loads(path.read_text(encoding="utf-8"))["images"]}
    return torch.tensor([-1 if labels.get(name) is None else labels[name] for name in names])


def judge(images: "torch.Tensor", asked: "torch.Tensor", classifier_dir: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    model = build_model()
    model.load_state_dict(load_file(classifier_dir / WEIGHTS))
    probabilities, predictions = (found.view(images.shape[:2]) for found in classify(model, images.flatten(0, 1)))
    probabilities = probabilities.amin(dim=1)  # of three digits, the least readable one counts
    digit_shares = {str(digit): share(predictions == digit) for digit in range(DIGITS)}
    rarest = min(digit_shares, key=lambda digit: digit_shares[digit])
    report = {
        "num_images": len(images),
        "share_sure": share(probabilities >= SURE),
        "digit_shares": digit_shares,
        "smallest_share": digit_shares[rarest],
        "smallest_share_digit": int(rarest),
    }
    classifier = json.loads((classifier_dir / "config.json").read_text(encoding="utf-8"))
    powers = torch.tensor([DIGITS**place for place in reversed(range(images.shape[1]))])
    predictions = (predictions * powers).sum(dim=1)
    if not (classifier_dir / TEST).is_file():
        raise UserError(f"--classifier_dir {classifier_dir} is of an earlier version: name a new folder")
    if images.shape[1] == 1:
        real = load_file(classifier_dir / TEST)
        found = feature_statistics(model, images[:, 0])
        report["frechet_distance"] = frechet_distance(found, (real["mean"], real["covariance"]))
    if images.shape[1] == 3:
        report |= count_kinds(predictions, torch.tensor(classifier["train_digit_shares"], dtype=torch.float64))
    labelled, right = asked >= 0, predictions == asked
    if labelled.any():
        report["num_labelled"] = int(labelled.sum())
        report["label_match"] = share(right[labelled])
        report["label_match_by_digit"] = {str(d): share(right[asked == d]) for d in asked[labelled].unique().tolist()}
    return {**report, "classifier": classifier}


def count_kinds(kinds: "torch.Tensor", digit_shares: "torch.Tensor") -> dict[str, Any]:
    """How many of the 1,000 kinds occur, and the Kullback-Leibler divergence of their shares from the real ones.

    A perfect sample of N images has a divergence of about (1000 - 1) / 2N nats, which is reported as the floor.
    """
    import torch

    real = torch.einsum("i,j,k->ijk", digit_shares, digit_shares, digit_shares).flatten()
    found = kinds.bincount(minlength=len(real)).double() / len(kinds)
    return {
        "kinds": int((found > 0).sum()),
        "kinds_divergence": float(torch.xlogy(found, found / real).sum()),
        "kinds_divergence_floor": (len(real) - 1) / (2 * len(kinds)),
    }


def print_summary(report: dict[str, Any]) -> None:
    real = report["classifier"]
    print(f"images: {report['num_images']}, judged by a classifier trained on {real['dataset_name']}")
    print(f"top probability >= {SURE}: {report['share_sure']:.2%} (real test images: {real['test_share_sure']:.2%})")
    print("share of each digit: " + ", ".join(f"{d}: {part:.1%}" for d, part in report["digit_shares"].items()))
    print(f"smallest share: {report['smallest_share']:.1%}, digit {report['smallest_share_digit']}")
    if "frechet_distance" in report:
        print(f"Fréchet distance to the test images in the classifier's features: {report['frechet_distance']:.2f}")
    if "kinds" in report:
        print(
            f"kinds of three digits: {report['kinds']} of {DIGITS**3}, divergence from the real shares "
            f"{report['kinds_divergence']:.3f} nats (a perfect sample: {report['kinds_divergence_floor']:.3f})"
        )
    if "label_match" in report:
        print(f"shows the digit asked for: {report['label_match']:.2%} of {report['num_labelled']} labelled images")
        print("by digit asked for: " + ", ".join(f"{d}: {p:.1%}" for d, p in report["label_match_by_digit"].items()))
    print(f"classifier's accuracy on the real test images: {real['test_accuracy']:.2%}")


def main(argv: Sequence[str] | None = None) -> None:
    config = read_options(argv)
    folder, classifier = Path(str(config.images)), Path(config.classifier_dir)
    # The images come first: a wrong folder should not cost minutes of training before it is noticed.
    names, images = read_images(folder)
    asked = read_class_labels(folder, names)
    if not (classifier / WEIGHTS).is_file():
        train_classifier(config.dataset_name, classifier, config.seed)
    report = judge(images, asked, classifier)
    print_summary(report)
    output = Path(config.output or folder / "check_mnist.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, report)


if __name__ == "__main__":
    with one_line_errors():
        main()
