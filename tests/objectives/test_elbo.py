"""The evidence lower bound against closed forms: likelihoods, KL, bounds, health; values, gradients and tails."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence

from hfgen.objectives import elbo

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
MEANS = [-7.0, -1.0, -0.2, 0.00391, 0.9, 1.0, 30.0]


def draws(*shape, seed=0, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def all_levels(*parameters):
    """One image per level, and its parameters: both of one pixel."""
    values = torch.tensor(parameters, dtype=torch.float64)
    return LEVELS.view(256, 1, 1, 1), values.view(1, -1, 1, 1).expand(256, -1, 1, 1)


def eight_bit(*shape, seed=0):
    return LEVELS[torch.randint(256, shape, generator=torch.Generator().manual_seed(seed))]


@pytest.mark.parametrize("log_scale", [-12.0, -7.0, -4.0, -1.0, 3.0, 12.0])
@pytest.mark.parametrize("mean", MEANS)
def test_the_levels_of_a_pixel_have_the_probability_1(mean, log_scale):
    single = elbo.log_likelihood(*all_levels(mean, log_scale), "logistic")
    mixture = all_levels(0.3, -2.0, mean, 0.1, log_scale, -3.0)  # two components
    double = elbo.log_likelihood(*mixture, "logistic_mixture", num_mixtures=2)
    images, means = all_levels(mean)
    gaussian = elbo.discretised_gaussian(images, means, math.exp(2 * max(log_scale, -7.0)))
    for found in (single, double, gaussian):
        assert found.isfinite().all()
        assert found.exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_the_bernoulli_is_that_of_torch():
    images, logits = draws(3, 2, 4, 4).sign(), draws(3, 2, 4, 4, seed=1, scale=3)
    expected = Bernoulli(logits=logits).log_prob((images + 1) / 2).sum((1, 2, 3))
    torch.testing.assert_close(elbo.log_likelihood(images, logits, "bernoulli"), expected)


def test_the_gaussian_is_that_of_torch():
    images, means = draws(3, 2, 4, 5), draws(3, 2, 4, 5, seed=1)
    expected = Normal(means, 0.3**0.5).log_prob(images).sum((1, 2, 3))
    for variance in (0.3, torch.tensor(0.3, dtype=torch.float64)):
        torch.testing.assert_close(elbo.log_likelihood(images, means, "gaussian", variance), expected)
    each = elbo.pixel_log_likelihood(images, means, "gaussian", 0.3)
    assert each.shape == (3, 4, 5)
    torch.testing.assert_close(each.sum((1, 2)), expected)


def test_the_logistic_is_a_difference_of_sigmoids():
    images, parameters = eight_bit(4, 3, 5, 5), draws(4, 6, 5, 5, seed=1, scale=0.4)
    parameters[:, 3:] -= 2
    means, scales = parameters[:, :3], parameters[:, 3:].exp()
    upper, lower = (((images + step / 255 - means) / scales).sigmoid() for step in (1, -1))
    upper, lower = torch.where(images > 0.999, 1, upper), torch.where(images < -0.999, 0, lower)
    expected = (upper - lower).log().sum((1, 2, 3))
    found = elbo.log_likelihood(images, parameters, "logistic")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # the difference loses digits


def test_the_discretised_gaussian_is_an_integral_and_its_density_times_the_bin_where_that_is_small():
    images, means = eight_bit(4, 3, 5, 5), draws(4, 3, 5, 5, seed=1, scale=0.3)
    upper, lower = (Normal(means, 0.2).cdf(images + step / 255) for step in (1, -1))
    upper, lower = torch.where(images > 0.999, 1, upper), torch.where(images < -0.999, 0, lower)
    expected = (upper - lower).clamp_min(1e-300).log()
    usual = expected > -25  # beyond, the difference has lost its digits
    found = elbo.gaussian_bins(images, means, torch.tensor(0.2, dtype=torch.float64))
    torch.testing.assert_close(found[usual], expected[usual], rtol=1e-4, atol=1e-6)
    inside = images.clamp(-0.9, 0.9)
    density = elbo.log_likelihood(inside, means, "gaussian", 0.04)
    integral = elbo.discretised_gaussian(inside, means, 0.04)
    bits = elbo.bits_per_dim(-density, 75) + elbo.LEVEL_BITS
    torch.testing.assert_close(elbo.bits_per_dim(-integral, 75), bits, rtol=0, atol=2e-3)


def test_the_mixture_of_one_grey_component_is_a_logistic_and_equal_components_are_one():
    images, parameters = eight_bit(4, 1, 5, 5), draws(4, 2, 5, 5, seed=1)
    expected = elbo.log_likelihood(images, parameters, "logistic")
    one = torch.cat([draws(4, 1, 5, 5, seed=2), parameters], dim=1)
    torch.testing.assert_close(elbo.log_likelihood(images, one, "logistic_mixture", num_mixtures=1), expected)
    three = torch.cat([draws(4, 3, 5, 5, seed=2), parameters.repeat_interleave(3, dim=1)], dim=1)
    torch.testing.assert_close(elbo.log_likelihood(images, three, "logistic_mixture", num_mixtures=3), expected)


def naive_mixture(images, parameters, components):
    """The mixture with one loop per index, as the layout of its parameters is written."""
    batch, channels = images.shape[:2]
    logits, rest = parameters[:, :components], parameters[:, components:]
    offset = channels * components
    total = torch.zeros(batch, *images.shape[2:], dtype=torch.float64)
    for k in range(components):
        joint = logits.softmax(1)[:, k]
        pair = 0
        for c in range(channels):
            mean, log_scale = rest[:, c * components + k], rest[:, offset + c * components + k]
            for before in range(c):
                mean = mean + rest[:, 2 * offset + pair * components + k].tanh() * images[:, before]
                pair += 1
            one = torch.stack([mean, log_scale], dim=1)
            joint = joint * elbo.pixel_log_likelihood(images[:, c : c + 1], one, "logistic").exp()
        total += joint
    return total.log().sum((1, 2))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_mixture_has_its_layout(channels):
    components = 3
    depth = components * (1 + 2 * channels + channels * (channels - 1) // 2)
    images, parameters = eight_bit(4, channels, 3, 3), draws(4, depth, 3, 3, seed=1, scale=0.5)
    found = elbo.log_likelihood(images, parameters, "logistic_mixture", num_mixtures=components)
    torch.testing.assert_close(found, naive_mixture(images, parameters, components))


def test_the_mixture_of_two_channels_is_a_joint_distribution():
    """All 65536 colours of a pixel: the second channel depends on the first, and their sum is still 1."""
    colours = torch.cartesian_prod(LEVELS, LEVELS).view(-1, 2, 1, 1)
    parameters = draws(1, 2 * 6, 1, 1, scale=0.7).expand(len(colours), -1, 1, 1)
    found = elbo.log_likelihood(colours, parameters, "logistic_mixture", num_mixtures=2)
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-9)
    alone = found.view(256, 256).logsumexp(1).exp()  # the first channel's own probabilities
    assert not torch.allclose(found.view(256, 256).exp() / alone[:, None], found.exp().view(256, 256).sum(0))


@pytest.mark.parametrize(
    ("likelihood", "channels", "depth"),
    [("gaussian", 2, 2), ("bernoulli", 2, 2), ("logistic", 2, 4), ("logistic_mixture", 3, 20)],
)
def test_gradients(likelihood, channels, depth):
    images = eight_bit(2, channels, 2, 2)
    images[0, 0, 0, 0], images[1, 0, 0, 0] = -1, 1
    images = images.sign() if likelihood == "bernoulli" else images
    parameters = draws(2, depth, 2, 2, seed=1, scale=0.5).requires_grad_()
    variance = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)

    def function(parameters, variance):
        return elbo.log_likelihood(images, parameters, likelihood, variance, num_mixtures=2)

    assert torch.autograd.gradcheck(function, (parameters, variance))


def test_gradients_of_the_rest():
    images = eight_bit(2, 2, 2, 2)
    means, variance = draws(2, 2, 2, 2, scale=0.5).requires_grad_(), torch.tensor(0.3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: elbo.discretised_gaussian(images, *x), (means, variance))
    assert torch.autograd.gradcheck(elbo.log_normal_cdf, draws(20, seed=4, scale=10).requires_grad_())
    posterior = [draws(3, 4, seed=seed).requires_grad_() for seed in range(3)]
    for function in (elbo.log_normal, elbo.mutual_information, lambda z, mean, logvar: elbo.gaussian_kl(mean, logvar)):
        assert torch.autograd.gradcheck(function, posterior)
    assert torch.autograd.gradcheck(elbo.importance_bound, posterior)


@pytest.mark.parametrize("scale", [-100.0, -7.0, -3.0, 0.0, 10.0, 200.0])
@pytest.mark.parametrize("mean", [-1e4, -50.0, -1.0, 0.1, 1.0, 50.0, 1e4])
def test_tails_are_finite_and_lead_back(mean, scale):
    """float32, far from the mean and with tiny and huge scales: finite, and pulling the mean towards the image."""
    images = LEVELS.float().view(256, 1, 1, 1)
    for likelihood, values in {
        "logistic": (mean, scale),
        "logistic_mixture": (0.0, -60.0, mean, mean / 2, scale, scale),
        "bernoulli": (mean,),
        "gaussian": (mean,),
    }.items():
        pixels = images.sign() if likelihood == "bernoulli" else images
        parameters = torch.tensor(values).view(1, -1, 1, 1).repeat(256, 1, 1, 1).requires_grad_()
        variance = math.exp(2 * min(max(scale, -7), 3))
        found = elbo.log_likelihood(pixels, parameters, likelihood, variance, num_mixtures=2)
        (gradient,) = torch.autograd.grad(found.sum(), parameters)
        assert found.isfinite().all() and gradient.isfinite().all()
        if likelihood == "logistic" and abs(mean) > 1 and scale < 10:
            inner = images.abs().flatten() < 0.99
            assert (gradient[inner, 0] * -math.copysign(1, mean) > 0).all()
    means = torch.full((256, 1, 1, 1), mean, requires_grad=True)
    found = elbo.discretised_gaussian(images, means, variance)
    (gradient,) = torch.autograd.grad(found.sum(), means)
    assert found.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("scale", [-5.0, -3.0, -1.0, 1.0])
def test_float32_is_enough(scale):
    images, means = LEVELS.view(256, 1, 1, 1), draws(256, 1, 1, 1, scale=0.7)
    parameters = torch.cat([means, torch.full_like(means, scale)], dim=1)
    exact = elbo.log_likelihood(images, parameters, "logistic")
    found = elbo.log_likelihood(images.float(), parameters.float(), "logistic")
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    exact = elbo.discretised_gaussian(images, means, math.exp(2 * scale))
    found = elbo.discretised_gaussian(images.float(), means.float(), math.exp(2 * scale))
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=5e-4)


def test_the_gaussian_cdf_is_that_of_torch():
    x = torch.linspace(-30, 10, 400, dtype=torch.float64)
    torch.testing.assert_close(elbo.log_normal_cdf(x), torch.special.log_ndtr(x))
    torch.testing.assert_close(
        elbo.log_normal_cdf(x.float()).double(), torch.special.log_ndtr(x), rtol=1e-5, atol=1e-7
    )


def test_autocast_changes_nothing():
    images, parameters = eight_bit(2, 3, 4, 4).float(), draws(2, 50, 4, 4).float()
    latents, means, logvars = (draws(8, 5, seed=seed).float() for seed in range(3))

    def everything():
        return [
            elbo.log_likelihood(images, parameters, "logistic_mixture"),
            elbo.log_likelihood(images, parameters[:, :3], "gaussian", 0.1),
            elbo.discretised_gaussian(images, parameters[:, :3], 0.1),
            elbo.gaussian_kl(means, logvars),
            elbo.mutual_information(latents, means, logvars),
        ]

    expected = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = everything()
    assert all(map(torch.equal, found, expected))
    halves = elbo.log_likelihood(images, parameters.bfloat16(), "logistic_mixture")
    assert halves.dtype == elbo.gaussian_kl(means.bfloat16(), logvars.bfloat16()).dtype == torch.float32


def test_the_optimal_variance_is_optimal():
    images, means = draws(8, 1, 6, 6), draws(8, 1, 6, 6, seed=1).requires_grad_()
    error = (images - means).square().sum()
    variance = elbo.optimal_variance(error, images.numel())
    assert not variance.requires_grad
    assert variance.sqrt().item() == pytest.approx(error.item() ** 0.5 / images.numel() ** 0.5 + math.exp(-6))
    best = elbo.log_likelihood(images, means, "gaussian", variance).sum()
    for factor in (0.9, 1.1):
        assert elbo.log_likelihood(images, means, "gaussian", variance * factor).sum() < best
    perfect = elbo.optimal_variance(torch.zeros(()), 10)
    assert perfect.item() == pytest.approx(math.exp(-12))
    same = images.float()
    assert elbo.log_likelihood(same, same, "gaussian", perfect).isfinite().all()


def test_the_kl_is_that_of_torch_and_of_samples():
    mean, logvar = draws(5, 3, 2, 2), draws(5, 3, 2, 2, seed=1)
    posterior = Normal(mean, (logvar / 2).exp())
    expected = kl_divergence(posterior, Normal(torch.zeros_like(mean), torch.ones_like(mean)))
    torch.testing.assert_close(elbo.gaussian_kl(mean, logvar), expected)
    samples = mean + posterior.stddev * draws(20_000, *mean.shape, seed=2)
    log_ratio = torch.stack([elbo.log_normal(z, mean, logvar) - elbo.log_normal(z) for z in samples[:2000]])
    torch.testing.assert_close(log_ratio.mean(0), expected.flatten(1).sum(1), rtol=0.05, atol=0.2)
    torch.testing.assert_close(
        elbo.log_normal(samples[0], mean, logvar), posterior.log_prob(samples[0]).sum((1, 2, 3))
    )
    tiny = elbo.gaussian_kl(torch.zeros(1), torch.tensor([1e-3]))  # where exp(x) - 1 - x has lost its digits
    assert tiny.item() == pytest.approx(1e-6 / 4, rel=0.05)


def test_free_bits_average_over_images_first():
    kl = torch.tensor([[0.0, 0.02], [0.2, 0.04]])  # means 0.1 and 0.03
    assert elbo.free_bits(kl, 0.0).item() == pytest.approx(0.13)
    assert elbo.free_bits(kl, 0.05).item() == pytest.approx(0.15)
    kl = kl.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(elbo.free_bits(kl, 0.05), kl)
    torch.testing.assert_close(gradient, torch.tensor([[0.5, 0.0], [0.5, 0.0]]))
    assert elbo.free_bits(torch.ones(2, 3, 4, 4), 0.5).item() == pytest.approx(48)


def test_kl_weight():
    assert [elbo.kl_weight(fraction, 0.1) for fraction in (0.0, 0.05, 0.1, 1.0)] == [0.0, 0.5, 1.0, 1.0]
    assert elbo.kl_weight(0.0, 0.0) == 1.0
    with pytest.raises(ValueError, match="warmup is 1.5, but is the part of the training"):
        elbo.kl_weight(0.0, 1.5)


def test_bits_per_dim():
    uniform = elbo.log_likelihood(*all_levels(0.0, 30.0), "logistic")[1:-1]  # but for the open edges
    assert torch.allclose(uniform.exp() * math.exp(30) * 510, torch.ones(()).double(), rtol=1e-3)
    assert elbo.bits_per_dim(784 * math.log(256), 784) == pytest.approx(8)
    flat = math.log(2)  # -log of the uniform density 1/2 on [-1, 1], which is 255 of 256 levels wide
    assert elbo.bits_per_dim(flat, 1) + elbo.LEVEL_BITS == pytest.approx(math.log2(255))
    assert elbo.bits_per_dim(torch.tensor([1.0, 2.0]), 1).shape == (2,)


class LinearVAE:
    """`z ~ N(0, I)`, `x = W z + b + sigma noise`: evidence and posterior are Gaussians in closed form.

    The columns of W are orthogonal, so that the posterior is diagonal, as VAEs have it.
    """

    variance, dims, shape = 0.3, 3, (1, 4, 4)

    def __init__(self):
        columns, _ = torch.linalg.qr(draws(16, self.dims))
        self.weight = columns * torch.tensor([2.0, 1.0, 0.3], dtype=torch.float64)
        self.bias = draws(16, seed=1)
        covariance = self.weight @ self.weight.T + self.variance * torch.eye(16, dtype=torch.float64)
        self.evidence = MultivariateNormal(self.bias, covariance)
        self.posterior_variance = 1 / (1 + self.weight.square().sum(0) / self.variance)

    def images(self, number):
        return (
            self.evidence.mean + draws(number, 16, seed=2) @ torch.linalg.cholesky(self.evidence.covariance_matrix).T
        )

    def posterior(self, x):
        mean = (x - self.bias) @ self.weight * self.posterior_variance / self.variance
        return mean, self.posterior_variance.log().expand_as(mean)

    def log_likelihood(self, x, z):
        shape = (-1, *self.shape)
        means = (z @ self.weight.T + self.bias).view(shape)
        return elbo.log_likelihood(x.view(shape), means, "gaussian", self.variance)

    def log_weights(self, x, mean, logvar, samples):
        noise = draws(samples, *mean.shape, seed=3)
        latents = [mean + (logvar / 2).exp() * one for one in noise]
        likelihoods = torch.stack([self.log_likelihood(x, z) for z in latents])
        priors = torch.stack([elbo.log_normal(z) for z in latents])
        return likelihoods, priors, torch.stack([elbo.log_normal(z, mean, logvar) for z in latents])


def test_with_the_exact_posterior_the_elbo_is_the_evidence():
    vae = LinearVAE()
    x = vae.images(6)
    evidence = vae.evidence.log_prob(x)
    mean, logvar = vae.posterior(x)
    # E_q log p(x|z) in closed form: that of the mean, less what the spread of the posterior costs.
    spread = (logvar.exp() * vae.weight.square().sum(0)).sum(1) / (2 * vae.variance)
    bound = vae.log_likelihood(x, mean) - spread - elbo.gaussian_kl(mean, logvar).sum(1)
    torch.testing.assert_close(bound, evidence)
    # log p(x|z) p(z) / q(z|x) is then the evidence for any z: one sample is exact, and so are many.
    for samples in (1, 5):
        torch.testing.assert_close(elbo.importance_bound(*vae.log_weights(x, mean, logvar, samples)), evidence)


def test_with_another_posterior_the_bounds_are_in_order_and_converge():
    vae = LinearVAE()
    x = vae.images(40)
    evidence = vae.evidence.log_prob(x)
    mean, logvar = vae.posterior(x)
    mean, logvar = mean + 0.2, logvar + 0.5
    likelihoods, priors, posteriors = vae.log_weights(x, mean, logvar, 4000)
    spread = (logvar.exp() * vae.weight.square().sum(0)).sum(1) / (2 * vae.variance)
    bound = vae.log_likelihood(x, mean) - spread - elbo.gaussian_kl(mean, logvar).sum(1)
    torch.testing.assert_close((likelihoods + priors - posteriors).mean(0), bound, rtol=0, atol=0.15)
    few = [elbo.importance_bound(*(part[start : start + 10] for part in (likelihoods, priors, posteriors)))
           for start in range(0, 4000, 10)]  # fmt: skip
    few = torch.stack(few).mean(0)  # the expectation of the bound of 10 samples
    many = elbo.importance_bound(likelihoods, priors, posteriors)
    assert (bound < few).all() and (few < evidence).all()
    torch.testing.assert_close(many, evidence, rtol=0, atol=0.1)
    assert (bound < evidence - 0.1).all()
    # What the ELBO lacks is the KL of the posteriors.
    exact = [Normal(part, (log / 2).exp()) for part, log in ((mean, logvar), vae.posterior(x))]
    torch.testing.assert_close(bound + kl_divergence(*exact).sum(1), evidence)


def test_active_units():
    means = torch.cat([draws(1000, 3), draws(1000, 2, scale=0.05), torch.full((1000, 1), 3.0)], dim=1).float()
    assert elbo.active_units(means).item() == 3
    assert elbo.active_units(means[:, :, None, None], threshold=1e-4).item() == 5
    assert elbo.active_units(means[:1]).item() == 0


def test_mutual_information():
    """`mu ~ N(0, a)` and `z ~ N(mu, s)`: the information of a Gaussian channel, `log(1 + a / s) / 2` per latent."""
    number, dims, signal, noise = 2000, 2, 1.0, 0.3
    means = draws(number, dims, scale=signal**0.5)
    logvars = torch.full_like(means, math.log(noise))
    latents = means + noise**0.5 * draws(number, dims, seed=1)
    found = elbo.mutual_information(latents, means, logvars)
    assert found.item() == pytest.approx(dims * 0.5 * math.log(1 + signal / noise), abs=0.1)
    # A posterior that is the same for all images says nothing; one that tells them apart says log N.
    nothing = elbo.mutual_information(latents, torch.zeros_like(means), torch.zeros_like(means))
    assert nothing.item() == pytest.approx(0, abs=1e-9)
    everything = elbo.mutual_information(means[:100].float(), means[:100].float(), torch.full((100, dims), -30.0))
    assert everything.item() == pytest.approx(math.log(100), rel=1e-5)


def test_mutual_information_in_pieces(monkeypatch):
    latents, means, logvars = (draws(11, 2, 3, 3, seed=seed) for seed in range(3))
    expected = elbo.mutual_information(latents, means, logvars)
    monkeypatch.setattr(elbo, "PAIRWISE_ELEMENTS", 4 * 11 * 18)
    torch.testing.assert_close(elbo.mutual_information(latents, means, logvars), expected)


def test_mistakes():
    images, parameters = torch.zeros(2, 3, 4, 4), torch.zeros(2, 6, 4, 4)
    with pytest.raises(ValueError, match="likelihood is 'mse', but must be one of gaussian, bernoulli, logistic"):
        elbo.log_likelihood(images, images, "mse")
    with pytest.raises(ValueError, match="variance is missing, but likelihood is 'gaussian'"):
        elbo.log_likelihood(images, images, "gaussian")
    with pytest.raises(ValueError, match=r"parameters has shape \(2, 6, 4, 4\), but must be \(2, 50, 4, 4\)"):
        elbo.log_likelihood(images, parameters, "logistic_mixture")
    with pytest.raises(ValueError, match=r"parameters has shape \(1, 6, 4, 4\), but must be \(2, 6, 4, 4\)"):
        elbo.log_likelihood(images, parameters[:1], "logistic")  # would broadcast


def test_images_that_do_not_fit_the_likelihood():
    grey = eight_bit(2, 1, 8, 8).float()
    for likelihood in ("gaussian", "logistic", "logistic_mixture"):
        elbo.check_images(grey, likelihood)
    elbo.check_images(grey.sign(), "bernoulli")
    elbo.check_images(grey * 0.7, "gaussian")
    with pytest.raises(ValueError, match="likelihood is 'bernoulli', but images has values between -1 and 1"):
        elbo.check_images(grey, "bernoulli")
    with pytest.raises(ValueError, match="knows 256 levels, but images has values between two of them"):
        elbo.check_images(grey * 0.7, "logistic_mixture")
    for wrong in (grey * 128, torch.full_like(grey, math.nan)):
        with pytest.raises(ValueError, match=r"images has values from .*, but must be in \[-1, 1\]"):
            elbo.check_images(wrong, "gaussian")
