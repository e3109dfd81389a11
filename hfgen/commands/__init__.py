"""The command line: one module per verb of `hfgen`, which parses and prints; the work is done by the library."""
