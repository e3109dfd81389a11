"""Networks: one self-contained file per architecture."""
