"""Imported by every Python that finds it: waits are a hundredth as long, so that tests need not sit them out."""

import time

_sleep = time.sleep
time.sleep = lambda seconds: _sleep(seconds / 100)
