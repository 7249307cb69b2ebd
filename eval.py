"""Measure a trained method, or use it: ``python eval.py [COMMAND] RUN``."""

from __future__ import annotations

import sys
from typing import NoReturn

from runtime.eval_help import HELP, choose, help_text, interrupted, parse
from runtime.failures import finish
from runtime.messages import flush
from runtime.paused_collector import collector_paused


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit status. Help and wrong arguments are handled without torch."""
    command = None
    try:
        if not argv or argv[0] in HELP:
            print(help_text())
            return 0 if argv else 2
        command, rest = choose(argv)
        given, overrides = parse(command, rest)
        with collector_paused():
            from runtime.eval_main import run

        return run(command, given, overrides)
    except KeyboardInterrupt:
        print(interrupted(command), file=sys.stderr)
        return 130
    except Exception as error:
        return finish(error)


def start() -> NoReturn:
    """Entry point of ``ssl-eval``."""
    try:
        sys.exit(main(sys.argv[1:]))
    finally:
        flush()


if __name__ == "__main__":
    start()
