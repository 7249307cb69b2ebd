"""Everything around a run: command line, trust, files, checkpoints, stopping."""
