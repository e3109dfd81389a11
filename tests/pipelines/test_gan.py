"""GANPipeline: sampling, walks, projection and directions, with tiny real models whose answers are known."""

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from PIL import Image

from hfgen.pipelines.gan import AT_ONCE, GANPipeline, slerp
from hfgen.sampling.sampler import image_generators


@dataclass
class Output(BaseOutput):
    sample: torch.Tensor


class LinearGAN(ModelMixin, ConfigMixin):
    """Pixels are a linear function of the latent, plus one image per class."""

    @register_to_config
    def __init__(self, latent_dim=8, num_class_embeds=None, sample_size=6, out_channels=3):
        super().__init__()
        size = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
        self.shape = (out_channels, *size)
        self.linear = torch.nn.Linear(latent_dim, math.prod(self.shape))
        self.classes = torch.nn.Embedding(num_class_embeds, math.prod(self.shape)) if num_class_embeds else None
        self.dropout = torch.nn.Dropout(0.5)  # to see that the pipeline turns it off
        torch.nn.init.normal_(self.linear.weight, std=0.08)  # pixels stay in [-1, 1], where all is linear
        torch.nn.init.normal_(self.linear.bias, std=0.05)

    def forward(self, latents, class_labels=None):
        assert (class_labels is None) == (self.classes is None)
        pixels = self.linear(latents)
        if self.classes is not None:
            pixels = pixels + 0.05 * self.classes(class_labels)
        return Output(sample=self.dropout(pixels).unflatten(1, self.shape))

    def latent_weight(self):
        return self.linear.weight


class StyleGAN(ModelMixin, ConfigMixin):
    """A mapping to w, and two layers that each add their part of the image."""

    @register_to_config
    def __init__(self, latent_dim=8, style_dim=5, num_class_embeds=None, sample_size=6, out_channels=1):
        super().__init__()
        self.shape = (out_channels, sample_size, sample_size)
        self.mapping = torch.nn.Linear(latent_dim, style_dim)
        self.classes = torch.nn.Embedding(num_class_embeds, style_dim) if num_class_embeds else None
        self.layers = torch.nn.ModuleList([torch.nn.Linear(style_dim, math.prod(self.shape)) for _ in range(2)])
        for layer in self.layers:
            torch.nn.init.normal_(layer.weight, std=0.03)
            torch.nn.init.normal_(layer.bias, std=0.03)
        self.register_buffer("w_avg", torch.randn(max(1, num_class_embeds or 0), style_dim))

    def map(self, latents, class_labels=None, truncation=1.0):
        assert (class_labels is None) == (self.classes is None)
        w = self.mapping(latents).tanh()
        if self.classes is not None:
            w = w + self.classes(class_labels)
        mean = self.w_avg[class_labels] if class_labels is not None else self.w_avg.expand(len(w), -1)
        return mean.lerp(w, truncation)

    def synthesize(self, w):
        w = w if w.ndim == 3 else w[:, None].expand(-1, 2, -1)
        return sum(layer(w[:, i]) for i, layer in enumerate(self.layers)).unflatten(1, self.shape)

    def forward(self, latents, class_labels=None):
        return Output(sample=self.synthesize(self.map(latents, class_labels)))

    def latent_weight(self):
        return torch.cat([layer.weight for layer in self.layers])


NAMES = {0: "cat", 1: "dog", 2: "eel"}


