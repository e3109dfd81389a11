"""Feature networks on tiny real models: Pillow's pixels, the processors' preparation, the right output of each."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import (
    AutoImageProcessor,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from hfgen.evaluation import features
from hfgen.evaluation.features import full_precision, load_extractor, metric_prefix
from hfgen.evaluation.resize import as_channels, resize_pil
from hfgen.runtime.errors import UserError

PILLOW = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC, "lanczos": Image.LANCZOS}
TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
VIT_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 32, "width": 32},
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.5],
}
CLIP_PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32},
}


def images(*shape, seed=0):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def save(folder, model, processor=None, **extra):
    model.eval().save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor | extra))
    return str(folder)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def vit_config(**options):
    return ViTConfig(**TRANSFORMER, image_size=32, patch_size=8, **options)


# Resizing as Pillow does.


def pillow(batch, size, resample, rounded):
    """First within rows, then within columns: in one call, Pillow 13 takes the other order for some oblong images."""
    height, width = size
    result = []
    for image in batch.numpy():
        channels = []
        for channel in image:
            picture = Image.fromarray(channel if rounded else channel.astype(np.float32))
            picture = picture.resize((width, picture.height), PILLOW[resample])
            channels.append(np.array(picture.resize((width, height), PILLOW[resample])))
        result.append(np.stack(channels))
    return torch.from_numpy(np.stack(result))


@pytest.mark.parametrize("resample", PILLOW)
@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [((28, 28), (299, 299)), ((70, 70), (32, 32)), ((31, 31), (31, 31)), ((1, 1), (5, 5)), ((40, 9), (7, 50))],
)
def test_pillow_resizes_the_same(inputs, outputs, resample):
    noise = images(2, 3, *inputs)
    extremes = (noise > 127).to(torch.uint8) * 255  # overshoots, and is cut between the passes too
    for batch in (noise, extremes):
        assert torch.equal(resize_pil(batch, outputs, resample), pillow(batch, outputs, resample, rounded=True))
        found = resize_pil(batch, outputs, resample, rounded=False)
        expected = pillow(batch, outputs, resample, rounded=False)
        torch.testing.assert_close(found, expected, rtol=0, atol=4e-5)  # the last digit of float32,
        assert (found == expected).double().mean() > 0.99  # and rarely that


def test_pillow_resizes_square_images_the_same_in_one_call(monkeypatch):
    monkeypatch.setattr("hfgen.evaluation.resize.ELEMENTS_AT_ONCE", 3 * 64 * 64)  # one image at a time
    batch = images(3, 3, 64, 64)
    expected = [
        np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).resize((48, 48), Image.BICUBIC)) for image in batch
    ]
    assert torch.equal(resize_pil(batch, 48).permute(0, 2, 3, 1), torch.from_numpy(np.stack(expected)))


def test_images_that_do_not_fit():
    with pytest.raises(ValueError, match=r"images has dtype torch.float32, but must be torch.uint8"):
        resize_pil(torch.zeros(1, 3, 8, 8), 4)
    with pytest.raises(ValueError, match=r"images has shape \(3, 8, 8\), but must be \(N, C, H, W\)"):
        resize_pil(images(3, 8, 8), 4)
    with pytest.raises(ValueError, match=r"images has shape \(0, 3, 8, 8\)"):
        resize_pil(images(0, 3, 8, 8), 4)
    with pytest.raises(ValueError, match="resample is 'area', but must be one of bilinear, bicubic, lanczos"):
        resize_pil(images(1, 3, 8, 8), 4, "area")
    gray = images(2, 1, 8, 8)
    assert torch.equal(as_channels(gray, 3), gray.repeat(1, 3, 1, 1)) and as_channels(gray, 1) is gray
    transparent = images(2, 4, 8, 8)
    expected = [
        np.asarray(Image.alpha_composite(Image.new("RGBA", (8, 8), "white"), Image.fromarray(image))).astype(int)[
            ..., :3
        ]
        for image in transparent.permute(0, 2, 3, 1).contiguous().numpy()
    ]
    assert np.abs(as_channels(transparent, 3).permute(0, 2, 3, 1).numpy().astype(int) - np.stack(expected)).max() <= 1
    with pytest.raises(UserError, match=r"4 channels \(RGBA\), .* takes 1 \(gray\): composite them onto a background"):
        as_channels(images(1, 4, 8, 8), 1)
    with pytest.raises(UserError, match=r"3 channels \(RGB\), but the network takes 1 \(gray\): convert them"):
        as_channels(images(1, 3, 8, 8), 1)


# Preparation as the processors do it.


PLAIN = {
    "square": VIT_PROCESSOR,
    "crop": CLIP_PROCESSOR,
    "dinov2's, on the Hub": CLIP_PROCESSOR
    | {"size": {"shortest_edge": 37}, "resample": 3, "image_mean": [0.485, 0.456, 0.406]},
    "oblong": VIT_PROCESSOR | {"size": {"height": 40, "width": 24}, "resample": 1},
    "size kept": VIT_PROCESSOR | {"do_resize": False},
    "levels kept": VIT_PROCESSOR | {"do_rescale": False, "do_normalize": False},
    "not normalised": VIT_PROCESSOR | {"do_normalize": False},
}
PECULIAR = {
    "other filter": VIT_PROCESSOR | {"resample": 0},
    "padded": CLIP_PROCESSOR | {"crop_size": {"height": 36, "width": 36}},
    "crop before size": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}},
}


@pytest.mark.parametrize("name", [*PLAIN, *PECULIAR])
def test_preparation_is_that_of_the_processor(name, tmp_path):
    """Bit for bit: in batches for ordinary processors, by the processor itself for others."""
    config = (PLAIN | PECULIAR)[name]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    prepare, description = features.load_preparation(str(tmp_path), 3)
    assert isinstance(prepare, features.Preparation) == (name in PLAIN)
    assert json.loads(json.dumps(description)) == description and description["channels"] == 3
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    for side in (32, 33, 50, 90):
        batch = images(2, 3, side, side, seed=side)
        expected = processor([Image.fromarray(image.permute(1, 2, 0).numpy()) for image in batch], return_tensors="pt")
        assert torch.equal(prepare(batch), expected["pixel_values"])
        gray = prepare(batch[:, :1])
        assert torch.equal(gray, prepare(batch[:, :1].repeat(1, 3, 1, 1)))


def test_preparation_of_oblong_images(tmp_path):
    """The shorter side is met, the longer one is rounded down, and the middle is kept."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CLIP_PROCESSOR | {"resample": 2}))
    prepare, _ = features.load_preparation(str(tmp_path), 3)
    batch = images(1, 3, 16, 23)
    expected = pillow(batch, (32, 46), "bilinear", rounded=True)[:, :, :, 7:39]
    mean, std = (torch.tensor(prepare.mean).view(3, 1, 1), torch.tensor(prepare.std).view(3, 1, 1))
    torch.testing.assert_close(prepare(batch) * std + mean, expected / 255)
    torch.testing.assert_close(prepare(batch.mT), prepare(batch).mT, rtol=0, atol=0.1)  # but for rounding in between


