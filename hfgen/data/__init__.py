"""Any `datasets` source as uint8 images and labels, in an order that is a pure function of seed and position."""