def make(kind=LinearGAN, classes=None, **config):
    torch.manual_seed(0)
    model = kind(num_class_embeds=classes, **config).eval()
    pipe = GANPipeline(model, NAMES if classes == 3 else None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def latents(count, width=8, seed=5):
    return torch.randn(count, width, generator=seeded(seed))


both = pytest.mark.parametrize("kind", [LinearGAN, StyleGAN])
any_classes = pytest.mark.parametrize("classes", [None, 3])


@both
@any_classes
@pytest.mark.parametrize("channels", [1, 3])
def test_output_types(kind, classes, channels):
    pipe = make(kind, classes, out_channels=channels)
    tensors = pipe(2, generator=seeded(), output_type="pt").images
    arrays = pipe(2, generator=seeded(), output_type="np").images
    images = pipe(2, generator=seeded()).images
    assert tensors.shape == (2, channels, 6, 6)
    assert tensors.dtype == torch.float32 and not tensors.requires_grad
    assert tensors.min() >= 0 and tensors.max() <= 1 and tensors.std() > 0.01
    assert np.array_equal(arrays, tensors.permute(0, 2, 3, 1).numpy())
    assert [image.mode for image in images] == [{1: "L", 3: "RGB"}[channels]] * 2
    assert np.abs(np.asarray(images[1]).reshape(6, 6, channels) / 255 - arrays[1]).max() < 0.003
    (as_tuple,) = pipe(2, generator=seeded(), output_type="np", return_dict=False)
    assert np.array_equal(as_tuple, arrays)


def test_images_stay_in_range():
    pipe = make()
    pipe.model.linear.weight.data *= 100
    images = pipe(8, generator=seeded(), output_type="pt").images
    assert images.min() == 0 and images.max() == 1


@both
@any_classes
def test_an_image_depends_on_its_own_seed_alone(kind, classes):
    pipe = make(kind, classes)

    def sample(indices):
        generators = tuple(image_generators(7, indices))
        return pipe(len(indices), generator=generators, output_type="pt").images

    together = sample([0, 1, 2, 3])
    torch.testing.assert_close(torch.cat([sample([3]), sample([1, 2])]), together[[3, 1, 2]], rtol=0, atol=1e-6)
    alone = pipe(generator=image_generators(7, [0]), output_type="pt").images
    torch.testing.assert_close(alone, together[:1], rtol=0, atol=1e-6)
    assert not torch.allclose(together[0], together[1])


@both
def test_latents_are_drawn_first_then_classes(kind):
    pipe, generator = make(kind, 3), seeded(3)
    drawn = torch.randn(5, 8, generator=generator)
    labels = pipe.class_numbers(None, 5, generator)
    expected = pipe(class_labels=labels, latents=drawn, output_type="pt").images
    assert torch.equal(pipe(5, generator=seeded(3), output_type="pt").images, expected)
    assert torch.equal(expected, (pipe.model(drawn, class_labels=labels).sample / 2 + 0.5).clamp(0, 1))
    shares = pipe.class_numbers(None, 3000, seeded()).bincount(minlength=3) / 3000
    assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.03)


def test_without_a_generator_images_differ():
    pipe = make(LinearGAN, 3)
    assert not torch.equal(pipe(output_type="pt").images, pipe(output_type="pt").images)


def test_labels_by_number_name_and_tensor():
    pipe, given = make(LinearGAN, 3), latents(2)

    def sample(labels):
        return pipe(class_labels=labels, latents=given, output_type="pt").images

    by_number = sample([1, 2])
    assert torch.equal(by_number, sample(["dog", "eel"]))
    assert torch.equal(by_number, sample(torch.tensor([1, 2])))
    assert torch.equal(by_number, sample(np.array([1, 2])))
    assert not torch.equal(by_number, sample([2, 1]))
    for one in (2, "eel", np.int64(2), torch.tensor(2)):
        assert torch.equal(sample(one), sample([2, 2]))
    assert len(pipe(class_labels=["cat", "eel", "cat"]).images) == 3
    assert make(LinearGAN, 2).class_names == ["0", "1"]
    assert make(LinearGAN).class_names == []


@any_classes
def test_truncation(classes):
    pipe, given = make(StyleGAN, classes), latents(3)
    labels = None if classes is None else [0, 1, 2]
    means = pipe.model.w_avg if classes else pipe.model.w_avg.expand(3, -1)

    def sample(truncation):
        return pipe(3, labels, given, truncation, output_type="pt").images

    mean = (pipe.model.synthesize(means) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(sample(0.0), mean)
    assert torch.equal(sample(1.0), pipe(3, labels, given, output_type="pt").images)
    # The network after w is linear, so halfway in w is halfway in pixels.
    torch.testing.assert_close(sample(0.5), (sample(0.0) + sample(1.0)) / 2)


def test_slerp_turns_at_constant_speed():
    start, end = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 3.0])
    fractions = torch.linspace(0, 1, 7)
    points = slerp(start.expand(7, 3), end.expand(7, 3), fractions)
    angles = fractions * math.pi / 2
    closed_form = 3 * torch.stack([angles.cos(), torch.zeros(7), angles.sin()], dim=1)
    torch.testing.assert_close(points, closed_form, rtol=0, atol=1e-6)

    start, end = latents(1, 64, 1).expand(9, 64), latents(1, 64, 2).expand(9, 64)
    points = slerp(start, end, torch.linspace(0, 1, 9)).double()
    assert torch.equal(points[0], start[0].double()) and torch.equal(points[-1], end[0].double())
    norms = torch.lerp(start[0].norm(), end[0].norm(), torch.linspace(0, 1, 9)).double()
    torch.testing.assert_close(points.norm(dim=1), norms, rtol=1e-6, atol=0)
    units = points / points.norm(dim=1, keepdim=True)
    turns = (units[1:] * units[:-1]).sum(1).acos()
    torch.testing.assert_close(turns, turns[:1].expand(8), rtol=1e-5, atol=0)
    whole = (units[0] @ units[-1]).acos().item()
    assert turns.sum().item() == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("end", [[2.0, 0.0], [1.0, 1e-6], [-1.0, 0.0], [0.0, 0.0]])