# The right output of each architecture.


def processed(folder, batch):
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return processor([image.numpy() for image in batch], return_tensors="pt", input_data_format="channels_first")[
        "pixel_values"
    ]


def test_clip_gives_image_embeddings(tmp_path):
    text = TRANSFORMER | {"vocab_size": 20}
    vision = TRANSFORMER | {"image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    folder = save(tmp_path / "clip-tiny", model, CLIP_PROCESSOR)
    extractor = load_extractor(folder, batch_size=3)
    assert (extractor.id, extractor.dim, extractor.layer) == ("clip-tiny", 12, "image_embeds")
    batch = images(5, 3, 20, 20)
    with torch.no_grad():
        expected = model.visual_projection(model.vision_model(processed(folder, batch)).pooler_output)
    found = extractor(batch)
    assert list(found) == ["features"]
    torch.testing.assert_close(found["features"], expected)
    # The vision half saved alone is the same network.
    half, _ = features.load_model(folder)
    assert isinstance(half, CLIPVisionModelWithProjection)
    alone = load_extractor(save(tmp_path / "alone", half, CLIP_PROCESSOR))
    assert alone.fingerprint == extractor.fingerprint


def cubic(x):
    """Bicubic interpolation with a = -3/4, as PyTorch has it."""
    x = abs(x)
    if x < 1:
        return 1.25 * x**3 - 2.25 * x**2 + 1
    return -0.75 * x**3 + 3.75 * x**2 - 6 * x + 3 if x < 2 else 0.0


def test_dinov2_follows_the_protocol_of_its_authors(tmp_path):
    model = Dinov2Model(Dinov2Config(**TRANSFORMER, image_size=14 * 37, patch_size=14)).eval()
    for weight in model.parameters():  # at first the patches hardly count
        weight.data *= 10 if weight.ndim == 2 else 1
    positions = model.embeddings.position_embeddings.data.normal_().clone()
    # Its own processor, which enlarges and crops, is left out.
    folder = save(tmp_path / "dinov2", model, CLIP_PROCESSOR)
    extractor = load_extractor(folder)
    assert extractor.layer == "pooler_output" and extractor.preprocessing["size"] == [224, 224]

    grid = positions[0, 1:].double().view(37, 37, 16)
    scale = (16 + 0.1) / 37
    weights = torch.zeros(16, 37, dtype=torch.float64)
    for row in range(16):
        place = (row + 0.5) / scale - 0.5
        for pixel in range(int(place) - 1, int(place) + 3):
            weights[row, min(max(pixel, 0), 36)] += cubic(place - pixel)
    expected = torch.einsum("ip,jq,pqc->ijc", weights, weights, grid).flatten(0, 1).float()
    replaced = torch.cat([positions[:, :1], expected.unsqueeze(0)], dim=1)

    batch = images(2, 3, 30, 30)
    pixels = resize_pil(batch, 224, "bicubic").double() / 255
    mean, std = (torch.tensor(part).double() for part in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    pixels = ((pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)).float()
    with torch.no_grad():
        plain = model(pixels).last_hidden_state[:, 0]
        model.embeddings.position_embeddings.data = replaced
        wanted = model(pixels).last_hidden_state[:, 0]  # the first token, after the last normalisation
    found = extractor(batch)["features"]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert (found - plain).abs().max() > 0.01  # transformers' own interpolation is another


def test_vit_gives_its_first_token_whatever_its_pooler(tmp_path):
    """Classifiers are saved without the pooler that `AutoModel` gives them: it would be random."""
    batch = images(2, 3, 40, 40)
    fingerprints = set()
    for model in (ViTModel(vit_config()), ViTModel(vit_config(), add_pooling_layer=False)):
        folder = save(tmp_path / type(model).__name__, model, VIT_PROCESSOR)
        extractor = load_extractor(folder)
        with torch.no_grad():
            expected = model(processed(folder, batch)).last_hidden_state[:, 0]
        torch.testing.assert_close(extractor(batch)["features"], expected)
        assert extractor.layer == "last_hidden_state[:, 0]"
        fingerprints |= {extractor.fingerprint, load_extractor(folder).fingerprint}
    assert len(fingerprints) == 2  # of two networks, each loaded twice


def test_resnet_gives_its_pooled_map(tmp_path):
    model = ResNetModel(ResNetConfig(**RESNET))
    folder = save(tmp_path / "resnet", model, VIT_PROCESSOR)
    batch = images(2, 3, 30, 30)
    with torch.no_grad():
        expected = model(processed(folder, batch)).last_hidden_state.mean((2, 3))
    torch.testing.assert_close(load_extractor(folder)(batch)["features"], expected)


def test_a_gray_classifier(tmp_path):
    """Its features are what the last layer sees."""
    names = {0: "zero", 1: "one", 2: "two"}
    config = ResNetConfig(**RESNET, num_channels=1, id2label=names, label2id={"zero": 0, "one": 1, "two": 2})
    model = ResNetForImageClassification(config)
    processor = VIT_PROCESSOR | {"size": {"height": 28, "width": 28}, "image_mean": [0.13], "image_std": [0.31]}
    extractor = load_extractor(save(tmp_path / "MNIST classifier", model, processor), batch_size=2)
    batch = images(5, 1, 28, 28)
    found = extractor(batch)
    with torch.no_grad():
        expected = model((batch.double() / 255).float().sub(0.13) / 0.31, output_hidden_states=True)
    torch.testing.assert_close(found["logits"], expected.logits)
    torch.testing.assert_close(found["features"], expected.hidden_states[-1].mean((2, 3)))
    weight, bias = model.classifier[1].weight, model.classifier[1].bias
    torch.testing.assert_close(found["features"] @ weight.T + bias, found["logits"])
    assert (extractor.dim, extractor.labels, extractor.notes) == (12, ("zero", "one", "two"), [])
    assert metric_prefix(extractor) == f"fd_mnist-classifier-{extractor.fingerprint[:8]}"
    with pytest.raises(UserError, match=r"3 channels \(RGB\), but the network takes 1 \(gray\)"):
        extractor(images(1, 3, 28, 28))


@pytest.mark.parametrize("kind", [ViTForImageClassification, Dinov2ForImageClassification])
def test_other_classifiers(kind, tmp_path):
    config = vit_config() if kind is ViTForImageClassification else Dinov2Config(**TRANSFORMER, image_size=32)
    config.num_labels = 7
    model = kind(config)
    folder = save(tmp_path / "classifier", model, VIT_PROCESSOR)
    extractor = load_extractor(folder)
    batch = images(3, 3, 20, 20)
    found = extractor(batch)
    with torch.no_grad():
        torch.testing.assert_close(found["logits"], model(processed(folder, batch)).logits)
        torch.testing.assert_close(model.classifier(found["features"]), found["logits"])
    assert found["features"].shape == (3, extractor.dim) and found["logits"].shape == (3, 7)


def test_the_accuracy_of_a_classifier_is_known_if_it_was_measured(tmp_path):
    folder = tmp_path / "classifier"
    save(folder, ResNetForImageClassification(ResNetConfig(**RESNET)), VIT_PROCESSOR)
    for text, expected in (
        ('{"test_accuracy": 0.5, "resolution": 28}', 0.5),
        ('{"eval_accuracy": 0.5}', None),  # what others may write
        ('{"test_accuracy": null}', None),
        ('["test_accuracy"]', None),
        ("nothing", None),
    ):
        (folder / "eval.json").write_text(text)
        extractor = load_extractor(str(folder))
        assert extractor.accuracy == extractor.describe()["accuracy"] == expected
    (folder / "eval.json").unlink()
    assert load_extractor(str(folder)).accuracy is None


# The extractor.


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    torch.manual_seed(0)
    return save(tmp_path_factory.mktemp("models") / "vit", ViTModel(vit_config()), VIT_PROCESSOR)


def test_the_outputs_are_ordinary_and_do_not_depend_on_the_batch(vit):
    batch = images(7, 3, 24, 24)
    expected = load_extractor(vit)(batch)["features"]
    assert expected.dtype == torch.float32 and not expected.requires_grad
    expected -= 0  # which inference mode would refuse
    for batch_size in (1, 3):
        torch.testing.assert_close(load_extractor(vit, batch_size=batch_size)(batch)["features"], expected)
    extractor = load_extractor(vit)
    assert torch.equal(extractor(batch.numpy())["features"], expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(extractor(batch)["features"], expected)
    assert extractor.notes == []


def test_gray_images_for_a_colour_network_are_repeated(vit):
    extractor = load_extractor(vit)
    gray = images(3, 1, 24, 24)
    torch.testing.assert_close(extractor(gray)["features"], extractor(gray.repeat(1, 3, 1, 1))["features"])
    report = extractor.describe()
    assert json.loads(json.dumps(report)) == report and report["notes"] == extractor.notes
    transparent = images(3, 4, 24, 24)
    white = extractor(as_channels(transparent, 3))["features"]
    torch.testing.assert_close(extractor(transparent)["features"], white)
    with pytest.raises(UserError, match="2 channels"):
        extractor(images(3, 2, 24, 24))
    with pytest.raises(ValueError, match="images has dtype torch.float32"):
        extractor(gray.float())


def test_half_precision_weights_are_used_in_float32(vit, tmp_path):
    half = load_extractor(save(tmp_path / "half", ViTModel.from_pretrained(vit).half(), VIT_PROCESSOR))
    batch = images(3, 3, 24, 24)
    model = ViTModel.from_pretrained(vit).half().float().eval()
    with torch.no_grad():
        expected = model(processed(vit, batch)).last_hidden_state[:, 0]
    torch.testing.assert_close(half(batch)["features"], expected)


def test_the_fingerprint_is_of_weights_and_preprocessing(vit, tmp_path):
    expected = load_extractor(vit).fingerprint
    model = ViTModel.from_pretrained(vit)
    assert load_extractor(save(tmp_path / "renamed", model, VIT_PROCESSOR)).fingerprint == expected
    other = load_extractor(save(tmp_path / "other", model, VIT_PROCESSOR | {"image_mean": [0.5, 0.4, 0.31]}))
    model.layernorm.bias.data[3] += 1e-6
    changed = load_extractor(save(tmp_path / "changed", model, VIT_PROCESSOR))
    assert len({expected, other.fingerprint, changed.fingerprint}) == 3
    # Versions of transformers name the same tensors differently.
    tensors = dict(model.state_dict())
    renamed = {f"model.{name}": value for name, value in reversed(tensors.items())}
    assert features.fingerprint(tensors, "layer", {}) == features.fingerprint(renamed, "layer", {})
    assert features.fingerprint(tensors, "layer", {}) != features.fingerprint(tensors, "other", {})


def test_full_precision_is_set_and_given_back():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with (
            full_precision(torch.device("cpu")),
            torch.autocast("cpu", torch.bfloat16),
            full_precision(torch.device("cpu")),
        ):
            assert not torch.is_autocast_enabled("cpu")
            if hasattr(torch.backends, "fp32_precision"):
                assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
                assert torch.backends.cudnn.conv.fp32_precision == "ieee"
            else:
                assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)


def test_names(vit):
    extractor = load_extractor(vit)
    digest = extractor.fingerprint[:8]
    assert [metric_prefix(extractor, kind) for kind in ("fd", "kd", "cs")] == [
        f"{kind}_vit-{digest}" for kind in ("fd", "kd", "cs")
    ]
    # A folder may be called anything; only the repository of DINOv2's authors gives its name.
    extractor.layer = "pooler_output"
    for name, wanted in {
        "inception": f"fd_inception-{digest}",
        "dinov2-large": f"fd_dinov2-large-{digest}",
        "somebody/My_ResNet.v2": f"fd_my-resnet-v2-{digest}",
        "facebook/dinov2-large": "fd_dinov2",
        "facebook/dinov2-base": "fd_dinov2_vitb14",
    }.items():
        extractor.id = name
        assert metric_prefix(extractor) == wanted
    with pytest.raises(ValueError, match="kind is 'fid', but must be one of fd, kd, cs"):
        metric_prefix(extractor, "fid")


# Mistakes.


def test_models_that_give_no_features(vit, tmp_path):
    mae = ViTMAEModel(ViTMAEConfig(**TRANSFORMER, image_size=32, patch_size=8))
    with pytest.raises(UserError, match="mae has no pooled output: ViTMAEModel gives no single vector for an image"):
        load_extractor(save(tmp_path / "mae", mae, VIT_PROCESSOR))
    bert = BertModel(BertConfig(**TRANSFORMER, vocab_size=20))
    with pytest.raises(UserError, match="bert does not work: BertModel given an image"):
        load_extractor(save(tmp_path / "bert", bert, VIT_PROCESSOR))
    with pytest.raises(UserError, match="plain has no image processor, .* beside the model, as preprocessor_config"):
        load_extractor(save(tmp_path / "plain", ViTModel(vit_config())))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty cannot be loaded: .*config\.json"):
        load_extractor(str(tmp_path / "empty"))
    wrong = save(tmp_path / "wrong", ViTModel(vit_config()), VIT_PROCESSOR | {"size": {"height": 20, "width": 20}})
    with pytest.raises(UserError, match=r"wrong does not work: ViTModel given an image .*20\*20"):
        load_extractor(wrong)


def test_code_from_a_repository_is_never_run(vit, tmp_path, monkeypatch):
    """Left to itself, transformers asks the person at the terminal, who may say yes."""
    monkeypatch.setattr("builtins.input", lambda prompt="": "y")
    ran = tmp_path / "ran"
    folder = Path(save(tmp_path / "foreign", ViTModel.from_pretrained(vit), VIT_PROCESSOR))
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    for file, key in (("config.json", "AutoConfig"), ("preprocessor_config.json", "AutoImageProcessor")):
        config = json.loads((folder / file).read_text())
        foreign = {"model_type": "foreign"} if key == "AutoConfig" else {"image_processor_type": "Foreign"}
        (folder / file).write_text(json.dumps(config | foreign | {"auto_map": {key: "code.Foreign"}}))
        with pytest.raises(UserError, match="foreign "):
            load_extractor(str(folder))
        assert not ran.exists()
        (folder / file).write_text(json.dumps(config))


def test_nan_weights_are_seen_at_once(vit, tmp_path):
    model = ViTModel.from_pretrained(vit)
    model.layernorm.bias.data[3] = float("nan")
    with pytest.raises(UserError, match="broken gives NaN or infinite features"):
        load_extractor(save(tmp_path / "broken", model, VIT_PROCESSOR))


def test_weights_that_lack_or_are_pickled(vit, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "lacking"
    save(folder, ViTModel.from_pretrained(vit), VIT_PROCESSOR)
    tensors = load_file(folder / "model.safetensors")
    removed = tensors.pop("layernorm.bias")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights of ViTModel, such as 'layernorm.bias', or has them in"):
        load_extractor(str(folder))
    save_file(tensors | {"layernorm.bias": removed[:3]}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights of ViTModel, such as 'layernorm.bias', or has them in"):
        load_extractor(str(folder))
    (folder / "model.safetensors").unlink()
    torch.save(tensors | {"layernorm.bias": removed}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="lacking cannot be loaded: .*safetensors"):
        load_extractor(str(folder))


def test_models_that_are_not_there(vit):
    with pytest.raises(UserError, match=r"nobody/nothing cannot be loaded: .*`hf download nobody/nothing` fetches"):
        load_extractor("nobody/nothing")
    for name in ("./absent", "/absent/model", "a/b/c"):
        with pytest.raises(UserError, match="is neither a folder nor a name on the Hub: give inception"):
            load_extractor(name)
    with pytest.raises(UserError, match=r"weights x\.pth are given for the extractor .*vit: they are for inception"):
        load_extractor(vit, weights="x.pth")
    with pytest.raises(UserError, match="batch_size is 0, but must be at least 1"):
        load_extractor(vit, batch_size=0)


def test_nothing_is_said_and_the_verbosity_stays(vit, capfd):
    before = transformers.logging.get_verbosity()
    load_extractor(vit)
    out, err = capfd.readouterr()
    assert "MISSING" not in out + err and "warning" not in (out + err).lower()
    assert transformers.logging.get_verbosity() == before
    assert os.environ["HF_HUB_OFFLINE"] == "1"  # nothing above went to the Hub
