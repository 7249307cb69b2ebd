"""Pre-train a method, then probe its features: ``python train.py --config configs/digits/simclr.yaml``."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import NoReturn

from runtime.failures import finish
from runtime.help import class_help
from runtime.messages import config_arguments, flush, help_text, read_config
from runtime.paused_collector import collector_paused
from runtime.signals import Preempted, check_launch, die_with_parent, end, receiver


def show(text: str, status: int = 0) -> int:
    """Print a text; returns the exit status."""
    with suppress(BrokenPipeError):
        print(text)
    return status


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit status. Help and broken files are handled without torch."""
    with receiver.listening():
        try:
            if not argv or set(argv) & {"--help", "-h"}:
                return show(help_text(), 0 if argv else 2)
            if (text := class_help(argv)) is not None:
                return show(text)
            for file in config_arguments(argv):
                read_config(file)
            check_launch()
            die_with_parent()
            with collector_paused():
                from runtime.main import run

            return run(argv)
        except Preempted as stop:
            return end(stop)
        except Exception as error:
            return finish(error)


def start() -> NoReturn:
    """Entry point of ``ssl-train``."""
    try:
        sys.exit(main(sys.argv[1:]))
    finally:
        flush()


if __name__ == "__main__":
    start()