def test_slerp_where_there_is_no_plane_goes_straight(end):
    start, end = torch.tensor([1.0, 0.0]), torch.tensor(end)
    for fraction in (0.0, 0.25, 1.0):
        point = slerp(start, end, torch.tensor(fraction))
        torch.testing.assert_close(point, (1 - fraction) * start + fraction * end)


@both
@any_classes
@pytest.mark.parametrize("space", ["z", "w"])
def test_walks_meet_their_points(kind, classes, space):
    if space == "w" and kind is LinearGAN:
        return  # see test_mistakes
    pipe, keys = make(kind, classes), latents(3)
    labels = None if classes is None else [0, 2, 1]
    truncation = 0.7 if kind is StyleGAN else 1.0

    def walk(**options):
        arguments = {"frames": 4, "truncation": truncation, "space": space, "output_type": "pt"}
        return pipe.interpolate(keys, class_labels=labels, **arguments, **options)

    at_keys = pipe(3, labels, keys, truncation, output_type="pt").images
    line, loop = walk(), walk(loop=True)
    assert len(line) == 2 * 4 + 1 and len(loop) == 3 * 4
    torch.testing.assert_close(line[::4], at_keys, rtol=0, atol=1e-6)
    torch.testing.assert_close(loop[::4], at_keys, rtol=0, atol=1e-6)
    torch.testing.assert_close(loop[:9], line, rtol=0, atol=1e-6)
    if space == "w":  # everything after w is linear: no jump anywhere, also between the last frame and the first
        jumps = (loop.roll(-1, 0) - loop).flatten(1).norm(dim=1).view(3, 4)
        torch.testing.assert_close(jumps, jumps[:, :1].expand(3, 4), rtol=1e-3, atol=1e-6)


def test_walks_through_z_take_the_class_of_the_nearest_point():
    pipe, keys = make(LinearGAN, 3), latents(2)
    frames = pipe.interpolate(keys, 4, class_labels=[0, 1], loop=True, output_type="pt")
    fractions = torch.tensor([0.0, 0.25, 0.5, 0.75])
    there = slerp(keys[:1].expand(4, 8), keys[1:].expand(4, 8), fractions)
    back = slerp(keys[1:].expand(4, 8), keys[:1].expand(4, 8), fractions)
    expected = pipe(8, [0, 0, 1, 1, 1, 1, 0, 0], torch.cat([there, back]), output_type="pt").images
    torch.testing.assert_close(frames, expected)


@both
def test_walks_repeat_with_a_generator(kind):
    pipe = make(kind, 3)
    one = pipe.interpolate(frames=3, generator=seeded(), num_points=4, output_type="np")
    assert one.shape == (10, 6, 6, {LinearGAN: 3, StyleGAN: 1}[kind])
    assert np.array_equal(one, pipe.interpolate(frames=3, generator=seeded(), num_points=4, output_type="np"))
    several = [pipe.interpolate(frames=2, generator=[seeded(1), seeded(2)], output_type="pt") for _ in "ab"]
    assert torch.equal(*several)
    generators = [seeded(1), seeded(2)]
    keys = torch.cat([torch.randn(1, 8, generator=generator) for generator in generators])
    labels = pipe.class_numbers(None, 2, generators)
    assert labels[0] != labels[1]  # the first generator draws the class of all
    assert torch.equal(several[0], pipe.interpolate(keys, 2, class_labels=int(labels[0]), output_type="pt"))
    assert isinstance(pipe.interpolate(frames=1)[0], Image.Image)


def test_long_walks_are_made_in_parts():
    pipe = make()
    frames = pipe.interpolate(latents(2), frames=AT_ONCE + 3, output_type="pt")
    assert len(frames) == AT_ONCE + 4
    torch.testing.assert_close(frames[-1:], pipe(latents=latents(2)[1:], output_type="pt").images)


@pytest.mark.parametrize("channels", [1, 3])
def test_gif(tmp_path, channels):
    frames = make(out_channels=channels).interpolate(frames=5, generator=seeded())
    path = tmp_path / "walk.gif"
    path.write_text("old")
    GANPipeline.save_gif(frames[:1], path, scale=4)
    with Image.open(path) as gif:
        assert gif.size == (24, 24), "enlarged"
    GANPipeline.save_gif(frames, path, fps=20)
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"], gif.info["loop"]) == (6, (6, 6), 50, 0)
        gif.seek(5)
        read = np.asarray(gif.convert(frames[5].mode)).astype(int)
    assert np.abs(read - np.asarray(frames[5])).max() <= 2
    assert [file.name for file in tmp_path.iterdir()] == ["walk.gif"]


