"""Checks of the features that metrics are given."""

import torch

BLOCK = 1024  # isfinite makes copies


def check_features(features: torch.Tensor, name: str, least: int = 2) -> torch.Tensor:
    """Returns the features as a tensor without gradient, or says what is wrong with them.

    Args:
        features (`torch.Tensor` of shape `(N, D)`): One row per image; a numpy array will do.
        name (`str`): What to call them in a message.
        least (`int`, *optional*, defaults to 2): Rows that the metric needs.

    Raises:
        ValueError: For features that are not of two dimensions or not floating point, for fewer rows than `least`, and
            for NaN or infinite values.
    """
    features = torch.as_tensor(features).detach()
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f"{name} has shape {tuple(features.shape)}, but must be (N, D): a row of features per image.")
    if not features.is_floating_point():
        raise ValueError(f"{name} is of {features.dtype}, but must be floating point: give what an extractor returns.")
    if len(features) < least:
        raise ValueError(f"{name} has {len(features)} rows, but this metric needs at least {least}: use more images.")
    finite = torch.cat([rows.isfinite().all(1) for rows in features.split(BLOCK)])
    bad = len(features) - int(finite.sum())
    if bad:
        raise ValueError(
            f"{name} has NaN or infinite values in {bad} of {len(features)} rows: look at the images that they come "
            "from and at the precision of the extractor."
        )
    return features
