"""Feature networks: from 8-bit images to the rows that metrics compare, and what the numbers may then be called.

A distance between features means nothing without the network, its weights and the way images were brought to its
size. An [`Extractor`] holds the three together, with a fingerprint of them.
"""

import contextlib
import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate

from hfgen.evaluation.config import WITHOUT_FEATURES
from hfgen.evaluation.inception import DIM, SIDE, load_inception
from hfgen.evaluation.resize import as_channels, check_images, resize_pil, resize_tf1
from hfgen.pipelines.self_contained import check_json, limited
from hfgen.runtime.errors import UserError, one_line

Outputs = dict[str, torch.Tensor]
Prepare = Callable[[torch.Tensor], torch.Tensor]

INCEPTION = ("inception", "inception-clean")
NO_FEATURES = "none"  # the id of the extractor of metrics that look at none
KINDS = ("fd", "kd", "cs", "ppl")  # Fréchet distance, kernel distance, classifier score, path length
RESERVED = {
    "inception": {"fd": "fid", "kd": "kid", "cs": "is"},
    "inception-clean": {"fd": "clean_fid", "kd": "clean_kid"},
}
DINOV2 = {  # the distances of https://huggingface.co/papers/2306.04675; the name without size is that of ViT-L/14
    "facebook/dinov2-small": "dinov2_vits14",
    "facebook/dinov2-base": "dinov2_vitb14",
    "facebook/dinov2-large": "dinov2",
    "facebook/dinov2-giant": "dinov2_vitg14",
}
DINOV2_SIDE = 224
RESAMPLE = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
FIRST_TOKEN = ("deit", "vit", "vit_msn")  # a pooler, if any, is a layer that classifiers are saved without
MOST_PIXELS = 2048  # height or width that a network may ask for
PROBE_SIDES = (48, 320)  # one to enlarge and one to reduce, for most networks