def test_a_gif_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "walk.gif"
    path.write_text("old")

    def half(self, target, **options):
        target.write_text("half a file")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="disk full"):
        GANPipeline.save_gif([Image.new("L", (2, 2))], path)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_strip():
    frames = make().interpolate(frames=3, generator=seeded())
    strip = GANPipeline.make_strip(frames)
    assert strip.size == (24, 6) and strip.mode == "RGB"
    assert np.array_equal(np.asarray(strip), np.concatenate([np.asarray(frame) for frame in frames], axis=1))


def state(model):
    return {
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "gradients": [parameter.grad for parameter in model.parameters()],
        "trained": [parameter.requires_grad for parameter in model.parameters()],
        "modes": [module.training for module in model.modules()],
    }


@any_classes
def test_project_finds_the_latents_of_a_linear_model(classes):
    pipe, true = make(LinearGAN, classes), latents(2)
    pipe.model.train()
    pipe.model.linear.eval()  # mixed modes and flags must come back as they were
    pipe.model.linear.bias.requires_grad_(False)
    before = state(pipe.model)
    labels = None if classes is None else ["eel", "cat"]
    images = pipe(2, labels, true, output_type="pt").images
    found = pipe.project(images, labels, steps=300, prior_weight=0.0, generator=seeded(), output_type="pt")
    torch.testing.assert_close(found.latents, true, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.images, images, rtol=0, atol=1e-3)
    assert found.losses.shape == (2,) and found.losses.max() < 1e-7
    assert not found.latents.requires_grad
    after = state(pipe.model)
    assert all(map(torch.equal, before.pop("values").values(), after.pop("values").values()))
    assert before == after


@both
def test_project_without_classes_starts_from_the_nearest(kind):
    pipe = make(kind, 3)
    middle = {"latents": torch.zeros(3, 8), "class_labels": [0, 1, 2], "output_type": "pt"}
    images = pipe(**middle, truncation=0.0).images if kind is StyleGAN else pipe(**middle).images
    options = {"steps": 1, "learning_rate": 1e-9, "generator": seeded()}
    found = pipe.project(images[[2, 0]], restarts=1, **options)
    assert found.class_labels.tolist() == [2, 0]

    def distance(made):
        return (made - images[[2, 0]][:, None]).square().flatten(2).mean(2)

    assert pipe._nearest_classes(2, distance, 5).view(2, 5)[:, [0, 3]].tolist() == [[2, 2], [0, 0]]
    assert pipe.project(images[[2]], "cat", **options).class_labels.tolist() == [0]
    assert make(kind).project(images[:1], **options).class_labels is None


@both
def test_a_search_fills_holes_and_enlarges(kind):
    """Of a linear model, a part of an image tells all of it; what is seen stays to the bit."""
    pipe = make(kind)
    images = pipe(2, generator=seeded(), output_type="pt").images
    hole = torch.zeros(2, 1, 6, 6, dtype=torch.bool)
    hole[0, :, :3], hole[1, :, :, 4:] = True, True
    given = images.masked_fill(hole, 0.9)
    options = {"steps": 400, "generator": seeded(), "output_type": "pt"}
    filled = pipe.inpaint(given, hole, **options)
    assert torch.equal(filled[~hole.expand_as(filled)], images[~hole.expand_as(images)])
    assert (filled - images).abs().max() < 0.02
    found = pipe.project(given, mask=hole, **options)
    assert found.losses.max() < 1e-4 and (found.images - images).abs().max() < 0.02
    small = images.unflatten(-1, (3, 2)).unflatten(-3, (3, 2)).mean((-3, -1))
    large = pipe.super_resolve(small, **options)
    assert (large - images).abs().max() < 0.05
    torch.testing.assert_close(large.unflatten(-1, (3, 2)).unflatten(-3, (3, 2)).mean((-3, -1)), small)
    assert pipe.super_resolve(small[:1], steps=1)[0].size == (6, 6)
    with pytest.raises(ValueError, match="mask has shape"):
        pipe.inpaint(given, hole[:, :, :5])
    with pytest.raises(ValueError, match="mask covers a whole image"):
        pipe.inpaint(given, torch.ones(6, 6))
    with pytest.raises(ValueError, match="divided by a whole number"):
        pipe.super_resolve(images[..., :5, :5])


def test_a_hole_does_not_count_for_the_class():
    pipe = make(LinearGAN, 3)
    images = pipe(latents=torch.zeros(3, 8), class_labels=[0, 1, 2], output_type="pt").images
    hole = torch.zeros(6, 6)
    hole[:3] = 1
    given = torch.cat([images[1:2, :, :3], images[2:, :, 3:]], 2)  # of class 1 in the hole, of 2 outside
    found = pipe.project(given, mask=hole, steps=1, learning_rate=1e-9, restarts=1, generator=seeded())
    assert found.class_labels.tolist() == [2]


