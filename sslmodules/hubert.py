"""HuBERT (Hsu et al. 2021, https://arxiv.org/abs/2106.07447).

Audio frames are clustered, spans of frames are hidden, and a Transformer that sees the rest predicts the
cluster of each hidden frame. Features are its states, averaged over a clip's frames.

Differs from the paper: the network reads log-mel frames instead of the waveform; clusters are found on at
most ``FRAMES`` frames when training begins; a second iteration continues with the same network instead of a
new one; a clip's loss is averaged over its own hidden frames before the mean over clips.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.audio.mel import valid_frames
from datamodules.base import Batch, SSLDataModule, data_of
from datamodules.checks import check, check_at_least, check_positive, check_within
from datamodules.errors import ConfigError
from sslmodules.base import SSLModule, full_precision
from sslmodules.networks.encoder import MaskedFrameEncoder, require

FRAMES = 100_000
"""Approximate maximum number of training frames used to find clusters."""
CEPSTRA = 13
"""Coefficients per frame, without their changes over time (39 with them, as in the paper)."""


def mfcc(log_mel: Tensor) -> Tensor:
    """Mel-frequency cepstral coefficients and their first and second changes over time.

    Args:
        log_mel: (B, T, M) frames.

    Returns:
        (B, T, 3 C): C = min(13, M) coefficients of the orthonormal cosine transform, then half the difference
        of the two neighbors in time, twice.
    """
    bands = log_mel.shape[2]
    like: dict[str, Any] = {"device": log_mel.device, "dtype": log_mel.dtype}
    order = torch.arange(min(CEPSTRA, bands), **like)[:, None]
    place = (torch.arange(bands, **like) + 0.5) * (math.pi / bands)
    basis = torch.cos(order * place) * math.sqrt(2 / bands)  # (C, M)
    basis[0] /= math.sqrt(2)
    parts = [log_mel @ basis.T]
    for _ in range(2):
        padded = F.pad(parts[-1].transpose(1, 2), (1, 1), mode="replicate").transpose(1, 2)
        parts.append((padded[:, 2:] - padded[:, :-2]) / 2)
    return torch.cat(parts, 2)


def span_mask(starts: Tensor, valid: Tensor, length: int) -> Tensor:
    """Hide spans of frames, as wav2vec 2.0 and HuBERT do.

    Args:
        starts: (B, T) bool: where a span begins; spans may overlap.
        valid: (B, T) bool: frames without padding; padding is never hidden.
        length: frames of a span.

    Returns:
        (B, T) bool, True = hidden.
    """
    reach = F.pad(starts.float()[:, None], (length - 1, 0))
    return F.max_pool1d(reach, length, stride=1)[:, 0].bool() & valid


def hidden_cluster_nll(logits: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Cross entropy of the clusters of hidden frames (Hsu et al. 2021, the loss over masked steps alone).

    Args:
        logits: (B, T, K).
        target: (B, T) int64 clusters.
        hidden: (B, T) bool.

    Returns:
        Scalar in nats: mean over a clip's hidden frames, then over clips; a clip without any counts as 0.
    """
    nll = F.cross_entropy(full_precision(logits).transpose(1, 2), target, reduction="none")  # (B, T)
    return ((nll * hidden).sum(1) / hidden.sum(1).clamp(min=1)).mean()


