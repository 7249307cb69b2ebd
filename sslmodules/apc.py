"""APC, autoregressive predictive coding (Chung et al. 2019, https://arxiv.org/abs/1904.03240).

A causal network reads log-mel frames (B, T, M), and a linear layer predicts the frame n steps ahead of each.
Features are the network's states, averaged over a clip's frames. Predictions can be fed back as input, which
continues a clip.

Differs from the authors' code: a clip's error is averaged over its own frames before the mean over clips, so
that padding and other clips do not affect it; frames are standardized over the training split, and clips are
cut to one length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from datamodules.audio.mel import valid_frames
from datamodules.base import Batch
from datamodules.checks import check, check_at_least
from datamodules.errors import ConfigError
from sslmodules.base import SSLModule, full_precision
from sslmodules.networks.encoder import FrameEncoder, require


def shifted_l1(prediction: Tensor, frames: Tensor, length: Tensor, ahead: int) -> Tensor:
    """Mean absolute error of frames predicted ``ahead`` steps in advance (Chung et al. 2019: its sum).
    Args:
        prediction: (B, T, M); row t predicts frame t + ahead.
        frames: (B, T, M).
        length: (B,) valid frames of each clip; the rest is padding and never a target.
        ahead: n.

    Returns:
        Scalar: mean over bands and over a clip's targets, then over clips; a clip of n frames or fewer counts
        as 0.
    """
    error = (
        (full_precision(prediction[:, :-ahead]) - full_precision(frames[:, ahead:])).abs().mean(2)
    )  # (B, T - n)
    place = torch.arange(ahead, frames.shape[1], device=frames.device)
    target = place < length[:, None]  # (B, T - n)
    return ((error * target).sum(1) / target.sum(1).clamp(min=1)).mean()


class APC(SSLModule):
    """APC: autoregressive predictive coding; predict the log-mel frame n steps ahead.

    Features are the network's last states, averaged over the clip's frames without padding.

    Args:
        encoder: causal, (B, T, M) -> states (B, T, num_features), with ``in_features`` = M.
        ahead: n, frames; the paper tries 1 to 20.
        **kwargs: ``SSLModule``'s.

    Raises:
        ValueError: the encoder does not accept frames, or ``ahead`` is below 1.
    """

    encoder: FrameEncoder

    def __init__(self, encoder: FrameEncoder, ahead: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_at_least(1, ahead=ahead)
        require(encoder, FrameEncoder)
        self.encoder, self.ahead = encoder, ahead
        self.shortest_clip = ahead + 1
        self.bands = encoder.in_features
        self.predict = nn.Linear(encoder.num_features, self.bands)

    def frames_of(self, x: Tensor) -> Tensor:
        """Convert (B, 1, M, T) log-mel to frames (B, T, M)."""
        if x.ndim != 4 or x.shape[1:3] != (1, self.bands):
            raise ConfigError(
                f"encoder takes log-mel (B, 1, {self.bands}, T), got {tuple(x.shape)}: set its in_features "
                "to data.num_mels"
            )
        check(self.ahead < x.shape[3], "ahead", f"less than the {x.shape[3]} frames of a clip", self.ahead)
        return x[:, 0].transpose(1, 2)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        frames, length = self.frames_of(batch["input"]), valid_frames(batch["input"])
        loss = shifted_l1(self.predict(self.encoder.states(frames)), frames, length, self.ahead)
        with torch.no_grad():  # the baseline to beat: predict no change
            copy = shifted_l1(frames, frames, length, self.ahead)
        return {"loss": loss, "copy_loss": copy}

    def embed(self, x: Tensor) -> Tensor:
        """(B, 1, M, T) -> (B, num_features)."""
        states, length = self.encoder.states(self.frames_of(x)), valid_frames(x)
        valid = torch.arange(states.shape[1], device=x.device) < length[:, None]  # (B, T)
        return (states * valid[:, :, None]).sum(1) / length.clamp(min=1)[:, None]

    @torch.no_grad()
    def continue_clip(self, x: Tensor, steps: int) -> Tensor:
        """Continue a clip: n frames are predicted from the last n states and fed back as input, repeatedly.

        Args:
            x: (B, 1, M, T) standardized log-mel without padding, T >= n.
            steps: number of frames to add.

        Returns:
            (B, 1, M, T + steps).
        """
        frames, given = x[:, 0].transpose(1, 2), x.shape[3]
        if given < self.ahead:
            raise ConfigError(
                f"a clip of {given} frames is shorter than ahead = {self.ahead}: give a longer one"
            )
        while frames.shape[1] < given + steps:
            coming = self.predict(self.encoder.states(frames)[:, -self.ahead :]).to(frames.dtype)
            frames = torch.cat([frames, coming], 1)
        return frames[:, : given + steps].transpose(1, 2)[:, None]
