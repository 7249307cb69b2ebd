"""How many directions features use, and how fast their variance decays: LiDAR and alpha-ReQ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from datamodules.base import SSLDataModule
from datamodules.errors import ConfigError
from datamodules.seeding import mix_seed
from evaluation.features import embed_split
from evaluation.measures.base import Measure
from evaluation.measures.health import MAX_SAMPLES, rankme
from sslmodules.base import SSLModule

SAMPLES, VIEWS = 500, 10
"""Samples and views for LiDAR; the paper uses 1,000 samples with 50 views each."""


class Spectrum(Measure):
    """RankMe and alpha-ReQ of the features of test samples, and LiDAR if the data makes views."""

    name = "spectrum"
    by_name = True

    def measure(self, module: SSLModule, data: SSLDataModule, device: torch.device) -> dict[str, Any]:
        n = len(data.dataset("test"))  # type: ignore[arg-type]
        rows = torch.linspace(0, n - 1, min(n, MAX_SAMPLES)).round().long().tolist()
        features = embed_split({"": module.embed}, data, "test", device, rows)[0][""]
        values = {"samples": len(features), "rankme": rankme(features), "alpha_req": alpha_req(features)}
        views = _views(module, data, rows[:: max(1, -(-len(rows) // SAMPLES))], device)
        if views is not None:
            values |= {"lidar": lidar(views), "lidar_samples": views.shape[0], "lidar_views": views.shape[1]}
        return values

    def table(self, values: dict[str, Any]) -> tuple[str, dict[str, str]]:
        names = {"rankme": "RankMe", "alpha_req": "alpha-ReQ", "lidar": "LiDAR"}
        title = f"spectrum of the features of {values['samples']} test samples"
        return title, {text: f"{values[key]:.3f}" for key, text in names.items() if key in values}

    def scalars(self, values: dict[str, Any]) -> dict[str, float]:
        return {name: values[name] for name in ("alpha_req", "lidar") if name in values}


def alpha_req(features: Tensor) -> float:
    """Exponent of the power law that the variances of the principal directions follow (Agrawal et al. 2022).

    -slope of log(variance of direction j) over log(j), j = 1, 2, ..., weighted by 1 / j, as in Stringer et
    al. 2019, so that each octave has the same weight. Directions with less than 1e-6 of the largest variance
    are left out, as they are below float32's precision. The paper finds values near 1 good; large values mean
    few directions, 0 means equal variances. https://openreview.net/forum?id=ii9X4vtZGTZ

    Args:
        features: (N, D) floating point, N > 2.

    Raises:
        ConfigError: fewer than two directions have variance.
    """
    x = features.double()
    variance = torch.linalg.svdvals(x - x.mean(0)).square()  # descending
    variance = variance[variance > 1e-6 * variance[0]]
    if len(variance) < 2:
        raise ConfigError("alpha-ReQ needs two directions with variance, but the features have fewer")
    place = torch.arange(1, len(variance) + 1, dtype=torch.float64, device=x.device)
    weight = (1 / place) / (1 / place).sum()
    log_place, log_variance = place.log(), variance.log()
    log_place = log_place - (weight * log_place).sum()
    return -float((weight * log_place * log_variance).sum() / (weight * log_place.square()).sum())


def lidar(features: Tensor, delta: float = 1e-4, epsilon: float = 1e-7) -> float:
    """LiDAR: effective rank of the differences between samples, relative to those between their views.

    Thilak et al. 2023, https://arxiv.org/abs/2312.04000. exp(-sum_k p_k log p_k), p_k = lambda_k / sum +
    epsilon, with lambda the eigenvalues of W^-1/2 B W^-1/2: B is the covariance of the means of each sample's
    views, W that of views around these means, with ``delta`` added to its diagonal.

    Args:
        features: (N, V, D) features of V >= 2 views of each of N samples.

    Returns:
        1 to min(N - 1, D).
    """
    x = features.double()
    centers = x.mean(1)  # (N, D)
    around = (x - centers[:, None]).flatten(0, 1)  # (N * V, D)
    centers = centers - centers.mean(0)
    within = around.T @ around / len(around) + delta * torch.eye(x.shape[2], device=x.device)
    values, vectors = torch.linalg.eigh(within)
    whitened = (centers @ vectors) * values.rsqrt()  # (N, D): its covariance has the same eigenvalues
    p = torch.linalg.svdvals(whitened).square()
    p = p / p.sum() + epsilon
    return torch.special.entr(p).sum().exp().item()


@torch.no_grad()
def _views(module: SSLModule, data: SSLDataModule, rows: list[int], device: torch.device) -> Tensor | None:
    """Features (N, VIEWS, D) of views of some test samples; None if the data makes no views of images."""
    drawn = []
    for start in range(0, len(rows), data.batch_size):
        raw = data.dataset("test").__getitems__(rows[start : start + data.batch_size])  # type: ignore[attr-defined]
        raw["input"] = raw["input"].to(device)
        found: list[Tensor] = []
        while len(found) < VIEWS:
            generator = torch.Generator(device).manual_seed(mix_seed(5, start, len(found)))
            views = data.transform(raw, generator).get("views", [])
            whole = [view for view in views if view.shape == views[0].shape]
            if not whole:
                return None
            found += [module.embed(view).flatten(1).float() for view in whole]
        drawn.append(torch.stack(found[:VIEWS], 1))
    return torch.cat(drawn)
