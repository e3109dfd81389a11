"""The options of a run; no torch here, so that `--help` answers at once."""

from dataclasses import dataclass

from hfgen.evaluation.config import METRICS, MOST_IMAGES, MOST_THREADS, ONE_NUMBER
from hfgen.runtime.errors import UserError
from hfgen.runtime.options import Options, as_text, option
from hfgen.runtime.seeds import SEEDS

LR_SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
LONG = 2**40  # updates: what no run will reach
HUB_STRATEGIES = ("end", "every_save")
LOGGERS = ("none", "tensorboard", "wandb", "trackio", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab")

# Flags of diffusers' training scripts that have another name, or no use, here.
MOVED = {
    "ema_max_decay": "the moving average is set by its half-life in images, `ema_half_life` and `ema_ramp`.",
    "ema_power": "the moving average is set by its half-life in images, `ema_half_life` and `ema_ramp`.",
    "ema_inv_gamma": "the moving average is set by its half-life in images, `ema_half_life` and `ema_ramp`.",
    "enable_xformers_memory_efficient_attention": "torch's own attention is used, which is as fast; leave it out.",
    "preserve_input_precision": "images are kept with 8 bits per channel; leave it out.",
    "allow_tf32": "TF32 is always on where `mixed_precision` is not `no`; leave it out.",
    "local_rank": "the launcher sets it in the environment; leave it out.",
}


@dataclass(frozen=True)
class TrainingConfig(Options):
    """Training: length, precision, what is kept, and where."""

    output_dir: str | None = option(
        None, "folder of the run, which is also the pipeline folder (default: out/<family>-<data>)", resumable=True
    )
    overwrite_output_dir: bool = option(
        False, "delete the run that `output_dir` holds, and start anew", resumable=True, once=True
    )
    resume_from_checkpoint: str | None = option(
        None, "a checkpoint folder, or `latest`: the newest that is whole; starts from zero where there is none",
        resumable=True, once=True,
    )  # fmt: skip
    init_from: str | None = option(
        None,
        "begin with the weights of a checkpoint: folder or Hub id of a pipeline, ours or one of diffusers, or the "
        "folder of one network; its architecture, size and channels are taken, too",
    )
    freeze: tuple[str, ...] = option(
        (), "weights that stay as they are: their names, with * for any characters, such as unet.down_blocks.*"
    )
    lower_rates: tuple[str, ...] = option(
        (), "factors of the learning rate for some weights, named in the same way: unet.down_blocks.*=0.1"
    )
    lora_rank: int | None = option(
        None,
        "with `init_from`: keep the weights of the checkpoint, and learn low-rank adapters of this rank beside its "
        "layers (LoRA, by peft)",
        least=1,
        most=2**12,
    )
    lora_alpha: float | None = option(
        None, "what the adapters add counts this many / rank times (default: the rank)", above=0, most=1e6
    )
    lora_target_modules: tuple[str, ...] = option(
        (),
        "layers that get an adapter, by the ends of their names, such as to_q to_k to_v to_out.0 (default: linear "
        "layers and convolutions that have more weights than their adapter)",
    )
    seed: int = option(
        0, "seed of everything: weights, order of the data, noise, augmentation, sample grids", least=0, most=SEEDS - 1
    )
    train_batch_size: int = option(
        64, "images per process and micro-batch", follows=True, resumable=True, least=1, most=2**20
    )
    gradient_accumulation_steps: int = option(1, "micro-batches per update", resumable=True, least=1, most=2**16)
    num_epochs: float = option(
        100.0, "length in passes over the data", follows=True, resumable=True, above=0, most=1e9
    )
    max_train_steps: int | None = option(
        None, "length in updates; wins over `num_epochs`", resumable=True, least=1, most=LONG
    )
    lr_scheduler: str = option("cosine", "how the learning rate falls to 0", choices=LR_SCHEDULERS)
    lr_warmup_steps: int | None = option(
        None,
        "updates over which the learning rate rises to its peak (default: 500, or a tenth of a run that is short)",
        before=500,
        least=0,
        most=LONG,
    )
    max_grad_norm: float = option(1.0, "clip the gradient of a phase at this norm; 0 turns it off", least=0, most=1e9)
    use_ema: bool = option(True, "sample and publish the moving average of the weights")
    ema_half_life: float = option(500_000.0, "half-life of the moving average in images", above=0, most=1e15)
    ema_ramp: float = option(
        0.05, "cap of the half-life as a share of the images seen so far; 0 turns the cap off", least=0, most=1000
    )
    mixed_precision: str = option(
        "auto",
        "auto is bf16 where the hardware has it, else no",
        choices=("auto", "no", "bf16", "fp16"),
        resolved=True,
    )
    compile: bool = option(False, "compile the networks (worth it on a GPU)")
    gradient_checkpointing: bool = option(
        False,
        "compute activations again in the backward pass instead of keeping them: less memory and the same weights, "
        "for the time of one more forward pass; not of networks that keep next to nothing (mlp)",
        resumable=True,
    )
    channels_last: bool = option(False, "keep images channels-last in memory (worth it on a GPU)")
    cpu_threads: int | None = option(
        None, "threads per process on a CPU (default: cores / processes)", resumable=True, least=1, most=MOST_THREADS
    )
    logging_steps: int = option(50, "updates between two lines of metrics", follows=True, least=1, most=LONG)
    logger: str = option("none", "tracker, besides logs/metrics.jsonl", choices=LOGGERS, resumable=True)
    logging_dir: str = option("logs", "folder of the metrics within `output_dir`", resumable=True)
    checkpointing_steps: int = option(
        500, "updates between two checkpoints", follows=True, resumable=True, least=1, most=LONG
    )
    checkpoints_total_limit: int | None = option(
        2, "checkpoints to keep, `none` for all", resumable=True, least=1, most=LONG
    )
    save_images_epochs: float = option(
        10.0, "epochs between two sample grids; 0 for none but the last", resumable=True, least=0, most=1e9
    )
    save_images_steps: int | None = option(
        None, "updates between two sample grids; wins over epochs", follows=True, resumable=True, least=1, most=LONG
    )
    eval_batch_size: int = option(64, "images in a sample grid", follows=True, resumable=True, least=1, most=2**20)
    provenance: bool = option(True, "write into PNG files which model made them, and how", resumable=True)
    eval_every: int | None = option(
        None,
        "updates between two evaluations of what is published; there is one after the last, too",
        resumable=True,
        least=1,
        most=LONG,
    )
    eval_metrics: tuple[str, ...] = option(
        ("fd",), "what to measure then", choices=METRICS, follows=True, resumable=True
    )
    eval_extractor: str = option(
        "inception", "features: inception, inception-clean, or folder or Hub id of an image model", resumable=True
    )
    eval_extractor_weights: str | None = option(
        None, "of inception: a file, a Hub id, or `download` (default: what was downloaded before)", resumable=True
    )
    eval_num_images: int = option(
        1000, "images to generate, and real ones, for each evaluation", resumable=True, least=2, most=MOST_IMAGES
    )
    metric_for_best_model: str | None = option(
        None, "one of `eval_metrics`: the pipeline with the best value so far is kept in <output_dir>/best",
        choices=ONE_NUMBER, resumable=True,
    )  # fmt: skip
    early_stopping_patience: int | None = option(
        None,
        "evaluations in a row in which `metric_for_best_model` gets no better after which the run ends; `none` trains "
        "to the end",
        resumable=True,
        least=1,
        most=LONG,
    )
    save_model_epochs: float = option(
        0.0, "epochs between two savings of the pipeline; 0 for only the last", resumable=True, least=0, most=1e9
    )
    push_to_hub: bool = option(False, "push the finished pipeline to the Hub", resumable=True, once=True)
    hub_strategy: str = option(
        "end", "when to push: at the end, or also, in the background, whenever the pipeline or the best one is saved",
        choices=HUB_STRATEGIES, resumable=True, once=True,
    )  # fmt: skip
    hub_model_id: str | None = option(
        None, "name of the repository (default: that of `output_dir`)", resumable=True, once=True
    )
    hub_private_repo: bool = option(False, "make the repository private", resumable=True, once=True)
    hub_license: str | None = option(
        None, "licence of the model for its card, as the Hub calls it: apache-2.0, cc-by-4.0, ...", resumable=True
    )
    hub_token: str | None = option(
        None, "token for the Hub (default: HF_TOKEN, or what `hf auth login` stored)", resumable=True, secret=True
    )

    @property
    def rate_factors(self) -> dict[str, float]:
        """Returns the factors of `lower_rates` by the pattern of names."""
        return {text.rpartition("=")[0]: float(text.rpartition("=")[2]) for text in self.lower_rates}

    def validate(self) -> None:
        for text in self.lower_rates:
            pattern, _, factor = text.rpartition("=")
            try:
                wrong = not pattern or not 0 < float(factor) < 1000
            except ValueError:
                wrong = True
            if wrong:
                raise UserError(f"`lower_rates` {text}: give names, = and a factor, as unet.down_blocks.*=0.1.")
        self._validate_lora()
        best = self.metric_for_best_model
        if best is not None and (self.eval_every is None or best not in self.eval_metrics):
            lacking = "`eval_every`" if self.eval_every is None else f"{best} among `eval_metrics`"
            raise UserError(f"`metric_for_best_model` {best} is measured by evaluations: give {lacking}, too.")
        if self.early_stopping_patience is not None and best is None:
            raise UserError(
                f"`early_stopping_patience` {self.early_stopping_patience} needs a metric to get better: give "
                "`metric_for_best_model` and `eval_every`, too."
            )
        if self.hub_strategy == "every_save" and not self.save_model_epochs and best is None:
            raise UserError(
                "`hub_strategy` every_save pushes what is saved during training, and nothing is saved: give "
                "`save_model_epochs` or `metric_for_best_model`, too."
            )
        if self.eval_every is not None and not self.eval_metrics:
            raise UserError(
                "`eval_metrics` is empty: there is nothing to measure. Give some, or leave `eval_every` out."
            )

    def _validate_lora(self) -> None:
        if self.lora_rank is None:
            for name, value in (("lora_alpha", self.lora_alpha), ("lora_target_modules", self.lora_target_modules)):
                if value:
                    raise UserError(f"`{name}` {as_text(value)} is about adapters: give `lora_rank`, too.")
        elif self.init_from is None:
            raise UserError(f"`lora_rank` {self.lora_rank} adapts the network of a checkpoint: give `init_from`, too.")
        elif self.freeze:
            raise UserError(
                f"`freeze` {' '.join(self.freeze)}: with `lora_rank` all weights of the checkpoint stay as they are. "
                "Leave `freeze` out; `lora_target_modules` says which layers get adapters."
            )
