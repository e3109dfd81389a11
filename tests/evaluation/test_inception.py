"""Inception against naive layers, TensorFlow's resize against its definition, and where the weights come from."""

import hashlib
import http.server
import os
import threading

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from hfgen.evaluation import inception
from hfgen.evaluation.features import load_extractor, metric_prefix
from hfgen.evaluation.resize import resize_pil, resize_tf1
from hfgen.runtime.errors import UserError


@pytest.fixture(scope="module")
def model():
    """Seeded weights that keep the signal, and batch norms that do something."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        net = inception.InceptionV3()
    net.to_empty(device="cpu").eval().requires_grad_(False)
    for name, value in net.state_dict().items():
        if name.endswith("conv.weight"):
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2, generator=generator)
        elif name.endswith("bn.weight"):
            value.uniform_(0.7, 1.4, generator=generator)
        else:
            value.normal_(0, 0.1, generator=generator)
    return net


@pytest.fixture(scope="module")
def published(model):
    """The tensors that the published file has."""
    return dict(model.state_dict())


@pytest.fixture(scope="module")
def weights(published, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    save_file(published, path)
    return path


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """Empty caches."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "torch"))
    yield tmp_path
    torch.hub.set_dir(before)


def images(*shape, seed=0):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


# The network, layer by layer. The reference sums over the offsets of a window, in float64.


def windows(x, height, width, stride, padding, fill):
    """What each offset of the window sees, for zero-based offsets (i, j)."""
    rows, columns = padding
    x = torch.nn.functional.pad(x, (columns, columns, rows, rows), value=fill)
    high, wide = (x.shape[2] - height) // stride + 1, (x.shape[3] - width) // stride + 1
    for i in range(height):
        for j in range(width):
            yield i, j, x[:, :, i : i + stride * (high - 1) + 1 : stride, j : j + stride * (wide - 1) + 1 : stride]


def maximum(x, stride, padding=0):
    return torch.stack([part for *_, part in windows(x, 3, 3, stride, (padding, padding), -torch.inf)]).amax(0)


def average(x):
    """Of the pixels inside the image: at a corner of 4, at an edge of 6."""
    total = sum(part for *_, part in windows(x, 3, 3, 1, (1, 1), 0))
    return total / sum(part for *_, part in windows(torch.ones_like(x), 3, 3, 1, (1, 1), 0))


