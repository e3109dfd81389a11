"""The families of generators, one folder each: options (no torch), recipe, card."""