@dataclass(frozen=True)
class Preparation:
    """Prepares 8-bit images for a network, in batches on any device that knows float64.

    Attributes:
        channels (`int`): Gray images are repeated to 3.
        resample (`str`): `"tf1"`, or a filter of [`~resize.resize_pil`].
        rounded (`bool`): Whether resized images are 8-bit images; otherwise they are only clamped to [0, 255].
        size (`tuple` of height and width, `int` or `None`): An `int` is the length of the shorter side; `None` leaves
            the size as it is.
        crop (`tuple` of height and width, *optional*): The part in the middle that is kept.
        scale (`float`): Levels are multiplied by it, in float64;
        mean, std (`tuple` of `float`): then they have `mean` taken off and are divided by `std`, in float32. One
            value per channel, or one for all.
    """

    channels: int
    resample: str
    rounded: bool
    size: tuple[int, int] | int | None
    crop: tuple[int, int] | None
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        pixels = as_channels(images, self.channels)
        size = self.size_for(*pixels.shape[2:])
        if size is not None and self.resample == "tf1":
            pixels = resize_tf1(pixels, size)
        elif size is not None:
            pixels = resize_pil(pixels, size, self.resample, self.rounded)
        pixels = self.middle(pixels)
        if not self.rounded:
            pixels = pixels.clamp(0, 255)
        pixels = (pixels.double() * self.scale).float()
        mean, std = (torch.tensor(part, device=pixels.device).view(-1, 1, 1) for part in (self.mean, self.std))
        return (pixels - mean) / std

    def size_for(self, height: int, width: int) -> tuple[int, int] | None:
        """Returns the height and width that an image of that size is resized to; `None` if it is not resized."""
        if isinstance(self.size, int):
            side = self.size
            return (side, int(side * width / height)) if height <= width else (int(side * height / width), side)
        return self.size

    def middle(self, pixels: torch.Tensor) -> torch.Tensor:
        """Crops the middle of images."""
        if self.crop is None:
            return pixels
        top, left = ((have - keep) // 2 for have, keep in zip(pixels.shape[2:], self.crop, strict=True))
        return pixels[:, :, top : top + self.crop[0], left : left + self.crop[1]]


@dataclass
class Extractor:
    """A network that gives features, and logits if it is a classifier. Make it with [`load_extractor`].

    Attributes:
        id (`str`): `"inception"`, `"inception-clean"`, a Hub id, or the name of a folder.
        dim (`int`): Number of features.
        layer (`str`): What the features are.
        preprocessing (`dict`): All that happens to an image before; JSON.
        fingerprint (`str`): SHA-256 of weights, layer and preprocessing: equal ones give comparable features.
        device (`torch.device`): Where the network is, and its outputs.
        prepare, network (`Callable`): From images to what the network takes, and from there to its outputs.
        batch_size (`int`): Images that the network takes at once.
        verified (`bool`): Whether the weights are known to be the published ones (Inception only).
        revision (`str`, *optional*): Commit of the repository on the Hub.
        labels (`tuple` of `str`, *optional*): Names of the classes that the logits are for.
        accuracy (`float`, *optional*): Share of test images that it got right, if `hfgen classify` wrote it.
        notes (`list` of `str`): What a reader of the numbers has to be told.
    """

    id: str
    dim: int
    layer: str
    preprocessing: dict[str, Any]
    fingerprint: str
    device: torch.device
    prepare: Prepare
    network: Callable[[torch.Tensor], Outputs]
    batch_size: int
    verified: bool = False
    revision: str | None = None
    labels: tuple[str, ...] | None = None
    accuracy: float | None = None
    notes: list[str] = field(default_factory=list)

    def __call__(self, images: torch.Tensor) -> Outputs:
        """Computes the features of images, in float32 without TF32 and without gradients.

        Args:
            images (`torch.Tensor` or `np.ndarray` of shape `(N, C, H, W)`, uint8): Images; gray ones are repeated
                for a colour network.

        Returns:
            `dict`: `"features"` of shape `(N, dim)`, and for a classifier `"logits"` of shape `(N, L)`; float32. The
            logits of Inception are without bias, as the Inception Score takes them.

        Raises:
            ValueError: If these are no 8-bit images.
            UserError: If the network takes other channels.
        """
        images = torch.as_tensor(images)
        check_images(images)
        parts = []
        with torch.inference_mode(), full_precision(self.device):
            for batch in images.split(self.batch_size):
                parts.append(run(self.network, self.prepare, batch, self.device))
        # Outside of inference mode, so that the results are ordinary tensors.
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def describe(self) -> dict[str, Any]:
        """Describes the extractor for a report; JSON."""
        names = ("id", "dim", "layer", "preprocessing", "fingerprint", "verified", "revision", "accuracy", "notes")
        return {name: getattr(self, name) for name in names}


def run(
    network: Callable[[torch.Tensor], Outputs], prepare: Prepare, images: torch.Tensor, device: torch.device
) -> Outputs:
    """Runs the network on one batch. Apple's GPUs have no float64, so that images are prepared before they go
    there."""
    pixels = prepare(images if device.type == "mps" else images.to(device))
    return {name: value.float() for name, value in network(pixels.to(device)).items()}


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Has float32 computed as float32: without TF32 on GPUs, bfloat16 on CPUs, and autocast."""
    backends: Any = torch.backends
    switches = [backends.cuda.matmul, backends.cudnn]
    attribute, value = "allow_tf32", False  # type: str, bool | str
    if hasattr(backends, "fp32_precision"):  # the names since PyTorch 2.9, which are not to be mixed with the old ones
        switches = [backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv]
        attribute, value = "fp32_precision", "ieee"
    before = [getattr(switch, attribute) for switch in switches]
    try:
        for switch in switches:
            setattr(switch, attribute, value)
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for switch, old in zip(switches, before, strict=True):
            setattr(switch, attribute, old)


def load_extractor(
    name: str, weights: str | Path | None = None, device: str | torch.device = "cpu", batch_size: int = 32
) -> Extractor:
    """Loads a feature network and runs it once.

    Args:
        name (`str`): One of

            - `"inception"`: Inception-v3 of 2015 after TensorFlow's resizing (see [`~inception.load_inception`]). With
              verified weights its distances are the FID and the KID, and its logits give the Inception Score.
            - `"inception-clean"`: the same network after clean-fid's resizing
              (https://huggingface.co/papers/2104.11222), whose distances are others.
            - An image model of `transformers`, by Hub id or folder, with the preprocessing of its image processor. The
              features are the input of the last layer for a classifier (`...ForImageClassification`), the image
              embedding for CLIP, the first token for ViT, otherwise the pooled output. DINOv2 is the exception: its
              own processor is left out for the protocol of https://huggingface.co/papers/2306.04675, images squeezed
              to 224 x 224 pixels and position embeddings interpolated as its authors do.
        weights (`str` or `Path`, *optional*): For Inception: a file, a repository, or `"download"`.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where the network runs.
        batch_size (`int`, *optional*, defaults to 32): Images that the network takes at once.

    Raises:
        UserError: If the model is not there (the message has the command that fetches it), is no image model, lacks
            weights, or has no pooled output.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}, but must be at least 1.")
    device = torch.device(device)
    if name in INCEPTION:
        return load_inception_extractor(name, weights, device, batch_size)
    if weights is not None:
        raise UserError(
            f"weights {weights} are given for the extractor {name}: they are for {' and '.join(INCEPTION)}."
        )
    return load_transformers_extractor(name, device, batch_size)


def extractor_for(
    metrics: Sequence[str], name: str, weights: str | Path | None = None, device: str | torch.device = "cpu"
) -> Extractor:
    """Returns the extractor that metrics need: see [`load_extractor`]. Where no metric looks at features, it is one
    without a network, so that none has to be there."""
    if not metrics or set(metrics) - set(WITHOUT_FEATURES):
        return load_extractor(name, weights, device)
    return Extractor(
        id=NO_FEATURES,
        dim=0,
        layer="",
        preprocessing={"channels": 1},
        fingerprint=NO_FEATURES,
        device=torch.device(device),
        prepare=lambda images: images,
        network=lambda images: {"features": images.new_zeros(len(images), 0)},
        batch_size=1,
    )


def load_inception_extractor(
    name: str, weights: str | Path | None, device: torch.device, batch_size: int
) -> Extractor:
    """Loads one of the two Inception extractors; see [`load_extractor`]."""
    model = load_inception(weights)
    resample = "tf1" if name == "inception" else "bicubic"
    prepare = Preparation(3, resample, False, (SIDE, SIDE), None, 1.0, (128.0,), (128.0,))
    layer = "pool3"
    preprocessing = as_json(asdict(prepare))
    digest = fingerprint(model.state_dict(), layer, preprocessing)
    # Faster on CPUs and GPUs; torch's type hints do not know this form of the call.
    model = model.fold().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def network(pixels: torch.Tensor) -> Outputs:
        output = model(pixels.contiguous(memory_format=torch.channels_last))
        return {"features": output.features, "logits": output.unbiased_logits}

    notes = []
    if not model.verified:
        notes.append(
            "the Inception weights are not verified to be the published ones of 2015: no number may be called FID, "
            "KID or Inception Score."
        )
    return Extractor(
        name,
        DIM,
        layer,
        preprocessing,
        digest,
        device,
        prepare,
        network,
        batch_size,
        verified=model.verified,
        notes=notes,
    )


def load_transformers_extractor(name: str, device: torch.device, batch_size: int) -> Extractor:
    """Loads an image model of `transformers`; see [`load_extractor`]."""
    is_folder = Path(name).expanduser().is_dir()
    source = str(Path(name).expanduser()) if is_folder else name
    if not is_folder and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise UserError(
            f"the extractor {name} is neither a folder nor a name on the Hub: give {', '.join(INCEPTION)}, or an "
            "image model of transformers."
        )
    with readable_errors(name, is_folder):
        model, classifies = load_model(source)
        config = model.config
        channels = getattr(getattr(config, "vision_config", config), "num_channels", 3)
        prepare: Prepare
        if type(model).__name__ == "Dinov2Model":
            patch = config.patch_size
            interpolate_positions(model, DINOV2_SIDE // patch)
            mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
            prepare = Preparation(channels, "bicubic", True, (DINOV2_SIDE, DINOV2_SIDE), None, 1 / 255, mean, std)
            preprocessing = as_json(asdict(prepare))
        else:
            prepare, preprocessing = load_preparation(source, channels)
    network, layer = classifier(model) if classifies else pooled(model)
    digest = fingerprint(model.state_dict(), layer, preprocessing)
    model.to(device)
    probe = torch.zeros(1, channels, *[PROBE_SIDES[0]] * 2, dtype=torch.uint8)
    try:
        with torch.inference_mode(), full_precision(device):
            features = run(network, prepare, probe, device)["features"]
    except UserError:
        raise
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"the extractor {name} does not work: {type(model).__name__} given an image as its image processor "
            f"prepares it says: {one_line(error)}. Choose an image model with a pooled output."
        ) from None
    if features.ndim != 2:
        raise UserError(no_pooled_output(model))
    if not features.isfinite().all():
        raise UserError(f"the extractor {name} gives NaN or infinite features of a black image: give sound weights.")
    return Extractor(
        Path(source).resolve().name if is_folder else name,
        features.shape[1],
        layer,
        preprocessing,
        digest,
        device,
        prepare,
        network,
        batch_size,
        revision=getattr(config, "_commit_hash", None),
        labels=tuple(config.id2label[index] for index in sorted(config.id2label)) if classifies else None,
        accuracy=read_accuracy(Path(source)) if classifies and is_folder else None,
    )


def read_accuracy(folder: Path) -> float | None:
    """Reads the test accuracy that `hfgen classify` wrote beside a classifier, the balanced one if it did; `None` for
    any other model."""
    try:
        report = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
        return float(report.get("test_balanced_accuracy", report["test_accuracy"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


@contextlib.contextmanager
def readable_errors(name: str, is_folder: bool) -> Iterator[None]:
    """Turns what `transformers` raises for a model that it cannot load into a `UserError`, and keeps it silent."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # weights that are left out are no trouble here, those that lack are an error
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a dozen kinds
        remedy = "" if is_folder else f"; `hf download {name}` fetches one for use offline"
        raise UserError(
            f"the extractor {name} cannot be loaded: {one_line(error)}. Give an image model of transformers with its "
            f"image processor, as a folder or Hub id{remedy}."
        ) from None
    finally:
        logging.set_verbosity(verbosity)


def load_model(source: str) -> tuple[Any, bool]:
    """Loads a model, in float32, of the class that its configuration names; also returns whether it classifies."""
    import transformers
    from transformers.utils import cached_file

    file = cached_file(source, "config.json", _raise_exceptions_for_missing_entries=False)
    if file is not None:  # AutoConfig says so
        check_json(Path(file).parent)
    config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    architecture = (config.architectures or [""])[0]
    classifies = architecture.endswith("ForImageClassification")
    kind = transformers.AutoModelForImageClassification if classifies else transformers.AutoModel
    if config.model_type == "clip":  # its half for images, which may not know the size of the common embedding
        config.vision_config.projection_dim = config.projection_dim
        config = config.vision_config
        kind = transformers.CLIPVisionModelWithProjection
    elif architecture == "CLIPVisionModelWithProjection":
        kind = transformers.CLIPVisionModelWithProjection
    options = {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
    options["trust_remote_code"] = False  # by default a person is asked, and may say yes
    # Each weight is counted twice: when it is allocated, and when it is filled.
    with limited(f"config.json of the extractor {source}", 2 * weight_bytes(source)):
        model, info = kind.from_pretrained(source, config=config, **options)
    missing = set(info["missing_keys"]) | {key[0] for key in info["mismatched_keys"]}
    if not classifies and config.model_type in FIRST_TOKEN:
        model.pooler = None
        missing = {key for key in missing if not key.startswith("pooler.")}
    if missing:
        raise UserError(
            f"the extractor {source} lacks {len(missing)} weights of {type(model).__name__}, such as "
            f"{min(missing)!r}, or has them in another shape: give a whole checkpoint, as they would be random."
        )
    return model.float().eval().requires_grad_(False), classifies


def weight_bytes(source: str) -> int:
    """Returns the size of the weights of a model, which are downloaded if need be.

    Raises:
        UserError: If their index names a file elsewhere.
    """
    from transformers.utils import cached_file

    index = cached_file(source, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False)
    names = {"model.safetensors"}
    if index is not None:
        try:
            names = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{index} is broken: {one_line(error)}. Give another extractor.") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index} names {name}, which is no file of its folder: the extractor is broken.")
    return sum(Path(cached_file(source, name)).stat().st_size for name in names)


def classifier(model: Any) -> tuple[Callable[[torch.Tensor], Outputs], str]:
    """Computes the outputs of a classifier: the input of its last layer, and the logits."""
    heads = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == model.config.num_labels
    }
    if not heads:
        raise UserError(no_pooled_output(model))
    name, head = list(heads.items())[-1]
    seen: Outputs = {}
    head.register_forward_pre_hook(lambda module, inputs: seen.update(features=inputs[0]))

    def network(pixels: torch.Tensor) -> Outputs:
        logits = model(pixel_values=pixels).logits
        return {"features": seen.pop("features"), "logits": logits}

    return network, f"input of {name}"


def pooled(model: Any) -> tuple[Callable[[torch.Tensor], Outputs], str]:
    """Computes the pooled output of a model without a task."""
    first_token = model.config.model_type in FIRST_TOKEN
    embeds = type(model).__name__ == "CLIPVisionModelWithProjection"
    layer = "last_hidden_state[:, 0]" if first_token else "image_embeds" if embeds else "pooler_output"

    def network(pixels: torch.Tensor) -> Outputs:
        output = model(pixel_values=pixels)
        features = output.last_hidden_state[:, 0] if first_token else getattr(output, layer, None)
        if features is None:
            raise UserError(no_pooled_output(model))
        return {"features": features.flatten(1)}

    return network, layer


def no_pooled_output(model: Any) -> str:
    return (
        f"the extractor {model.config._name_or_path} has no pooled output: {type(model).__name__} gives no single "
        "vector for an image. Choose another model, such as facebook/dinov2-small, a CLIP, a ViT or a ResNet."
    )


def interpolate_positions(model: Any, side: int) -> None:
    """Gives a DINOv2 the position embeddings that its authors' code uses for `side` x `side` patches.

    They tell the bicubic interpolation a factor of `(side + 0.1) / grid`, where `transformers` says the output's size:
    the samples are taken at other points, and the embeddings differ by more than a tenth.
    """
    embeddings = model.embeddings
    positions = embeddings.position_embeddings.detach()
    grid = round((positions.shape[1] - 1) ** 0.5)
    if grid == side:
        return
    image = positions[:, 1:].unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    image = interpolate(image, scale_factor=(side + 0.1) / grid, mode="bicubic")
    positions = torch.cat([positions[:, :1], image.flatten(2).mT], dim=1)
    embeddings.position_embeddings = nn.Parameter(positions, requires_grad=False)


def load_preparation(source: str, channels: int) -> tuple[Prepare, dict[str, Any]]:
    """Loads a model's image processor as a function of batches, on the device if that is possible.

    The processor is the one with Pillow, whose results do not depend on what else is installed. Most do no more than
    a [`Preparation`], which is used if it gives exactly the same for two images; otherwise the processor itself is.
    """
    import transformers

    has_backends = importlib.util.find_spec("transformers.image_processing_backends")
    options: dict[str, Any] = {"backend": "pil"} if has_backends else {"use_fast": False}
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(source, trust_remote_code=False, **options)
    except (ImportError, OSError, ValueError) as error:
        raise UserError(
            f"the extractor {source} has no image processor, which says how images are prepared for it: "
            f"{one_line(error)}. Save one beside the model, as preprocessor_config.json."
        ) from None

    for option in ("size", "crop_size", "pad_size"):
        for name, side in dict(getattr(processor, option, None) or {}).items():
            if side is not None and not side <= MOST_PIXELS:
                raise UserError(
                    f"the extractor {source} has {option} {name} {side} in preprocessor_config.json, but at most "
                    f"{MOST_PIXELS} is possible: give another."
                )

    def slow(images: torch.Tensor) -> torch.Tensor:
        arrays = list(as_channels(images, channels).cpu().numpy())
        return processor(arrays, return_tensors="pt", input_data_format="channels_first")["pixel_values"]

    prepare = read_preparation(processor, channels)
    generator = torch.Generator().manual_seed(0)
    probes = [
        torch.randint(256, (1, channels, side, side), generator=generator, dtype=torch.uint8) for side in PROBE_SIDES
    ]
    expected = [slow(probe) for probe in probes]
    if prepare and all(torch.equal(prepare(probe), pixels) for probe, pixels in zip(probes, expected, strict=True)):
        return prepare, as_json(asdict(prepare))
    return slow, {"channels": channels, "processor": json.loads(processor.to_json_string())}


def read_preparation(processor: Any, channels: int) -> Preparation | None:
    """Translates the options of an image processor of `transformers`, if they can be followed in batches."""
    size: tuple[int, int] | int | None = None
    if processor.do_resize:
        sides = dict(processor.size)
        if set(sides) == {"height", "width"}:
            size = (sides["height"], sides["width"])
        elif set(sides) == {"shortest_edge"}:
            size = sides["shortest_edge"]
        else:
            return None
    resample = RESAMPLE.get(int(getattr(processor, "resample", 2) or 0))
    crop = None
    if getattr(processor, "do_center_crop", False):
        crop = (processor.crop_size["height"], processor.crop_size["width"])
        least = (size, size) if isinstance(size, int) else size
        if least is None or crop[0] > least[0] or crop[1] > least[1]:
            return None  # it would have to pad
    if resample is None:
        return None
    normalises = processor.do_normalize
    return Preparation(
        channels,
        resample,
        True,
        size,
        crop,
        processor.rescale_factor if processor.do_rescale else 1.0,
        as_floats(processor.image_mean) if normalises else (0.0,),
        as_floats(processor.image_std) if normalises else (1.0,),
    )


def as_floats(values: Any) -> tuple[float, ...]:
    return (float(values),) if isinstance(values, int | float) else tuple(map(float, values))


def as_json(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the same after a round trip through JSON, so that a report that was read back is equal."""
    return json.loads(json.dumps(values))


def fingerprint(tensors: dict[str, torch.Tensor], layer: str, preprocessing: dict[str, Any]) -> str:
    """Computes the SHA-256 of the tensors (types, shapes and bytes), the layer and the preprocessing.

    The tensors' names are left out: `transformers` 5 calls those of ViT and DINOv2 by other names than 4.
    """
    digests = []
    for tensor in tensors.values():
        digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        digests.append(digest.hexdigest())
    return hashlib.sha256(json.dumps([layer, preprocessing, sorted(digests)], sort_keys=True).encode()).hexdigest()


def metric_prefix(extractor: Extractor, kind: str = "fd") -> str:
    """Returns the name that a number from these features may have, in lower case and without its number of images.

    The names of the literature are kept for what the literature means. All others have a part of the fingerprint,
    because two networks of one name give numbers that cannot be compared.

    Args:
        extractor ([`Extractor`]): Where the features come from.
        kind (`str`, *optional*, defaults to `"fd"`): `"fd"` for a Fréchet distance, `"kd"` for a kernel distance,
            `"cs"` for the score that is the Inception Score of Inception's logits, `"ppl"` for a path length.

    Returns:
        `str`: `"fid"`, `"kid"` and `"is"` for verified Inception weights after TensorFlow's resizing; `"clean_fid"`
        and `"clean_kid"` after clean-fid's; `"fd_dinov2"` for DINOv2's ViT-L/14 from the Hub, with the size added for
        the others; otherwise such as `"fd_resnet-mnist-1a2b3c4d"`.

    Raises:
        ValueError: For another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, but must be one of {', '.join(KINDS)}.")
    if extractor.verified and kind in RESERVED.get(extractor.id, {}):
        return RESERVED[extractor.id][kind]
    if extractor.id in DINOV2 and extractor.layer == "pooler_output":
        return f"{kind}_{DINOV2[extractor.id]}"
    slug = re.sub(r"[^a-z0-9]+", "-", extractor.id.rpartition("/")[2].lower()).strip("-")
    return f"{kind}_{slug}-{extractor.fingerprint[:8]}"