class Reference:
    def __init__(self, tensors):
        self.tensors = {name: value.double() for name, value in tensors.items()}

    def layer(self, name, x, stride=1, valid=False):
        weight = self.tensors[f"{name}.conv.weight"]
        height, width = weight.shape[2:]
        padding = (0, 0) if valid else ((height - 1) // 2, (width - 1) // 2)
        y = sum(
            torch.einsum("nchw,oc->nohw", part, weight[:, :, i, j])
            for i, j, part in windows(x, height, width, stride, padding, 0)
        )
        gain, shift, mean, variance = (
            self.tensors[f"{name}.bn.{part}"].view(-1, 1, 1)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return ((y - mean) / (variance + 0.001).sqrt() * gain + shift).clamp(min=0)

    def chain(self, block, x, *names, last_stride=1):
        for name in names:
            stride = last_stride if name == names[-1] else 1
            x = self.layer(f"{block}.{name}", x, stride, valid=stride == 2)
        return x

    def a(self, block, x):
        return [
            self.chain(block, x, "branch1x1"),
            self.chain(block, x, "branch5x5_1", "branch5x5_2"),
            self.chain(block, x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
            self.chain(block, average(x), "branch_pool"),
        ]

    def b(self, block, x):
        return [
            self.chain(block, x, "branch3x3", last_stride=2),
            self.chain(block, x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3", last_stride=2),
            maximum(x, 2),
        ]

    def c(self, block, x):
        return [
            self.chain(block, x, "branch1x1"),
            self.chain(block, x, *(f"branch7x7_{i}" for i in range(1, 4))),
            self.chain(block, x, *(f"branch7x7dbl_{i}" for i in range(1, 6))),
            self.chain(block, average(x), "branch_pool"),
        ]

    def d(self, block, x):
        return [
            self.chain(block, x, "branch3x3_1", "branch3x3_2", last_stride=2),
            self.chain(block, x, *(f"branch7x7x3_{i}" for i in range(1, 5)), last_stride=2),
            maximum(x, 2),
        ]

    def e(self, block, x, pooled):
        single = self.chain(block, x, "branch3x3_1")
        double = self.chain(block, x, "branch3x3dbl_1", "branch3x3dbl_2")
        return [
            self.chain(block, x, "branch1x1"),
            self.chain(block, single, "branch3x3_2a"),
            self.chain(block, single, "branch3x3_2b"),
            self.chain(block, double, "branch3x3dbl_3a"),
            self.chain(block, double, "branch3x3dbl_3b"),
            self.chain(block, pooled, "branch_pool"),
        ]

    def __call__(self, x):
        """All the layers by name, and the three outputs."""
        found = {}
        x = found["Conv2d_1a_3x3"] = self.layer("Conv2d_1a_3x3", x, stride=2, valid=True)
        x = found["Conv2d_2a_3x3"] = self.layer("Conv2d_2a_3x3", x, valid=True)
        x = found["Conv2d_2b_3x3"] = self.layer("Conv2d_2b_3x3", x)
        x = found["Conv2d_3b_1x1"] = self.layer("Conv2d_3b_1x1", maximum(x, 2))
        x = found["Conv2d_4a_3x3"] = self.layer("Conv2d_4a_3x3", x, valid=True)
        x = maximum(x, 2)
        for name in "5b 5c 5d 6a 6b 6c 6d 6e 7a 7b 7c".split():
            block = f"Mixed_{name}"
            if name in ("7b", "7c"):
                parts = self.e(block, x, average(x) if name == "7b" else maximum(x, 1, padding=1))
            else:
                kinds = {"5": self.a, "6a": self.b, "6": self.c, "7a": self.d}
                parts = kinds.get(name, kinds.get(name[0]))(block, x)
            x = found[block] = torch.cat(parts, dim=1)
        features = x.flatten(2).mean(2)
        unbiased = features @ self.tensors["fc.weight"].T
        return found, (features, unbiased + self.tensors["fc.bias"], unbiased)


def layers_of(net, pixels):
    """The outputs of the network's layers by name, and what it returns."""
    found, handles = {}, []
    for name, module in net.named_children():
        if name != "fc":
            keep = lambda module, inputs, output, name=name: found.update({name: output})  # noqa: E731
            handles.append(module.register_forward_hook(keep))
    with torch.inference_mode():
        outputs = net(pixels)
    for handle in handles:
        handle.remove()
    return found, outputs


def test_it_has_the_tensors_of_the_published_file(published):
    assert len(published) == 472
    assert sum(value.numel() for value in published.values()) == 23_885_392
    assert published["fc.bias"].shape == (1008,)
    kernels = {
        (5, 5): "branch5x5_2",
        (3, 3): "branch3x3 branch3x3_2 branch3x3dbl_2 branch3x3dbl_3 branch7x7x3_4",
        (1, 7): "branch7x7_2 branch7x7dbl_3 branch7x7dbl_5 branch7x7x3_2",
        (7, 1): "branch7x7_3 branch7x7dbl_2 branch7x7dbl_4 branch7x7x3_3",
        (1, 3): "branch3x3_2a branch3x3dbl_3a",
        (3, 1): "branch3x3_2b branch3x3dbl_3b",
    }
    sizes = {layer: size for size, layers in kernels.items() for layer in layers.split()}
    for name, value in published.items():
        if name.endswith("conv.weight"):
            layer = name.split(".")[-3]
            expected = (3, 3) if layer.startswith("Conv2d") and layer.endswith("3x3") else sizes.get(layer, (1, 1))
            assert value.shape[2:] == expected, name


def test_each_layer_is_that_of_the_definition(model, published):
    """In float32, at a size at which each kind of padding and pooling meets a border."""
    pixels = torch.randn(1, 3, 123, 139, generator=torch.Generator().manual_seed(1))
    expected, expected_outputs = Reference(published)(pixels.double())
    found, outputs = layers_of(model, pixels)
    assert list(found) == list(expected) and len(found) == 16
    for name, value in expected.items():
        scale = value.abs().max().item()
        torch.testing.assert_close(found[name].double(), value, rtol=0, atol=1e-5 * scale)
    for value, wanted in zip(outputs, expected_outputs, strict=True):
        torch.testing.assert_close(value.double(), wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


def test_sizes_and_folding(model, weights):
    pixels = (resize_tf1(images(2, 3, 32, 32), 299) - 128) / 128
    found, outputs = layers_of(model, pixels)
    assert {name: tuple(value.shape[1:]) for name, value in found.items()} == {
        "Conv2d_1a_3x3": (32, 149, 149),
        "Conv2d_2a_3x3": (32, 147, 147),
        "Conv2d_2b_3x3": (64, 147, 147),
        "Conv2d_3b_1x1": (80, 73, 73),
        "Conv2d_4a_3x3": (192, 71, 71),
        "Mixed_5b": (256, 35, 35),
        **{f"Mixed_{name}": (288, 35, 35) for name in ("5c", "5d")},
        **{f"Mixed_{name}": (768, 17, 17) for name in ("6a", "6b", "6c", "6d", "6e")},
        "Mixed_7a": (1280, 8, 8),
        **{f"Mixed_{name}": (2048, 8, 8) for name in ("7b", "7c")},
    }
    folded = inception.load_inception(weights).fold()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    _, same = layers_of(folded, pixels)
    for value, wanted in zip(same, outputs, strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-6 * wanted.abs().max().item())
    assert outputs.features.shape == (2, 2048) and (outputs.features >= 0).all()
    torch.testing.assert_close(outputs.logits - model.fc.bias, outputs.unbiased_logits)


# Resizing.


@pytest.mark.parametrize(("inputs", "outputs"), [(8, 13), (17, 5), (6, 6), (1, 4), (32, 299)])
def test_the_resize_is_tensorflows(inputs, outputs):
    """Output i is read at i * inputs / outputs, without smoothing; beyond the last pixel there is that pixel again."""
    batch = images(2, 3, inputs, inputs + 1)
    found = resize_tf1(batch, (outputs, outputs + 2))
    assert found.dtype == torch.float32

    def at(line, place):
        low = int(place)
        high = min(low + 1, len(line) - 1)
        return float(line[low]) + (float(line[high]) - float(line[low])) * (place - low)

    for row in {0, 1, outputs // 2, outputs - 1} & set(range(outputs)):
        for column in {0, 1, outputs // 3, outputs + 1}:
            for image, channel in ((0, 0), (1, 2)):
                x = column * (inputs + 1) / (outputs + 2)
                lines = [at(line.tolist(), x) for line in batch[image, channel]]
                expected = at(lines, row * inputs / outputs)
                assert found[image, channel, row, column].item() == pytest.approx(expected, abs=2e-3)


def test_the_resize_smooths_nothing():
    """The half of 1, 0, 1, 0, ... is 1, 1, 1, ...: half-pixel centres or smoothing would give 1/2."""
    batch = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    batch[:, :, ::2, ::2] = 255
    assert (resize_tf1(batch, 4) == 255).all()


# Where the weights come from.


def test_weights_from_a_file(published, weights):
    found = inception.load_inception(weights)
    assert not found.verified and not found.training
    for name, value in published.items():
        assert torch.equal(found.state_dict()[name], value), name
    assert torch.equal(inception.load_inception(str(weights)).fc.weight, found.fc.weight)


def test_the_published_file_is_known_by_its_digest(published, nowhere, monkeypatch):
    path = nowhere / "weights.pth"
    # A file with the counters of batch norms would be none the worse.
    torch.save(published | {"Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(3)}, path)
    with pytest.raises(UserError, match=r"are not the published file: its SHA-256 is [0-9a-f]{64}, and must be 6726"):
        inception.load_inception(path)
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    assert inception.load_inception(path).verified
    # Where torch.hub keeps it, it is found without being named; "download" finds it too and fetches nothing.
    (nowhere / "torch" / "checkpoints").mkdir(parents=True)
    path.rename(nowhere / "torch" / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth")
    for unnamed in (None, "download"):
        found = inception.load_inception(unnamed)
        assert found.verified and torch.equal(found.fc.weight, published["fc.weight"])


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_file_that_is_not_the_published_one_is_not_opened(tmp_path):
    torch.save({"fc.weight": Harmful(tmp_path / "harm")}, tmp_path / inception.FILE)
    with pytest.raises(UserError, match="are not the published file"):
        inception.load_inception(tmp_path / inception.FILE)
    assert not (tmp_path / "harm").exists()


def test_weights_of_another_network(published, tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"other\.safetensors cannot be read"):
        inception.load_inception(path)
    changes = {
        "fc.bias": {"fc.bias": torch.zeros(1000)},  # torchvision's has 1000 classes
        "AuxLogits.fc.bias": {"AuxLogits.fc.bias": torch.zeros(1000)},
    }
    for name, change in changes.items():
        save_file(published | change, path)
        with pytest.raises(UserError, match=rf"of another network: 1 tensors are .*the first is '{name}'"):
            inception.load_inception(path)
    save_file({name: value for name, value in published.items() if not name.startswith("Mixed_7")}, path)
    with pytest.raises(UserError, match=r"of another network: 120 tensors are missing"):
        inception.load_inception(path)


def test_weights_that_are_not_there(nowhere):
    with pytest.raises(
        UserError,
        match=r"not fetched unasked: add `extractor_weights` download, or run `curl -L --create-dirs ",
    ):
        inception.load_inception()
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set, so https://.* is not fetched"):
        inception.load_inception("download")
    for absent in ("absent.pth", "out/absent.safetensors", "/absent/file", nowhere / "absent"):
        with pytest.raises(UserError, match="are not a file, and it is no name of a repository"):
            inception.load_inception(absent)
    with pytest.raises(UserError, match=r"from the repository nobody/inception .*`hf download nobody/inception`"):
        inception.load_inception("nobody/inception")
    assert not (nowhere / "home" / "hfgen").exists()


def test_weights_from_a_repository_in_the_cache(weights, nowhere):
    repository = nowhere / "home" / "hub" / "models--somebody--inception"
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40) / "model.safetensors").symlink_to(weights)
    assert not inception.load_inception("somebody/inception").verified


# Fetching, from a server of our own.

CONTENT = bytes(images(3_000_000).tolist())


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT. It may cut an answer off after some bytes, or know nothing of ranges."""

    cut: int | None = None
    ranges = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []
        self.url = f"http://127.0.0.1:{self.server_port}/weights.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers["Range"]
        server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : server.cut])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


DIGEST = hashlib.sha256(CONTENT).hexdigest()


def test_fetching_once(server, tmp_path):
    path = tmp_path / "deep" / "weights.pth"
    inception.fetch(server.url, path, DIGEST)
    inception.fetch(server.url, path, DIGEST)
    assert path.read_bytes() == CONTENT and server.asked == [None]
    assert not path.with_name("weights.pth.partial").exists()


def test_fetching_goes_on_where_it_was_cut_off(server, tmp_path):
    path, partial = tmp_path / "weights.pth", tmp_path / "weights.pth.partial"
    server.cut = 2_000_000
    with pytest.raises(UserError, match=r"cannot be fetched: .*Try again \(what has come is kept\)"):
        inception.fetch(server.url, path, DIGEST)
    assert not path.exists() and partial.read_bytes() == CONTENT[: server.cut]
    server.cut = None
    inception.fetch(server.url, path, DIGEST)
    assert path.read_bytes() == CONTENT and server.asked == [None, "bytes=2000000-"]


def test_fetching_from_a_server_without_ranges(server, tmp_path):
    server.ranges = False
    (tmp_path / "weights.pth.partial").write_bytes(b"something else")
    inception.fetch(server.url, tmp_path / "weights.pth", DIGEST)
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


def test_fetching_something_else(server, tmp_path):
    path, partial = tmp_path / "weights.pth", tmp_path / "weights.pth.partial"
    with pytest.raises(UserError, match="is not the expected file: its SHA-256 is"):
        inception.fetch(server.url, path, "0" * 64)
    assert not path.exists() and not partial.exists()
    partial.write_bytes(CONTENT + b"more")  # the server has nothing to add to it
    with pytest.raises(UserError, match="416"):
        inception.fetch(server.url, path, DIGEST)
    inception.fetch(server.url, path, DIGEST)
    assert path.read_bytes() == CONTENT
    with pytest.raises(UserError, match="cannot be fetched"):
        inception.fetch("http://127.0.0.1:1/weights.pth", tmp_path / "other.pth", DIGEST)


# The extractors.


def test_the_two_extractors(model, weights, published, nowhere, monkeypatch):
    batch = images(3, 3, 40, 40)
    extractor = load_extractor("inception", weights, batch_size=2)
    assert (extractor.id, extractor.dim, extractor.layer) == ("inception", 2048, "pool3")
    found = extractor(batch)
    with torch.inference_mode():
        expected = model((resize_tf1(batch, 299) - 128) / 128)
    for name, value in (("features", expected.features), ("logits", expected.unbiased_logits)):
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6 * value.abs().max().item())

    clean = load_extractor("inception-clean", weights)
    with torch.inference_mode():
        pixels = resize_pil(batch, 299, "bicubic", rounded=False).clamp(0, 255)
        expected = model((pixels - 128) / 128)
    scale = expected.features.abs().max().item()
    features = clean(batch)["features"]
    torch.testing.assert_close(features, expected.features, rtol=0, atol=1e-6 * scale)
    assert (features - found["features"]).abs().max() > 1e-3 * scale
    assert clean.fingerprint != extractor.fingerprint

    # Weights that nobody has verified give no FID.
    assert "no number may be called FID" in extractor.notes[0]
    assert metric_prefix(extractor) == f"fd_inception-{extractor.fingerprint[:8]}"
    assert metric_prefix(clean, "kd") == f"kd_inception-clean-{clean.fingerprint[:8]}"

    # The same tensors from the verified file do, and are the same extractor.
    path = nowhere / "weights.pth"
    torch.save(published, path)
    monkeypatch.setattr(inception, "SHA256", inception.sha256_of(path))
    verified = load_extractor("inception", path)
    assert verified.fingerprint == extractor.fingerprint and verified.notes == []
    assert [metric_prefix(verified, kind) for kind in ("fd", "kd", "cs")] == ["fid", "kid", "is"]
    verified = load_extractor("inception-clean", path)
    assert [metric_prefix(verified, kind) for kind in ("fd", "kd")] == ["clean_fid", "clean_kid"]
    assert metric_prefix(verified, "cs").startswith("cs_inception-clean-")
