"""Checks of the class labels that a network is given."""

import torch


def check_presence(class_labels: torch.Tensor | None, num_class_embeds: int | None) -> None:
    """Raises `ValueError` if labels are missing, or given to a network without classes."""
    if (class_labels is None) != (num_class_embeds is None):
        expected = "expects class_labels" if class_labels is None else "knows no classes: leave class_labels out"
        raise ValueError(f"num_class_embeds is {num_class_embeds}, so this network {expected}.")


def check_classes(class_labels: torch.Tensor | None, num_class_embeds: int | None, batch_size: int) -> None:
    """Raises `ValueError` if labels are missing, unexpected, too few or too many, or out of range."""
    check_presence(class_labels, num_class_embeds)
    if class_labels is None or num_class_embeds is None:
        return
    if class_labels.shape != (batch_size,):
        raise ValueError(f"class_labels has shape {tuple(class_labels.shape)}, but must be ({batch_size},).")
    # Looking at values on a GPU would wait for it.
    if class_labels.device.type == "cpu" and not ((class_labels >= 0) & (class_labels < num_class_embeds)).all():
        raise ValueError(f"class_labels is {class_labels.tolist()}, but must be from 0 to {num_class_embeds - 1}.")
