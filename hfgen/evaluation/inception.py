"""The Inception network of FID, KID and Inception Score, in plain torch.

It is Inception-v3 (https://huggingface.co/papers/1512.00567) as TensorFlow published it in December 2015, and no other
network gives numbers with these names. It differs from torchvision's: 1008 classes, average pooling that leaves the
border out, a maximum in place of the average in the last block, and batch norms with an epsilon of 1e-3. Parameters
have the names of the file that the pytorch-fid project made of the published graph; it is not part of hfgen, and is
fetched only by who asks for it.
"""

import http
import http.client
import os
import re
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import max_pool2d
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hfgen.runtime.errors import UserError
from hfgen.runtime.files import sha256_of

FILE = "pt_inception-2015-12-05-6726825d.pth"
SAME_FILE = "weights-inception-2015-12-05-6726825d.pth"  # what torch-fidelity calls it
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
HUB_FILES = ("model.safetensors", FILE)  # what is looked for in a repository, in this order

DIM = 2048
NUM_CLASSES = 1008  # ImageNet's 1000, and 8 without a name, which count in the Inception Score
SIDE = 299  # pixels

Branch = Sequence[str | tuple]  # pools by name, and convolutions as (name, channels, kernel, stride)


class Convolution(nn.Module):
    """Convolution, batch norm and ReLU. With a stride there is no padding, otherwise the size stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, pad: bool = True):
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if pad and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, (height, width), stride, padding, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(outputs, eps=1e-3)
        self.bn.num_batches_tracked = None  # the published file has none

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x)).relu_()


class Block(nn.Module):
    """Branches whose outputs are concatenated. A step that begins several branches is computed once."""

    def __init__(self, inputs: int, branches: Sequence[Branch]):
        super().__init__()
        self.branches = [[step if isinstance(step, str) else step[0] for step in branch] for branch in branches]
        for branch in branches:
            channels = inputs
            for step in branch:
                if isinstance(step, tuple):
                    name, outputs, *rest = step
                    if name not in self._modules:
                        self.add_module(name, Convolution(channels, outputs, *rest))
                    channels = outputs
        self.average = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        self.maximum = nn.MaxPool2d(3, stride=1, padding=1)
        self.reduction = nn.MaxPool2d(3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states: dict[str, torch.Tensor] = {}
        ends = []
        for branch in self.branches:
            state = x
            for name in branch:
                if name not in states:
                    states[name] = self.get_submodule(name)(state)
                state = states[name]
            ends.append(state)
        return torch.cat(ends, dim=1)


def block_35(inputs: int, pooled: int) -> Block:
    """Makes a block at 35 x 35 pixels: 224 channels and those of the pooled branch."""
    return Block(
        inputs,
        [
            [("branch1x1", 64, 1)],
            [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
            [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
            ["average", ("branch_pool", pooled, 1)],
        ],
    )


def reduction_35(inputs: int) -> Block:
    """Makes the block from 35 x 35 to 17 x 17 pixels: 480 channels more."""
    return Block(
        inputs,
        [
            [("branch3x3", 384, 3, 2)],
            [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2)],
            ["reduction"],
        ],
    )


def block_17(inputs: int, inner: int) -> Block:
    """Makes a block at 17 x 17 pixels: 768 channels."""
    return Block(
        inputs,
        [
            [("branch1x1", 192, 1)],
            [("branch7x7_1", inner, 1), ("branch7x7_2", inner, (1, 7)), ("branch7x7_3", 192, (7, 1))],
            [
                ("branch7x7dbl_1", inner, 1),
                ("branch7x7dbl_2", inner, (7, 1)),
                ("branch7x7dbl_3", inner, (1, 7)),
                ("branch7x7dbl_4", inner, (7, 1)),
                ("branch7x7dbl_5", 192, (1, 7)),
            ],
            ["average", ("branch_pool", 192, 1)],
        ],
    )


def reduction_17(inputs: int) -> Block:
    """Makes the block from 17 x 17 to 8 x 8 pixels: 512 channels more."""
    return Block(
        inputs,
        [
            [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)],
            [
                ("branch7x7x3_1", 192, 1),
                ("branch7x7x3_2", 192, (1, 7)),
                ("branch7x7x3_3", 192, (7, 1)),
                ("branch7x7x3_4", 192, 3, 2),
            ],
            ["reduction"],
        ],
    )


def block_8(inputs: int, pool: str) -> Block:
    """Makes a block at 8 x 8 pixels: 2048 channels."""
    single = ("branch3x3_1", 384, 1)
    double = [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3)]
    return Block(
        inputs,
        [
            [("branch1x1", 320, 1)],
            [single, ("branch3x3_2a", 384, (1, 3))],
            [single, ("branch3x3_2b", 384, (3, 1))],
            [*double, ("branch3x3dbl_3a", 384, (1, 3))],
            [*double, ("branch3x3dbl_3b", 384, (3, 1))],
            [pool, ("branch_pool", 192, 1)],
        ],
    )


class InceptionOutput(NamedTuple):
    """The output of the network for N images.

    Attributes:
        features (`torch.Tensor` of shape `(N, 2048)`): Average of the last block; all are at least 0.
        logits (`torch.Tensor` of shape `(N, 1008)`): Of the classes.
        unbiased_logits (`torch.Tensor` of shape `(N, 1008)`): Without the last layer's bias, as the Inception Score
            takes them since its first implementation.
    """

    features: torch.Tensor
    logits: torch.Tensor
    unbiased_logits: torch.Tensor


class InceptionV3(nn.Module):
    """Inception-v3 of 2015, from pixels to pooled features.

    Attributes:
        verified (`bool`): Whether the weights are the published ones. Only then may numbers be called FID, KID or
            Inception Score.
    """

    def __init__(self) -> None:
        super().__init__()
        self.verified = False
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, pad=False)
        self.Mixed_5b = block_35(192, 32)
        self.Mixed_5c = block_35(256, 64)
        self.Mixed_5d = block_35(288, 64)
        self.Mixed_6a = reduction_35(288)
        self.Mixed_6b = block_17(768, 128)
        self.Mixed_6c = block_17(768, 160)
        self.Mixed_6d = block_17(768, 160)
        self.Mixed_6e = block_17(768, 192)
        self.Mixed_7a = reduction_17(768)
        self.Mixed_7b = block_8(1280, "average")
        self.Mixed_7c = block_8(2048, "maximum")
        self.fc = nn.Linear(DIM, NUM_CLASSES)

    def forward(self, pixels: torch.Tensor) -> InceptionOutput:
        """Computes features and logits.

        Args:
            pixels (`torch.Tensor` of shape `(N, 3, 299, 299)`): Images as `(x - 128) / 128` of levels x, resized as
                [`~resize.resize_tf1`] does.
        """
        x = self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(pixels))
        x = max_pool2d(self.Conv2d_2b_3x3(x), 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        features = x.mean((2, 3))
        unbiased = features @ self.fc.weight.T
        return InceptionOutput(features, unbiased + self.fc.bias, unbiased)

    def fold(self) -> "InceptionV3":
        """Makes each batch norm part of its convolution, for speed: the same network, to float32 rounding."""
        for module in self.modules():
            if isinstance(module, Convolution) and isinstance(module.bn, nn.BatchNorm2d):
                dtype = module.conv.weight.dtype
                module.conv = fuse_conv_bn_eval(module.conv.double().eval(), module.bn.double().eval()).to(dtype)
                module.bn = nn.Identity()
        return self


def load_inception(weights: str | Path | None = None) -> InceptionV3:
    """Loads the network with the weights of 2015, in evaluation mode on the CPU. Downloads nothing unless told to.

    Args:
        weights (`str` or `Path`, *optional*): One of

            - `None`: the published file where an earlier `"download"` or `torch.hub` (pytorch-fid, torch-fidelity)
              left it;
            - `"download"`: the same, and fetched once (96 MB) into the Hugging Face cache if it is in neither place;
            - a file: the published `.pth`, or `.safetensors` with tensors of the same names;
            - a repository on the Hub that holds `model.safetensors` or the published file.

    Raises:
        UserError: If the weights are not there, cannot be fetched, or are not those of this network. A `.pth` whose
            SHA-256 is not that of the published file is not opened.
    """
    path = find_weights(weights)
    with torch.device("meta"):  # initial weights would take a second
        model = InceptionV3()
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"the Inception weights {path} cannot be read: {error}. Give another file.") from None
    else:
        digest = sha256_of(path)
        if digest != SHA256:
            raise UserError(
                f"the Inception weights {path} are not the published file: its SHA-256 is {digest}, and must be "
                f"{SHA256}. Get it from {URL}, or give a .safetensors file."
            )
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        model.verified = True
    tensors = {name: value.float() for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    expected = model.state_dict()
    wrong = sorted(
        name
        for name in expected.keys() | tensors.keys()
        if name not in expected or name not in tensors or expected[name].shape != tensors[name].shape
    )
    if wrong:
        raise UserError(
            f"the Inception weights {path} are of another network: {len(wrong)} tensors are missing, unknown or of "
            f"another shape, the first is {wrong[0]!r}. The names and shapes must be those of {URL}."
        )
    model.load_state_dict(tensors, strict=False, assign=True)
    return model.eval().requires_grad_(False)


def find_weights(weights: str | Path | None) -> Path:
    """Finds the file that [`load_inception`] reads; see there."""
    if weights is None or weights == "download":
        kept = cache_path()
        hub = Path(torch.hub.get_dir()) / "checkpoints"
        for path in (kept, hub / FILE, hub / SAME_FILE):
            if path.is_file():
                return path
        if weights == "download":
            fetch(URL, kept, SHA256)
            return kept
        raise UserError(
            "the Inception weights of 2015 (96 MB) are not on this machine, and are not fetched unasked: add "
            f"`extractor_weights` download, or run `curl -L --create-dirs -o {kept} {URL}`, or name a file or a "
            "repository on the Hub that has them."
        )
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    if isinstance(weights, Path) or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", weights) or path.suffix in SUFFIXES:
        raise UserError(
            f"the Inception weights {weights} are not a file, and it is no name of a repository on the Hub: give a "
            f"{' or '.join(SUFFIXES)} file, a repository, or 'download'."
        )
    return from_hub(weights)


SUFFIXES = (".pth", ".safetensors")


def from_hub(repository: str) -> Path:
    """Finds the weights in a repository on the Hub, or in its cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    missing: Exception | None = None
    for name in HUB_FILES:
        try:
            return Path(hf_hub_download(repository, name))
        except LocalEntryNotFoundError as error:  # offline: the next file may be in the cache
            missing = error
        except EntryNotFoundError as error:
            missing = missing or error
        except Exception as error:  # the client's errors for names, access and networks have no common base
            missing = error
            break
    reason = " ".join(str(missing).split()).rstrip(".")
    raise UserError(
        f"the Inception weights cannot be had from the repository {repository} ({' or '.join(HUB_FILES)}): {reason}. "
        f"Fetch them with `hf download {repository}`, or give a file or 'download'."
    )


