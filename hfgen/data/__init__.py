"""Any `datasets` source as columns of images, classes and texts, in an order that seed and position decide."""
