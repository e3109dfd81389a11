"""The VQ-VAE: how its codebook learns, sizes, saving and loading, mistakes."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hfgen.models import vq_vae
from hfgen.models.vae_base import mean_image
from hfgen.models.vq_vae import VQVAE

SHAPE = {
    "latent_channels": 4,
    "num_vq_embeddings": 8,
    "block_out_channels": (8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "num_mixtures": 2,
}


def make(size=8, channels=1, classes=None, **options):
    torch.manual_seed(0)
    return VQVAE(sample_size=size, in_channels=channels, num_class_embeds=classes, **SHAPE | options).eval()


def images(count=3, size=8, channels=1):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(2)) * 2 - 1


def clusters(count, spread=0.05, number=8, seed=0, side=2):
    """Latents `(count, 4, side, side)` around `number` directions, and these directions."""
    random = torch.Generator().manual_seed(seed)
    corners = torch.tensor([[a, b, c, d] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1) for d in (-1, 1)]) / 2
    centres = corners[:number].float()
    choice = torch.randint(number, (count * side**2,), generator=random)
    vectors = F.normalize(centres[choice] + spread * torch.randn(len(choice), 4, generator=random))
    return vectors.view(count, side, side, 4).permute(0, 3, 1, 2), centres


def step(vae, latents, **options):
    vae.observe(latents, vae.quantize(latents).indices)
    vae.update_codebook(**options)


# ---- networks


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize(("size", "channels", "halvings"), [(8, 1, 2), (28, 1, 2), (32, 3, 3), (45, 4, 2), (9, 2, 1)])
def test_sizes_channels_and_classes(size, channels, halvings, classes):
    vae = make(size, channels, classes, block_out_channels=(8,) * halvings)
    labels = torch.tensor([0, 2, 1]) if classes else None
    latents = vae.encode(images(3, size, channels), labels).latents
    side = -(-size // 2**halvings)
    assert vae.latent_shape == (4, side, side)
    assert latents.shape == (3, *vae.latent_shape)
    torch.testing.assert_close(latents.norm(dim=1), torch.ones(3, side, side))
    quantized = vae.quantize(latents)
    assert quantized.indices.shape == (3, side, side) and quantized.commitment.shape == (3,)
    decoded = vae.decode(quantized.latents, labels, force_not_quantize=True)
    assert decoded.sample.shape == decoded.parameters.shape == (3, channels, size, size)
    assert latents.dtype == quantized.latents.dtype == quantized.commitment.dtype == torch.float32
    assert decoded.sample.dtype == decoded.parameters.dtype == torch.float32
    (decoded.parameters.square().sum() + quantized.commitment.sum()).backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())


def test_the_default_makes_49_latents_of_28_pixels():
    vae = VQVAE()
    assert vae.latent_shape == (16, 7, 7) and vae.codes.shape == (256, 16)
    assert vae(images(1, 28)).sample.shape == (1, 1, 28, 28)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli", "logistic", "logistic_mixture"])
def test_likelihoods(likelihood):
    vae = make(channels=3, likelihood=likelihood)
    decoded = vae(images(channels=3))
    count = {"gaussian": 3, "bernoulli": 3, "logistic": 6, "logistic_mixture": 20}[likelihood]
    assert decoded.parameters.shape == (3, count, 8, 8)
    assert torch.equal(decoded.sample, mean_image(decoded.parameters, likelihood, 3, 2))
    assert vae.variance.dtype == torch.float32 and vae.variance == 1
    sample, parameters = vae(images(channels=3), return_dict=False)
    assert torch.equal(sample, decoded.sample) and torch.equal(parameters, decoded.parameters)


def test_images_do_not_depend_on_the_batch():
    vae = make(12, classes=3)
    labels = torch.tensor([0, 1, 2])
    together = vae(images(size=12), labels).sample
    commitment = vae.quantize(vae.encode(images(size=12), labels).latents).commitment
    for row in range(3):
        one = slice(row, row + 1)
        torch.testing.assert_close(vae(images(size=12)[one], labels[one]).sample, together[one], rtol=1e-4, atol=1e-5)
        alone = vae.quantize(vae.encode(images(size=12)[one], labels[one]).latents)
        torch.testing.assert_close(alone.commitment, commitment[one], rtol=1e-4, atol=1e-5)


def test_classes_matter_to_encoder_and_decoder():
    vae = make(classes=2)
    labels = torch.tensor([0, 1])
    first, second = vae.encode(images(1).repeat(2, 1, 1, 1), labels).latents
    assert (first - second).abs().max() > 1e-3
    first, second = vae.decode(torch.randn(1, 4, 2, 2).repeat(2, 1, 1, 1), labels).sample
    assert (first - second).abs().max() > 1e-3


def test_bfloat16_autocast():
    vae = make(16)
    exact = vae.encode(images(size=16)).latents
    with torch.autocast("cpu", dtype=torch.bfloat16):
        latents = vae.encode(images(size=16)).latents
        quantized = vae.quantize(exact)
        decoded = vae.decode(latents)
        vae.observe(exact, quantized.indices)
    assert torch.equal(quantized.indices, vae.quantize(exact).indices)
    other = make(16)
    other.observe(exact, quantized.indices)
    assert torch.equal(vae.step_sums, other.step_sums)
    for value in (latents, quantized.latents, quantized.commitment, decoded.parameters, decoded.sample):
        assert value.dtype == torch.float32
    assert F.cosine_similarity(latents, exact).min() > 0.98


# ---- quantisation


def test_the_nearest_code_is_that_of_the_smallest_angle():
    vae = make()
    latents = 3 * torch.randn(5, 4, 2, 2)
    quantized = vae.quantize(latents)
    for image in range(5):
        for i in range(2):
            for j in range(2):
                cosines = F.cosine_similarity(latents[image, :, i, j][None], vae.codebook)
                nearest = cosines.argmax()
                assert quantized.indices[image, i, j] == nearest
                torch.testing.assert_close(quantized.latents[image, :, i, j], vae.codes[nearest])
    unit = F.normalize(latents)
    torch.testing.assert_close(quantized.commitment, (unit - vae.lookup(quantized.indices)).square().sum((1, 2, 3)))
    # Codes are used at length 1 whatever the buffer holds: a moving average of codebooks is shorter.
    vae.codebook.mul_(0.3)
    assert torch.equal(vae.quantize(latents).indices, quantized.indices)
    torch.testing.assert_close(vae.lookup(quantized.indices), quantized.latents)


def test_gradients_go_straight_through():
    vae = make()
    latents = torch.randn(2, 4, 2, 2, requires_grad=True)
    quantized = vae.quantize(latents).latents
    codes = quantized.detach().requires_grad_()
    weights = torch.randn(2, 1, 8, 8)
    (through,) = torch.autograd.grad(
        (vae.decode(quantized, force_not_quantize=True).parameters * weights).sum(), latents
    )
    (at_codes,) = torch.autograd.grad((vae.decode(codes, force_not_quantize=True).parameters * weights).sum(), codes)
    assert through.abs().max() > 1e-3
    assert torch.equal(through, at_codes)
    again = vae.decode(vae.quantize(latents).latents)  # quantised once more, to the same
    torch.testing.assert_close(again.parameters, vae.decode(codes, force_not_quantize=True).parameters)


def test_commitment_pulls_latents_to_their_codes():
    vae = make()
    latents = F.normalize(torch.randn(2, 4, 2, 2)).requires_grad_()
    before = vae.quantize(latents)
    (gradient,) = torch.autograd.grad(before.commitment.sum(), latents)
    after = vae.quantize(latents - 0.01 * gradient)
    assert (after.commitment < before.commitment).all()


def test_decoding_quantises_unless_told_not_to():
    vae = make()
    latents = torch.randn(2, 4, 2, 2)
    quantized = vae.quantize(latents)
    decoded = vae.decode(latents).parameters
    torch.testing.assert_close(decoded, vae.decode(quantized.latents, force_not_quantize=True).parameters)
    torch.testing.assert_close(decoded, vae.decode(vae.lookup(quantized.indices)).parameters)
    assert (decoded - vae.decode(latents, force_not_quantize=True).parameters).abs().max() > 1e-3


# ---- the codebook


def test_updates_are_bias_corrected_moving_averages():
    """After t updates a code points to `sum_i decay^(t - i) * share_i * mean_i` of the latents that chose it."""
    vae = make(restart_threshold=0.0)
    counts, sums, weight = torch.zeros(8), torch.zeros(8, 4), 0.0
    for seed in range(4):
        latents = torch.randn(6, 4, 2, 2, generator=torch.Generator().manual_seed(seed))
        unused, old = counts == 0, vae.codes
        indices = vae.quantize(latents).indices.flatten()
        vectors = F.normalize(latents).permute(0, 2, 3, 1).reshape(-1, 4)
        weight = 0.9 * weight + 0.1
        counts, sums = 0.9 * counts, 0.9 * sums
        for index, vector in zip(indices.tolist(), vectors, strict=True):
            counts[index] += 0.1 / 24
            sums[index] += 0.1 * vector / 24
        step(vae, latents, decay=0.9)
        torch.testing.assert_close(vae.ema_weight, torch.tensor(weight))
        torch.testing.assert_close(vae.ema_counts, counts)
        torch.testing.assert_close(vae.ema_sums, sums)
        used = counts > 0
        torch.testing.assert_close(vae.codes[used], F.normalize(sums[used]), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(vae.codes[~used], old[~used])  # no latents yet: it stays
        assert used.sum() >= (~unused).sum()
    assert (vae.ema_counts.sum() / vae.ema_weight).item() == pytest.approx(1)
    by_default, given = make(decay=0.7), make()
    step(by_default, latents)
    step(given, latents, decay=0.7)
    assert torch.equal(by_default.ema_sums, given.ema_sums)


def test_two_half_batches_are_one_whole():
    whole, halves, mean = make(), make(), make()
    latents, _ = clusters(12)
    for _ in range(3):
        indices = whole.quantize(latents).indices
        whole.observe(latents, indices)
        for half in (slice(0, 6), slice(6, 12)):
            halves.observe(latents[half], indices[half])
        # Two processes with half a batch each, and their buffers averaged.
        processes = [copy.deepcopy(mean) for _ in range(2)]
        for process, half in zip(processes, (slice(0, 6), slice(6, 12)), strict=True):
            process.observe(latents[half], indices[half])
        for buffer, *others in zip(mean.buffers(), *(process.buffers() for process in processes), strict=True):
            buffer.copy_(torch.stack(others).mean(0))
        for vae in (whole, halves, mean):
            vae.update_codebook()
        for vae in (halves, mean):
            for name, buffer in whole.named_buffers():
                torch.testing.assert_close(vae.get_buffer(name), buffer, msg=name)
    assert whole.step_counts.sum() == 0 and whole.step_sums.abs().sum() == 0


def test_observing_changes_nothing_else():
    vae = make()
    before = {name: buffer.clone() for name, buffer in vae.state_dict().items()}
    latents = vae.encode(images()).latents
    vae.observe(latents, vae.quantize(latents).indices)
    assert all(torch.equal(buffer, before[name]) for name, buffer in vae.state_dict().items())
    assert vae.step_counts.sum() == 12


def test_the_codebook_grows_out_of_the_data():
    """Eight clusters, and a first codebook of which one code is nearest to all: soon all codes are of use."""
    vae = make(num_vq_embeddings=16)
    latents, centres = clusters(64)
    vae.codebook.copy_(-centres.sum(0) + 0.01 * vae.codebook)
    vae.codebook[3] = centres.sum(0)
    dead = []
    for seed in range(50):
        step(vae, clusters(64, seed=seed)[0])
        dead.append(vae.dead_codes.item())
    assert dead[0] == 15 and max(dead[10:]) == 0
    cosines = vae.codes @ F.normalize(centres).T
    assert cosines.amax(0).min() > 0.98  # no cluster without a code
    assert cosines.amax(1).min() > 0.98  # no code without a cluster
    assert vae.perplexity > 12
    assert vae.quantize(latents).commitment.mean() < 0.05


def test_dead_codes_revive_as_a_function_of_buffers_alone():
    vae = make()
    latents, _ = clusters(64)
    for seed in range(12):
        step(vae, clusters(64, seed=seed)[0])
    vae.ema_counts[2] = vae.ema_sums[2] = 0  # one dies
    vae.codebook[2] = -latents.mean((0, 2, 3))
    indices = vae.quantize(latents).indices
    assert not (indices == 2).any()
    others = [copy.deepcopy(vae) for _ in range(2)]
    states = []
    for number, other in enumerate(others):
        torch.manual_seed(number)  # no global random numbers
        other.observe(latents, indices)
        other.update_codebook()
        states.append(other.state_dict())
        assert other.dead_codes == 1
        assert (other.quantize(latents).indices == 2).any()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    # The one that it took from was the farthest from its latents in sum; together they have what it had.
    kept = make(restart_threshold=0.0)
    kept.load_state_dict(vae.state_dict())
    kept.observe(latents, indices)
    kept.update_codebook()
    donor = (kept.ema_counts - others[0].ema_counts).argmax()
    vectors, numbers = latents.permute(0, 2, 3, 1).reshape(-1, 4), indices.flatten()
    spread = torch.stack([(vectors[numbers == k] - vae.codes[k]).square().sum() for k in range(8)])
    assert donor == spread.argmax()
    torch.testing.assert_close(others[0].ema_counts[donor] + others[0].ema_counts[2], kept.ema_counts[donor])
    axis, code = vae.split_axes[donor], vae.codes[donor]
    side = vectors @ (axis - axis @ code * code) > 0
    for code, chosen in ((donor, ~side), (2, side)):
        mean = vectors[(numbers == donor) & chosen].mean(0)
        torch.testing.assert_close(others[0].codes[code], F.normalize(mean, dim=0), rtol=1e-3, atol=1e-3)


def test_equal_latents_need_one_code():
    vae = make()
    for _ in range(5):
        step(vae, torch.ones(4, 4, 2, 2))
    assert vae.dead_codes == 7
    assert vae.perplexity.item() == pytest.approx(1)


def test_perplexity_of_a_known_histogram():
    vae = make()
    assert vae.perplexity == 1  # nothing seen
    vae.ema_counts.fill_(0.1)
    assert vae.perplexity.item() == pytest.approx(8)
    vae.ema_counts.copy_(torch.tensor([2.0, 2, 4, 0, 0, 0, 0, 0]))
    assert vae.perplexity.item() == pytest.approx(2**1.5)


def test_it_learns():
    """Squares at four places: reconstruction, with several codes in use."""
    vae = make(16, latent_channels=8, num_vq_embeddings=16).train()
    torch.manual_seed(0)
    data = -torch.ones(64, 1, 16, 16)
    for image, (row, column) in zip(data, torch.randint(0, 11, (64, 2)), strict=True):
        image[:, row : row + 5, column : column + 5] = 1
    optimizer = torch.optim.AdamW(vae.parameters(), lr=5e-3)
    errors = []
    for _ in range(80):
        latents = vae.encode(data).latents
        quantized = vae.quantize(latents)
        error = F.mse_loss(vae.decode(quantized.latents, force_not_quantize=True).parameters, data)
        loss = error + 0.01 * quantized.commitment.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        vae.observe(latents, quantized.indices)
        vae.update_codebook()
        errors.append(error.item())
    assert errors[-1] < 0.3 * data.var()
    assert errors[-1] < 0.3 * errors[0]
    assert vae.perplexity > 3


@pytest.mark.parametrize("classes", [None, 3])
def test_save_and_load(classes, tmp_path):
    vae = make(classes=classes)
    vae.variance.fill_(0.25)
    labels = torch.tensor([0, 2, 1]) if classes else None
    for _ in range(3):
        step(vae, vae.encode(images(), labels).latents)
    vae.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").exists() and not list(tmp_path.glob("*.bin"))
    loaded = VQVAE.from_pretrained(tmp_path)
    assert not loaded.training
    assert dict(loaded.named_buffers()).keys() == dict(vae.named_buffers()).keys()
    for name, buffer in vae.named_buffers():
        assert torch.equal(loaded.get_buffer(name), buffer), name
    assert torch.equal(loaded(images(), labels).sample, vae(images(), labels).sample)
    for network in (vae, loaded):  # training goes on as if nothing had happened
        step(network, network.encode(images(), labels).latents)
    assert all(torch.equal(loaded.get_buffer(name), buffer) for name, buffer in vae.named_buffers())
    half = VQVAE.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert half(images(), labels).sample.dtype == torch.float32


def test_mistakes():
    vae, conditional = make(), make(classes=2)
    for shape in ((2, 3, 8, 8), (2, 1, 8, 9), (1, 8, 8)):
        with pytest.raises(ValueError, match=r"sample has shape .*, but must be \(B, 1, 8, 8\)"):
            vae.encode(torch.zeros(shape))
    for shape in ((2, 4), (2, 3, 2, 2), (2, 4, 2, 3)):
        for call in (vae.decode, vae.quantize):
            with pytest.raises(ValueError, match=r"latents has shape .*, but must be \(B, 4, 2, 2\)"):
                call(torch.zeros(shape))
    with pytest.raises(ValueError, match="knows no classes: leave class_labels out"):
        vae.encode(images(2), torch.tensor([0, 1]))
    for call, argument in ((conditional.encode, images(2)), (conditional.decode, torch.zeros(2, 4, 2, 2))):
        with pytest.raises(ValueError, match="expects class_labels"):
            call(argument)
        with pytest.raises(ValueError, match=r"class_labels has shape \(1,\), but must be \(2,\)"):
            call(argument, torch.tensor([0]))
        with pytest.raises(ValueError, match=r"class_labels is \[0, 2\], but must be from 0 to 1"):
            call(argument, torch.tensor([0, 2]))
    for size in (7, 257):
        with pytest.raises(ValueError, match=f"sample_size is {size}, but .* 8 to 256 pixels"):
            make(size)
    with pytest.raises(ValueError, match="likelihood is 'normal', but must be one of gaussian, bernoulli, logistic"):
        make(likelihood="normal")


def test_residual_blocks_start_as_nothing():
    torch.manual_seed(0)
    block = vq_vae.ResidualBlock(8, 2)
    nn.init.zeros_(block.layers[-1].bias)
    x = torch.randn(2, 8, 3, 3)
    assert torch.equal(block(x), x)
