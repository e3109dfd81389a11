"""The training loop, what it keeps, and one recipe per family.

Read in this order: `recipe.py` (what a family says), `loop.py` (what is done with it), then `schedules.py`, `ema.py`,
`random.py`, `checkpoint.py`, `monitor.py`, `grids.py`, each a page.
"""