def test_groups_are_drawn_as_often_as_they_are_in_the_data(tmp_path):
    model = make(LinearGAN, 3).model
    pipe = GANPipeline(model, class_shares=[0.0, 0.25, 0.75])
    drawn = pipe.class_numbers(None, 4000, seeded())
    assert drawn.bincount(minlength=3)[0] == 0
    assert drawn.double().mul(4).mean().item() == pytest.approx(7, abs=0.15)  # 4 * (0.25 * 1 + 0.75 * 2)
    alone = [pipe.class_numbers(None, 1, image_generators(0, [number])).item() for number in range(8)]
    assert pipe.class_numbers(None, 8, image_generators(0, range(8))).tolist() == alone
    pipe.save_pretrained(tmp_path)
    loaded = GANPipeline.from_pretrained(tmp_path, model=model)
    assert loaded.config.class_shares == {"0": 0.0, "1": 0.25, "2": 0.75}


@both
def test_what_project_finds_can_be_shown_again(kind):
    pipe = make(kind)
    images = pipe(2, generator=seeded(), output_type="pt").images
    found = pipe.project(images, steps=20, generator=seeded(), output_type="pt")
    again = pipe(latents=found.latents, latents_space=found.space, output_type="pt").images
    torch.testing.assert_close(again, found.images)
    unchanged = pipe.edit(found.latents, pipe.directions()[0], [0.0], latents_space=found.space, output_type="pt")
    torch.testing.assert_close(unchanged[:, 0], found.images)


def test_project_by_default_recovers_the_image_and_repeats():
    pipe = make()
    images = pipe(3, generator=seeded(), output_type="pt").images
    found = [pipe.project(images, generator=seeded(), output_type="pt") for _ in "ab"]
    assert found[0].losses.max() < 1e-5
    assert torch.equal(found[0].latents, found[1].latents) and torch.equal(found[0].losses, found[1].losses)
    torch.testing.assert_close(found[0].losses, (found[0].images - images).square().mean(dim=(1, 2, 3)))
    with torch.no_grad():
        alone = pipe.project(images[2], steps=20, generator=image_generators(0, [2]))
    together = pipe.project(images, steps=20, generator=image_generators(0, range(3)))
    torch.testing.assert_close(alone.latents, together.latents[2:], rtol=0, atol=1e-4)
    assert isinstance(alone.images[0], Image.Image)


def test_project_returns_the_best_of_its_starts():
    pipe = make()
    images = pipe(2, generator=seeded(), output_type="pt").images
    found = pipe.project(images, steps=1, learning_rate=1e-9, restarts=5, generator=seeded(1))
    starts = torch.randn(2, 5, 8, generator=seeded(1))
    made = pipe(10, latents=starts.flatten(0, 1), output_type="pt").images.unflatten(0, (2, 5))
    losses, best = (made - images[:, None]).square().mean(dim=(2, 3, 4)).min(dim=1)
    torch.testing.assert_close(found.losses, losses)
    torch.testing.assert_close(found.latents, starts[torch.arange(2), best])


def test_the_learning_rate_of_project_falls_along_a_cosine():
    pipe = make(StyleGAN)
    black = torch.zeros(1, 1, 6, 6)
    found = pipe.project(black, steps=4, learning_rate=1e-4, restarts=1)
    moved = (found.latents - pipe.model.w_avg).abs()  # Adam moves by the learning rate while the slope is constant
    torch.testing.assert_close(moved, torch.full((1, 5), 2.5e-4), rtol=0.01, atol=0)


def test_the_prior_of_project_keeps_the_norm():
    pipe = make(latent_dim=32)
    pipe.model.linear.weight.data[:, 16:] = 0  # half of the latent is free
    far = torch.ones(1, 3, 6, 6)  # and only an unlikely latent would come near
    norms = [
        pipe.project(far, prior_weight=weight, generator=seeded()).latents.norm() / math.sqrt(32)
        for weight in (0.0, 10.0)
    ]
    assert abs(norms[1] - 1) < 0.02 < 0.2 < abs(norms[0] - 1)