class HuBERT(SSLModule):
    """HuBERT: predict the clusters of hidden audio frames.

    Args:
        encoder: frames (B, T, M) -> (B, T, num_features), with ``in_features`` = M.
        clusters: K, number of clusters (paper: 100, then 500).
        mask_start: share of the frames at which a hidden span begins.
        mask_length: frames of a span.
        projection: width of the space in which states and clusters are compared.
        temperature: divides their cosine similarity.
        second_iteration: from this epoch on, clusters are those of the network's own states at the start of
            that epoch; None = MFCC clusters throughout.
        **kwargs: ``SSLModule``'s.

    Raises:
        ValueError: the encoder does not accept frames, or an option is out of range.
    """

    writes_weights = True
    encoder: MaskedFrameEncoder
    centers: Tensor
    shift: Tensor
    scale: Tensor
    iteration: Tensor

    def __init__(
        self,
        encoder: MaskedFrameEncoder,
        clusters: int = 100,
        mask_start: float = 0.08,
        mask_length: int = 10,
        projection: int = 256,
        temperature: float = 0.1,
        second_iteration: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(encoder, MaskedFrameEncoder)
        check_at_least(2, clusters=clusters)
        check_at_least(1, mask_length=mask_length, projection=projection, second_iteration=second_iteration)
        check_within(0, 1, "()", mask_start=mask_start)
        check_positive(temperature=temperature)
        self.encoder, self.mask_start, self.mask_length = encoder, mask_start, mask_length
        self.temperature, self.second_iteration = temperature, second_iteration
        width = encoder.num_features
        self.project = nn.Linear(width, projection)
        self.codes = nn.Parameter(torch.randn(clusters, projection))
        self.teacher = None if second_iteration is None else copy.deepcopy(encoder).requires_grad_(False)
        # random directions until clusters are found (as in BEST-RQ, Chiu et al. 2022)
        size = 3 * min(CEPSTRA, encoder.in_features)
        widths = [size] if second_iteration is None else [size, width]
        self.register_buffer("centers", torch.randn(clusters, max(widths)))
        self.register_buffer("shift", torch.zeros(max(widths)))
        self.register_buffer("scale", torch.ones(max(widths)))
        self.register_buffer("iteration", torch.tensor(0))
        self.clusters_states = False  # the same as ``iteration``, on the host, so that no step waits
        self.register_load_state_dict_post_hook(HuBERT.note_iteration)

    def note_iteration(self, incompatible_keys: object = None) -> None:
        self.clusters_states = self.teacher is not None and int(self.iteration) > 1

    # ---- clusters ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def described(self, frames: Tensor, valid: Tensor) -> Tensor:
        """The vectors to cluster, (B, T, F): MFCC, or in the second iteration the teacher's states."""
        if not self.clusters_states:
            return mfcc(full_precision(frames))
        assert self.teacher is not None
        return full_precision(self.teacher.eval().forward_frames(frames, valid))

    def cluster_of(self, frames: Tensor, valid: Tensor) -> Tensor:
        """(B, T) int64: the nearest cluster center of each frame."""
        described = self.described(frames, valid)
        n = described.shape[2]
        scaled = (described - self.shift[:n]) / self.scale[:n]
        return torch.cdist(scaled, self.centers[:, :n].to(scaled.dtype)).argmin(2)

    @torch.no_grad()
    def find_clusters(self, data: SSLDataModule, iteration: int = 1) -> None:
        """k-means on frames of the training split, the same on every process.

        Args:
            data: a data set whose ``input`` is log-mel.
            iteration: 1 clusters MFCC, 2 the network's current states.
        """
        from sklearn.cluster import KMeans

        self.iteration.fill_(iteration)
        self.note_iteration()
        if iteration == 2 and self.teacher is not None:
            self.teacher.load_state_dict(self.encoder.state_dict())
        dataset: Any = data.dataset("bank")
        order, rows, found = np.random.default_rng(0).permutation(len(dataset)), [], 0
        for start in range(0, len(order), 64):
            raw = dataset.__getitems__(np.sort(order[start : start + 64]).tolist())["input"]
            x = data.transform({"input": raw.to(self.device)}, None)["input"]
            frames, valid = self.frames_of(x)
            rows.append(self.described(frames, valid)[valid].cpu())
            found += len(rows[-1])
            if found >= FRAMES:
                break
        all_rows = torch.cat(rows).double()
        shift, scale = all_rows.mean(0), all_rows.std(0).clamp(min=1e-6)
        clusters, n = len(self.centers), all_rows.shape[1]
        if found < clusters:
            raise ConfigError(f"clusters {clusters}: the training split has only {found} frames")
        points = ((all_rows - shift) / scale).numpy()
        centers = KMeans(clusters, n_init=1, max_iter=50, random_state=0).fit(points).cluster_centers_
        self.centers[:, :n] = torch.from_numpy(centers).to(self.centers)
        self.shift[:n], self.scale[:n] = shift.to(self.shift), scale.to(self.scale)
        # its own generator, since the processes' random states differ
        codes = torch.randn(self.codes.shape, generator=torch.Generator().manual_seed(iteration))
        self.codes.copy_(codes)
        rank_zero_info(f"{clusters} clusters of {found} frames (iteration {iteration})")

    def on_train_epoch_start(self) -> None:
        """Find clusters when an iteration begins; a resumed run has them in its checkpoint."""
        data, now = data_of(self.trainer), self.trainer.current_epoch
        wanted = 1 if self.second_iteration is None or now < self.second_iteration else 2
        if data is not None and int(self.iteration) < wanted:
            self.find_clusters(data, wanted)

    # ---- the model -----------------------------------------------------------------------------------------

    def frames_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, M, T) log-mel to frames (B, T, M), and a mask (B, T) of those that are not padding."""
        if x.ndim != 4 or x.shape[1:3] != (1, self.encoder.in_features):
            raise ConfigError(
                f"encoder takes log-mel (B, 1, {self.encoder.in_features}, T), got {tuple(x.shape)}: set its "
                "in_features to data.num_mels"
            )
        check(
            self.mask_length < x.shape[3], "mask_length", f"less than {x.shape[3]} frames", self.mask_length
        )
        valid = torch.arange(x.shape[3], device=x.device) < valid_frames(x)[:, None]
        return x[:, 0].transpose(1, 2), valid

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        frames, valid = self.frames_of(batch["input"])
        drawn = self.rand(*valid.shape).masked_fill(~valid, 2.0)  # (B, T)
        starts = (drawn < self.mask_start) | (drawn == drawn.amin(1, keepdim=True))  # one span at least
        hidden = span_mask(starts, valid, self.mask_length)
        target = self.cluster_of(frames, valid)
        states = self.project(self.encoder.forward_frames(frames, valid, hidden))  # (B, T, P)
        logits = F.normalize(full_precision(states), dim=2) @ F.normalize(full_precision(self.codes), dim=1).T
        loss = hidden_cluster_nll(logits / self.temperature, target, hidden)
        right = ((logits.argmax(2) == target) & hidden).sum(1) / hidden.sum(1).clamp(min=1)
        return {"loss": loss, "hidden_accuracy": right.mean()}
