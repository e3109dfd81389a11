"""Limits of what one click of a visitor may cost."""

MOST_IMAGES = 64  # as many as `hfgen sample` makes at once
MOST_FRAMES = 32
MOST_SEARCH = 200  # steps of the search for what fills a hole
MOST_SEED = 2**53 - 1  # the largest whole number that a page can tell from its neighbours
MOST_PIXELS = 20_000_000  # of an uploaded image
MOST_OBLONG = 20  # its longer side, in shorter ones
MOST_BYTES = "20mb"
KEPT = 3600  # seconds that files of visitors are kept
UNFINISHED = 300  # seconds that a part of an upload is kept which does not grow
MOST_SESSIONS = 1000  # visitors that are remembered, at 80 kB each; Gradio would keep 10,000
MOST_WAITING = 32  # clicks in the queue
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # of uploads
