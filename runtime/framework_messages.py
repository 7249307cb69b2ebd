"""Silences framework messages that no user can act on."""

from __future__ import annotations

import logging
import warnings

NOT_FOR_USERS = (
    r".*LeafSpec.*",  # torch's own deprecation, called from Lightning
    r".*does not have many workers which may be a bottleneck.*",  # data in memory needs none
    r".*The number of training batches .* is smaller than the logging interval.*",
    r".*It is recommended to use .*sync_dist=True.*",  # what is logged so is the same on every rank already
    r".*torch\.distributed\.nn\.functional\.all_gather is deprecated.*",
    r".*(Checkpoint|Experiment logs) directory .* exists and is not empty.*",  # the run folder has its rules
    r".*Total length of `.*DataLoader` across ranks is zero.*",
    r".*resuming from a checkpoint that ended before the epoch ended.*",  # the sampler does resume
    r".*No complete tensor found in the group.*",  # torch.export, on a CPU too
    r".*srun.*command is available on your system but is not used.*",
    r".*Found .* module\(s\) in eval mode at the start of training.*",
    r".*Starting from v1\.9\.0, `tensorboardX` has been removed.*",
)


class _Tips(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        noise = (
            "litlogger",
            "litmodels",
            "GPU available",
            "TPU available",
            "HPU available",
            "Seed set to",
            "LOCAL_RANK",
        )
        return not any(text in message for text in noise) and not message.startswith(
            ("`Trainer.fit` stopped: `max_", "Loading `train_dataloader`")
        )


def silence_framework() -> None:
    """Called once by ``train.py`` and ``eval.py``; importing the packages changes nothing."""
    for pattern in NOT_FOR_USERS:
        warnings.filterwarnings("ignore", message=pattern)
    # Lightning's calls of jsonargparse, not ours
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"lightning\.pytorch\.cli")
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.rank_zero",
        "lightning.fabric.utilities.seed",
    ):
        logging.getLogger(name).addFilter(_Tips())
