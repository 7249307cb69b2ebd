"""Pre-train a method on a data set, then probe its frozen features: ``python train.py --config
configs/digits/simclr.yaml``.
"""

from __future__ import annotations

import sys

from runtime.failures import finish
from runtime.messages import config_arguments, help_text, read_config
from runtime.signals import Preempted, check_launch, die_with_parent, end, receiver


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit status. Help and broken files are dealt with before torch is
    imported.
    """
    with receiver.listening():
        try:
            if not argv or set(argv) & {"--help", "-h"}:
                print(help_text())
                return 0 if argv else 2
            for file in config_arguments(argv):
                read_config(file)
            check_launch()
            die_with_parent()
            from runtime.main import run

            return run(argv)
        except Preempted as stop:
            return end(stop)
        except Exception as error:
            return finish(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
