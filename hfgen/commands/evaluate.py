"""Evaluates checkpoints against a data set: quality, diversity, memorisation, likelihood.

Features come from the Inception network of FID, whose weights are fetched with `--extractor_weights download`, or from
any image model of transformers, such as what `hfgen classify` writes. Without `--dataset_name` it compares with the
handwritten digits that ship with the installation. The report holds what it takes to repeat it, and what held-out real
images get. It is written after each checkpoint.

    hfgen evaluate --model out/gan-digits --extractor out/classifier-digits
    hfgen evaluate --model out/gan-mnist --dataset_name ylecun/mnist --extractor out/classifier-mnist \
        --metrics all --update_card
    hfgen evaluate --model out/vae-mnist --dataset_name ylecun/mnist --metrics bits_per_dim --likelihood_samples 500
    torchrun --nproc_per_node 2 -m hfgen evaluate --model out/gan-cifar10 out/ddpm-cifar10 \
        --dataset_name uoft-cs/cifar10 --metrics fd kd --num_images 50000 --extractor_weights download
"""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgen.commands.cli import command_line, spell
from hfgen.commands.options import (
    MeasureOptions,
    card_commands,
    check_models,
    read_sampling,
    recorded,
)
from hfgen.evaluation.config import ReferenceConfig
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import option


@dataclass(frozen=True)
class EvaluateConfig(MeasureOptions):
    """Evaluation: the models, the features, and where the report goes."""

    model: tuple[str, ...] | None = option(None, "folders or Hub ids of checkpoints")
    revision: str | None = option(None, "branch, tag or commit on the Hub, of a single checkpoint")
    extractor: str = option(
        "inception", "features: inception, inception-clean, or folder or Hub id of an image model of transformers"
    )
    output: str | None = option(
        None, "JSON report (default: <model>/evaluation.json, or evaluation.json for a Hub id or several checkpoints)"
    )
    hub_token: str | None = option(None, "token for a private model", secret=True)

    def validate(self) -> None:
        super().validate()
        if not self.model:
            raise UserError("`model` is missing: give the `output_dir` of a training run, or a Hub id.")
        check_models(self.model)
        if self.revision and len(self.model) > 1:
            raise UserError(
                f"`revision` {self.revision} belongs to one checkpoint, but `model` names {len(self.model)}."
            )


KINDS = (EvaluateConfig, ReferenceConfig)


def read_options(argv: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Reads the options, and the sampling options that were given."""
    return read_sampling(KINDS, argv, description=str(__doc__).partition("\n")[0], prog="hfgen evaluate")


def report_path(config: EvaluateConfig) -> Path:
    """Returns the path of the report. Raises [`UserError`] if it, or a card that is to have the results, cannot be
    written."""
    assert config.model is not None
    for model in config.model if config.update_card else ():
        if not (Path(model) / "README.md").is_file():
            raise UserError(f"`update_card`: {model} is no folder with a README.md: leave it out, or give one.")
    from hfgen.runtime.writable import require_file, require_ours

    folder = Path(config.model[0])
    path = Path(
        config.output or (folder if folder.is_dir() and len(config.model) == 1 else Path()) / "evaluation.json"
    )
    require_file(path, "output")
    if path.exists() and not config.overwrite_report:
        raise UserError(f"`output` {path} is another report: add `overwrite_report` or give another file.")
    if not config.overwrite_report:
        pictures = [path.with_suffix(".png"), *path.parent.glob(f"{glob.escape(path.stem)}-nearest*.png")]
        require_ours(pictures, "output", "give another file, or add `overwrite_report`")
    return path


def main(argv: Sequence[str]) -> None:
    options, given = read_options(argv)
    config, reference, common, *_ = options
    output = report_path(config)

    from hfgen.evaluation.features import NO_FEATURES, extractor_for
    from hfgen.evaluation.report import (
        card_section,
        chart,
        comparable,
        describe_model,
        heading,
        mixed_remarks,
        origin_of,
        remarks,
        table,
        wrap,
    )
    from hfgen.evaluation.runner import evaluate, nearest_pairs
    from hfgen.hub.card import add_results, escape_markdown
    from hfgen.runtime.files import write_json
    from hfgen.runtime.launch import describe, make_accelerator
    from hfgen.runtime.png import make_grid, save_png
    from hfgen.sampling.api import ready_sampler
    from hfgen.sampling.sampler import Sampler

    accelerator = make_accelerator(cpu_threads=config.cpu_threads)

    def load(model: str) -> Sampler:
        return ready_sampler(model, given, accelerator.device, config.revision, config.hub_token, translates=True)

    ready = [load(config.model[0])]  # a mistake in a model should cost neither the download of other weights
    for model in config.model[1:]:
        load(model)  # nor, in the last one, the hours of the first
    extractor = extractor_for(config.metrics, config.extractor, config.extractor_weights, accelerator.device)
    command = command_line("evaluate", KINDS, argv)

    reports: list[dict[str, Any]] = []

    def publish(model: str, sampler: Sampler, report: dict[str, Any]) -> None:
        """Writes and prints what was found."""
        report["model"] |= describe_model(model, config.revision, config.hub_token)
        reports.append(report)
        machine = describe(accelerator, common.mixed_precision)
        whole = wrap(reports, extractor.describe(), command, recorded([config, reference, common], given), machine)
        write_json(output, whole)
        print(f"\n{model}: {heading(report, whole['extractor'])}\n\n{table([report])}\n")
        print(*(f"- {spell(remark)}" for remark in remarks(report, whole["extractor"])), sep="\n")
        for metric, reason in report["left_out"].items():
            print(f"- Without {metric}: {spell(reason)}.")
        pairs = nearest_pairs(sampler, reference, report)
        if pairs:
            number = f"-{len(reports)}" if len(config.model or ()) > 1 else ""
            picture = output.with_name(f"{output.stem}-nearest{number}.png")
            grid = make_grid([image for side in zip(*pairs, strict=True) for image in side], len(pairs))
            origin = (
                origin_of(model, config.revision, config.hub_token, **sampler.settings) if common.provenance else None
            )
            save_png(grid, picture, origin, composite=True)
            print(f"\n{picture}: the generated images that are nearest to training images, and these below them")
        if config.update_card:
            network = config.extractor if whole["extractor"]["id"] != NO_FEATURES else None
            commands = card_commands(config, reference, given, report, network)
            section = card_section(escape_markdown(report), escape_markdown(whole) | {"command": commands})
            add_results(Path(model), report, whole["extractor"], section)
            print(f"\n{Path(model) / 'README.md'}: updated")

    for model in config.model:
        sampler = ready.pop() if ready else load(model)
        report = evaluate(
            sampler,
            reference,
            extractor,
            accelerator,
            config.metrics,
            config.num_images,
            config.seed,
            config.seeds,
            config.batch_size,
            config.likelihood_samples,
            config.likelihood_images,
        )
        if accelerator.is_main_process:
            publish(model, sampler, report)
    if accelerator.is_main_process:
        if len(reports) > 1:
            picture = output.with_suffix(".png")
            save_png(chart(reports), picture)
            print(f"\nAll checkpoints:\n\n{table(reports)}\n")
            if not comparable(reports):
                print("- They were compared with images of different sizes: the numbers say little.\n")
            for remark in mixed_remarks(reports):
                print(f"- {remark}\n")
            print(f"Chart:  {picture}")
        print(f"Report: {output}")
    accelerator.wait_for_everyone()  # a process that ends early would tear down what the others still use
    accelerator.end_training()