def cache_path() -> Path:
    """Returns the path where `"download"` keeps the published file."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "hfgen" / FILE


def fetch(url: str, path: Path, sha256: str) -> None:
    """Downloads a file once, whole and verified, and goes on where an earlier attempt was cut off.

    Several processes may call this at once: one downloads, the others wait.

    Raises:
        UserError: If the Hub is set offline, the file cannot be had, or it is not the one expected.
    """
    import filelock
    from huggingface_hub import constants
    from tqdm.auto import tqdm

    by_hand = f"fetch it elsewhere and put it at {path}, or give a file that has it"
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"HF_HUB_OFFLINE is set, so {url} is not fetched: unset it, {by_hand}.")
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{path}.lock"):
            if path.exists():
                return
            start = partial.stat().st_size if partial.exists() else 0
            if not start or sha256_of(partial) != sha256:
                request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
                with urllib.request.urlopen(request, timeout=60) as answer:
                    resumed = answer.status == http.HTTPStatus.PARTIAL_CONTENT
                    total = int(answer.headers.get("Content-Length", 0)) + start * resumed
                    bar = tqdm(total=total, initial=start * resumed, unit="B", unit_scale=True, desc=path.name)
                    with bar, partial.open("ab" if resumed else "wb") as file:
                        while block := answer.read(2**20):
                            file.write(block)
                            bar.update(len(block))
                if partial.stat().st_size < total:
                    raise OSError("the connection was lost")
                digest = sha256_of(partial)
                if digest != sha256:
                    partial.unlink()
                    raise UserError(
                        f"{url} is not the expected file: its SHA-256 is {digest}, not {sha256}; {by_hand}."
                    )
            os.replace(partial, path)
    except (OSError, http.client.HTTPException) as error:
        if getattr(error, "code", None) == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            partial.unlink()  # longer than the file: it cannot be gone on with
        raise UserError(
            f"{url} cannot be fetched: {error}. Try again (what has come is kept), or {by_hand}."
        ) from None
