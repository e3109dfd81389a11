"""Evaluation: what trained models are worth, in numbers."""
