"""One run from the command line: names and help without torch, the parser, and the run folder."""
