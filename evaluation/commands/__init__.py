"""The commands of ``eval.py``, one per file. A new file is known at once, without an edit here.

``runtime/eval_help.py`` finds them, ``runtime/eval_main.py`` opens the run and calls the one that was asked
for.
"""
