"""The denoising objective of diffusion models (DDPM, https://huggingface.co/papers/2006.11239).

Notation: `x_t = sqrt(a) x_0 + sqrt(1 - a) eps` with `a` = `alphas_cumprod[t]`, and `snr = a / (1 - a)`.
"""

import torch

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def add_noise(clean: torch.Tensor, noise: torch.Tensor, alpha_cumprod: torch.Tensor) -> torch.Tensor:
    """Returns the noisy image `x_t` (DDPM, equation 4).

    Args:
        clean (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1].
        noise (`torch.Tensor` of shape `(B, C, H, W)`): Standard normal noise.
        alpha_cumprod (`torch.Tensor` of shape `(B,)`): The schedule at each image's timestep, in [0, 1].
    """
    a = alpha_cumprod.view(-1, 1, 1, 1)
    return a.sqrt() * clean + (1 - a).sqrt() * noise


def target(
    prediction_type: str, clean: torch.Tensor, noise: torch.Tensor, alpha_cumprod: torch.Tensor
) -> torch.Tensor:
    """Returns what the network has to predict.

    Args:
        prediction_type (`str`): `"epsilon"` (the noise), `"sample"` (the clean image) or `"v_prediction"`
            (`sqrt(a) eps - sqrt(1 - a) x_0`, https://huggingface.co/papers/2202.00512, appendix D).
        clean, noise (`torch.Tensor` of shape `(B, C, H, W)`): As in [`add_noise`].
        alpha_cumprod (`torch.Tensor` of shape `(B,)`): The schedule at each image's timestep.

    Raises:
        ValueError: For an unknown prediction type.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return clean
    if prediction_type == "v_prediction":
        a = alpha_cumprod.view(-1, 1, 1, 1)
        return a.sqrt() * noise - (1 - a).sqrt() * clean
    raise ValueError(f"prediction_type is {prediction_type!r}, but must be one of {PREDICTION_TYPES}.")


def clean(
    prediction_type: str, prediction: torch.Tensor, noisy: torch.Tensor, alpha_cumprod: torch.Tensor
) -> torch.Tensor:
    """Returns the clean image that a prediction stands for: the inverse of [`target`].

    Args:
        prediction_type (`str`): One of `PREDICTION_TYPES`.
        prediction, noisy (`torch.Tensor` of shape `(B, C, H, W)`): What the network says of `x_t`, and that.
        alpha_cumprod (`torch.Tensor` of shape `(B,)`): The schedule at each image's timestep.

    Returns:
        `torch.Tensor` of shape `(B, C, H, W)`; where there is no signal left, the noise does not tell the image, and
        it is huge.

    Raises:
        ValueError: For an unknown prediction type.
    """
    a = alpha_cumprod.view(-1, 1, 1, 1)
    if prediction_type == "epsilon":
        return (noisy - (1 - a).sqrt() * prediction) / a.clamp_min(1e-12).sqrt()
    if prediction_type == "sample":
        return prediction
    if prediction_type == "v_prediction":
        return a.sqrt() * noisy - (1 - a).sqrt() * prediction
    raise ValueError(f"prediction_type is {prediction_type!r}, but must be one of {PREDICTION_TYPES}.")


def loss_weight(prediction_type: str, alpha_cumprod: torch.Tensor, snr_gamma: float | None = None) -> torch.Tensor:
    """Returns the weight of each image's squared error.

    Without `snr_gamma` every weight is 1. With it the weight is min-SNR-γ (https://huggingface.co/papers/2303.09556),
    `min(snr, γ)` on the error of the clean image, whichever of the three the network predicts.

    Args:
        prediction_type (`str`): One of `PREDICTION_TYPES`.
        alpha_cumprod (`torch.Tensor` of shape `(B,)`): The schedule at each image's timestep.
        snr_gamma (`float`, *optional*): γ; 5 in the paper.

    Returns:
        `torch.Tensor` of shape `(B,)`.
    """
    if snr_gamma is None:
        return torch.ones_like(alpha_cumprod)
    # Written with a and 1 - a rather than with snr, which is 0 or infinite at the ends of some schedules.
    a, b = alpha_cumprod, 1 - alpha_cumprod
    if prediction_type == "epsilon":  # min(snr, γ) / snr; x_0 and eps errors differ by the factor snr
        return torch.where(a > 0, (snr_gamma * b / a.clamp_min(1e-20)).clamp_max(1), torch.ones_like(a))
    if prediction_type == "v_prediction":  # min(snr, γ) / (snr + 1)
        return torch.minimum(a, snr_gamma * b)
    return (a / b.clamp_min(1e-20)).clamp_max(snr_gamma)


def squared_error(prediction: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Returns the mean squared error of each image, in float32: shape `(B,)`."""
    return (prediction.float() - expected.float()).square().flatten(1).mean(1)


def noise_error(prediction_type: str, error: torch.Tensor, alpha_cumprod: torch.Tensor) -> torch.Tensor:
    """Turns a squared error of any prediction type into the squared error of the noise, to compare between types."""
    a, b = alpha_cumprod, 1 - alpha_cumprod
    if prediction_type == "epsilon":
        return error
    return error * a if prediction_type == "v_prediction" else error * a / b.clamp_min(1e-20)