@any_classes
def test_project_of_a_style_based_model_finds_w(classes):
    pipe = make(StyleGAN, classes)
    labels = None if classes is None else [1, 2]
    images = pipe(2, labels, latents(2), output_type="pt").images
    found = pipe.project(images, labels, generator=seeded(), output_type="pt")
    assert found.latents.shape == (2, 5)
    assert found.losses.max() < 1e-6
    w = pipe.model.map(latents(2), None if labels is None else torch.tensor(labels))
    torch.testing.assert_close(found.latents, w, rtol=0, atol=1e-2)
    # One start and hardly a step: it starts from the mean, whatever the generator.
    start = pipe.project(images, labels, steps=1, learning_rate=1e-6, restarts=1)
    means = pipe.model.w_avg.expand(2, -1) if labels is None else pipe.model.w_avg[labels]
    torch.testing.assert_close(start.latents, means, rtol=0, atol=1e-5)
    # What was found can be walked and edited.
    walk = pipe.interpolate(found.latents, 2, labels, latents_space="w", output_type="pt")
    torch.testing.assert_close(walk[[0, 2]], found.images)
    rows = pipe.edit(found.latents, pipe.directions(1)[0], [0, 1], labels, output_type="pt", latents_space="w")
    torch.testing.assert_close(rows[:, 0], found.images)
    mean = pipe.edit(found.latents, pipe.directions(1)[0], [0], labels, 0.0, "pt", latents_space="w")
    torch.testing.assert_close(mean[:, 0], pipe(2, labels, latents(2), 0.0, output_type="pt").images)


@pytest.mark.parametrize("channels", [1, 3])
def test_project_takes_images_of_every_kind(channels):
    pipe = make(out_channels=channels, sample_size=(4, 6))
    tensors = pipe(2, generator=seeded(), output_type="pt").images
    arrays = np.flip(tensors.permute(0, 2, 3, 1).numpy(), axis=2)  # negative strides

    def losses(images):
        return pipe.project(images, steps=3, generator=seeded()).losses

    assert torch.equal(losses(tensors), losses(np.flip(arrays, axis=2)))
    assert torch.equal(losses(tensors.flip(3)), losses(arrays))
    assert torch.equal(losses(tensors[0]), losses(tensors[:1]))
    assert torch.equal(losses(arrays[0]), losses(arrays[:1]))
    images = pipe.numpy_to_pil(tensors.permute(0, 2, 3, 1).numpy())
    assert images[0].size == (6, 4)
    torch.testing.assert_close(losses(images), losses(tensors), rtol=0.1, atol=1e-4)
    assert torch.equal(losses(images[0]), losses(images[:1]))


@both
def test_directions_are_the_right_singular_vectors(kind):
    pipe = make(kind)
    weight = pipe.model.latent_weight().detach().numpy()
    directions = pipe.directions(4)
    assert directions.dtype == torch.float32
    torch.testing.assert_close(directions @ directions.T, torch.eye(4), rtol=0, atol=1e-6)
    expected = np.linalg.svd(weight)[2][:4]
    assert np.abs(np.abs((directions.numpy() * expected).sum(1)) - 1).max() < 1e-5
    effects = np.linalg.norm(weight @ directions.numpy().T, axis=0)
    assert (np.diff(effects) < 0).all()
    assert (directions.gather(1, directions.abs().argmax(1, keepdim=True)) > 0).all()
    pipe.model.to(torch.bfloat16)
    assert pipe.directions(2).shape == (2, 8 if kind is LinearGAN else 5)


@both
@any_classes
def test_edit(kind, classes):
    pipe, given = make(kind, classes), latents(2)
    labels = None if classes is None else ["dog", "cat"]
    truncation = 0.6 if kind is StyleGAN else 1.0
    direction = pipe.directions(1)[0]
    rows = pipe.edit(given, direction, [-0.1, 0, 0.1], labels, truncation, "pt")
    assert rows.shape[:2] == (2, 3)
    torch.testing.assert_close(rows[:, 1], pipe(2, labels, given, truncation, output_type="pt").images)
    # Both models are linear in what is moved.
    weight = pipe.model.latent_weight().unflatten(0, (-1, *pipe.model.shape)).sum(0)
    change = (0.1 * weight @ direction / 2).expand(2, -1, -1, -1)
    torch.testing.assert_close(rows[:, 2] - rows[:, 1], change, rtol=0, atol=1e-5)
    torch.testing.assert_close(rows[:, 1] - rows[:, 0], change, rtol=0, atol=1e-5)
    arrays = pipe.edit(given, direction, [-0.1, 0, 0.1], labels, truncation, "np")
    assert np.array_equal(arrays, rows.permute(0, 1, 3, 4, 2).numpy())
    images = pipe.edit(given, direction, np.array([-0.1, 0, 0.1]), labels, truncation)
    assert [len(row) for row in images] == [3, 3]
    assert np.abs(np.asarray(images[1][0]).reshape(arrays[1, 0].shape) / 255 - arrays[1, 0]).max() < 0.003


@both
def test_half_precision(kind):
    pipe = make(kind, 3)
    full = pipe(2, generator=seeded(), output_type="pt").images
    pipe.to(torch.bfloat16)
    half = pipe(2, generator=seeded(), output_type="pt").images
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0, atol=0.02)
    arrays = pipe(2, generator=seeded(), output_type="np").images
    assert arrays.dtype == np.float32
    found = pipe.project(half, ["cat", "dog"], steps=5, generator=seeded())
    assert found.latents.dtype == found.losses.dtype == torch.float32
    assert len(pipe.interpolate(frames=2, generator=seeded())) == 3
    assert len(pipe.edit(latents(1), pipe.directions(1)[0], [1.0], 0)[0]) == 1


