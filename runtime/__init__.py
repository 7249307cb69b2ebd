"""One run from the command line to its folder: parsing, trust, files, checkpoints, stopping."""
