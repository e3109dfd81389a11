"""The training loop: a step, what is due around steps, and what is kept.

Read in this order: `recipe.py` (what a family says), `engine.py` (a step), `run.py` (what is due between the steps),
then `schedules.py`, `ema.py`, `random.py`, `metrics.py`, `checkpoint.py`, `publisher.py`, each a page or two. A run
comes from `options.py` and `api.py`.
"""
