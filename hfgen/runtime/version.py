"""The version of hfgen."""

__version__ = "0.1.0"