def test_training_mode_is_left_and_restored():
    pipe = make()
    expected = pipe(2, generator=seeded(), output_type="pt").images
    pipe.model.train()
    assert torch.equal(pipe(2, generator=seeded(), output_type="pt").images, expected)
    assert pipe.model.training and pipe.model.dropout.training
    with pytest.raises(ValueError, match="latents has"):
        pipe(2, latents=latents(3))
    assert pipe.model.training and pipe.model.dropout.training


def test_offloaded_models_are_brought_back_before_map():
    """accelerate's hooks surround `forward` alone; a style-based model is used without it."""

    class Recorder(ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            self.calls += 1
            return args, kwargs

    pipe, recorder = make(StyleGAN), Recorder()
    add_hook_to_module(pipe.model, recorder)
    pipe(1)
    assert recorder.calls == 1


@both
@any_classes
def test_save_and_load(kind, classes, tmp_path):
    pipe = make(kind, classes)
    before = pipe(2, generator=seeded(), output_type="pt").images
    pipe.save_pretrained(tmp_path)
    loaded = GANPipeline.from_pretrained(tmp_path, model=kind.from_pretrained(tmp_path / "model"))
    assert loaded.class_names == pipe.class_names == (list(NAMES.values()) if classes else [])
    torch.testing.assert_close(loaded(2, generator=seeded(), output_type="pt").images, before, rtol=0, atol=1e-6)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert {key: value for key, value in index.items() if not key.startswith("_diff")} == {
        "_class_name": ["pipeline_hfgen_gan", "GANPipeline"],
        "class_kind": None,
        "class_shares": None,
        "id2label": {"0": "cat", "1": "dog", "2": "eel"} if classes else None,
        "model": [kind.__module__, kind.__name__],
    }


def direction(width=8):
    return torch.eye(width)[0]


WHITE = torch.ones(1, 3, 6, 6)
# what the pipeline is made with, the method, its arguments, the beginning of the message
MISTAKES = [
    ({}, "__call__", {"output_type": "jpg"}, "output_type is 'jpg', but must be one of pil, np, pt, latent."),
    ({}, "__call__", {"batch_size": 0}, "batch_size is 0, but must be at least 1"),
    ({}, "__call__", {"truncation": 0.7}, "truncation is 0.7, but this model has no mean latent: leave it at 1."),
    ({}, "__call__", {"class_labels": 3}, "class_labels is 3, but this model knows no classes: leave it out"),
    ({"classes": 3}, "__call__", {"class_labels": [5]}, "class_labels has 5: use a number below 3"),
    ({"classes": 3}, "__call__", {"class_labels": [-1]}, "class_labels has -1"),
    ({"classes": 3}, "__call__", {"class_labels": [0.5]}, "class_labels has 0.5"),
    ({"classes": 3}, "__call__", {"class_labels": ["cow"]}, "class_labels has 'cow'"),
    (
        {"classes": 3},
        "__call__",
        {"class_labels": [0], "batch_size": 2},
        "class_labels has 1 entries for batch_size 2: give one per image.",
    ),
    ({}, "__call__", {"generator": image_generators(0, range(2))}, "generator has 2 entries for batch_size 1"),
    ({}, "__call__", {"latents": latents(2, 9)}, "latents has shape (2, 9), but must have (2, 8): one z per image"),
    ({}, "__call__", {"latents": latents(2), "batch_size": 3}, "latents has shape (2, 8), but must have (3, 8)"),
    ({}, "interpolate", {"output_type": "gif"}, "output_type is 'gif'"),
    ({}, "interpolate", {"truncation": 0.5}, "truncation is 0.5, but this model has no mean latent"),
    ({}, "interpolate", {"space": "w"}, "space is 'w', but this model is not style-based and has none: use 'z'."),
    ({}, "interpolate", {"latents_space": "w"}, "latents_space is 'w', but this model is not style-based"),
    ({}, "interpolate", {"space": "x"}, "space is 'x', but must be one of z, w."),
    (
        {"kind": StyleGAN},
        "interpolate",
        {"latents": latents(2, 5), "latents_space": "w", "space": "z"},
        "space is 'z', but latents_space is 'w', which cannot be mapped back",
    ),
    ({}, "interpolate", {"frames": 0}, "frames is 0, but must be at least 1"),
    ({}, "interpolate", {"num_points": 1}, "num_points is 1, but must be at least 2"),
    ({}, "interpolate", {"latents": latents(1)}, "len(latents) is 1, but must be at least 2"),
    ({}, "interpolate", {"latents": latents(2, 3)}, "latents has shape (2, 3), but must have (2, 8)"),
    ({}, "interpolate", {"generator": image_generators(0, [0])}, "generator has 1 entries for batch_size 2"),
    ({"classes": 3}, "interpolate", {"class_labels": [0, 1, 2]}, "class_labels has 3 entries for batch_size 2"),
    ({}, "project", {"image": WHITE, "output_type": "x"}, "output_type is 'x'"),
    ({}, "project", {"image": WHITE, "steps": 0}, "steps is 0, but must be at least 1"),
    ({}, "project", {"image": WHITE, "restarts": 0}, "restarts is 0, but must be at least 1"),
    (
        {},
        "project",
        {"image": Image.new("L", (6, 6))},
        "image is 6x6 in mode L, but the model makes 6x6 in mode RGB: resize or convert it first.",
    ),
    (
        {"sample_size": (4, 6)},
        "project",
        {"image": [Image.new("RGB", (6, 4)), Image.new("RGB", (7, 4))]},
        "image is 7x4 in mode RGB, but the model makes 6x4 in mode RGB",
    ),
    ({}, "project", {"image": "cat.png"}, "image is a str: give PIL images, an array or a tensor."),
    ({}, "project", {"image": []}, "image is a list: give PIL images"),
    ({}, "project", {"image": WHITE[:, :1]}, "image has shape (1, 1, 6, 6), but the model makes (3, 6, 6)"),
    ({}, "project", {"image": WHITE[0, 0]}, "image has shape (6, 6), but the model makes (3, 6, 6)"),
    ({}, "project", {"image": WHITE[:0]}, "image has no images: give at least one."),
    ({}, "project", {"image": WHITE.numpy()}, "image has shape (1, 3, 6, 6), but the model makes (6, 6, 3)"),
    ({}, "project", {"image": WHITE * 255}, "image goes from 255 to 255, but must be in [0, 1]: scale it."),
    ({}, "project", {"image": -WHITE}, "image goes from -1 to -1"),
    ({}, "project", {"image": WHITE * math.nan}, "image goes from nan to nan"),
    ({}, "directions", {"count": 0}, "count is 0, but this model has from 1 to 8 directions."),
    ({}, "directions", {"count": 9}, "count is 9, but this model has from 1 to 8 directions."),
    (
        {},
        "edit",
        {"latents": latents(2), "direction": direction(5), "strengths": [1]},
        "direction has shape (5,), but must have (8,), as a z.",
    ),
    (
        {"kind": StyleGAN},
        "edit",
        {"latents": latents(2), "direction": direction(8), "strengths": [1]},
        "direction has shape (8,), but must have (5,), as a w.",
    ),
    (
        {},
        "edit",
        {"latents": latents(2), "direction": direction(), "strengths": []},
        "len(strengths) is 0, but must be at least 1",
    ),
    (
        {"classes": 3},
        "edit",
        {"latents": latents(2), "direction": direction(), "strengths": [1]},
        "class_labels is missing",
    ),
    (
        {"kind": StyleGAN},
        "edit",
        {"latents": latents(2), "direction": direction(5), "strengths": [1], "latents_space": "w"},
        "latents has shape (2, 8), but must have (2, 5): one w per image.",
    ),
    ({}, "save_gif", {"frames": [], "path": "x.gif"}, "frames must be at least one PIL image"),
    ({}, "save_gif", {"frames": [Image.new("L", (2, 2))], "path": "x.gif", "fps": 0}, "fps is 0, but a GIF shows"),
    ({}, "save_gif", {"frames": [Image.new("L", (2, 2))], "path": "x.gif", "fps": 101}, "fps is 101"),
    ({}, "save_gif", {"frames": [Image.new("L", (2, 2))], "path": "x.gif", "scale": 0}, "scale is 0, but must be"),
    ({}, "make_strip", {"frames": WHITE}, "frames must be at least one PIL image"),
    (
        {},
        "make_strip",
        {"frames": [Image.new("L", (2, 2)), Image.new("RGB", (3, 2))]},
        "frames are 2x2 L and 3x2 RGB, but must all have one size and mode.",
    ),
]


@pytest.mark.parametrize(("made", "method", "arguments", "message"), MISTAKES)
def test_mistakes(made, method, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as caught:
        getattr(make(**made), method)(**arguments)
    assert str(caught.value).startswith(message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("classes", "names"), [(None, {0: "cat"}), (2, NAMES), (3, {0: "cat", 1: "dog", 3: "eel"})])
def test_names_must_fit_the_model(classes, names):
    with pytest.raises(ValueError, match="id2label has the keys .* but the model has . classes"):
        GANPipeline(LinearGAN(num_class_embeds=classes), names)
