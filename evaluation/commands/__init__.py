"""The commands of ``eval.py``, one per file. A new file is discovered automatically.

``runtime/eval_help.py`` finds them, ``runtime/eval_main.py`` opens the run and calls the requested one.
"""
