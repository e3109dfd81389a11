"""Any `datasets` source as columns of images, classes and texts, in an order that depends on seed and position alone."""
