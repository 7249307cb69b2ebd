"""DataLoaders that start late, name samples in errors, and whose workers ignore foreign signals."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from torch.utils.data import DataLoader, Dataset

from datamodules.errors import ConfigError, DataFileError


def ignore_foreign_signals(worker: int) -> None:
    """Run in a data-loading worker: ignore SIGTERM unless it comes from the process that started the worker.

    SLURM and terminals signal every process of a run. A worker that exits would end the run before it has
    finished its batch and saved. torch's own handler exits on any SIGTERM.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # for this thread and the threads it starts

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


class Fetch(Dataset):
    """Wraps a data set so that an error in its code also names the requested samples."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitems__(self, indices: list[int]) -> Any:
        try:
            return self.dataset.__getitems__(indices)  # type: ignore[attr-defined]
        except (ConfigError, DataFileError):  # these messages are already complete
            raise
        except Exception as error:
            shown = ", ".join(map(str, indices[:5])) + (
                f", ... ({len(indices)} in all)" if len(indices) > 5 else ""
            )
            error.args = (f"{error} (while fetching samples {shown})", *error.args[1:])
            raise


class LateLoader(DataLoader):
    """A DataLoader that reads nothing until its first batch is requested.

    Lightning creates the iterator before it has read the checkpoint and set the epoch; workers started then
    would load samples of the first epoch.
    """

    def __iter__(self) -> Any:
        yield from super().__iter__()
