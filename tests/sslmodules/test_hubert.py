"""HuBERT: its parts against loops and other libraries, padding, hidden frames, clusters, and the export."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.fft import dct
from sklearn.cluster import KMeans
from torch import Tensor

from datamodules.audio.tones import Tones
from sslmodules import HuBERT
from sslmodules.hubert import hidden_cluster_nll, mfcc, span_mask
from sslmodules.networks import ConformerFrames, GRUFrames
from tests.conftest import trainer_for


def method(**options: Any) -> HuBERT:
    torch.manual_seed(0)
    encoder = ConformerFrames(in_features=5, width=16, depth=2, heads=2, kernel=3)
    options = {"clusters": 6, "mask_length": 3, "projection": 8, **options}
    return HuBERT(encoder, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3), **options)


def clips(lengths: tuple[int, ...] = (12, 7, 0), total: int = 12) -> Tensor:
    x = torch.randn(len(lengths), 1, 5, total, generator=torch.Generator().manual_seed(1))
    for row, length in enumerate(lengths):
        x[row, :, :, length:] = 0
    return x


def test_mfcc_against_scipy() -> None:
    frames = torch.randn(2, 9, 20, dtype=torch.float64)
    static = dct(frames.numpy(), norm="ortho")[:, :, :13]
    got = mfcc(frames).numpy()
    assert got.shape == (2, 9, 39)
    np.testing.assert_allclose(got[:, :, :13], static, atol=1e-12)
    for first in (13, 26):
        padded = np.pad(got[:, :, first - 13 : first], ((0, 0), (1, 1), (0, 0)), mode="edge")
        np.testing.assert_allclose(got[:, :, first : first + 13], (padded[:, 2:] - padded[:, :-2]) / 2)


def test_spans_against_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    starts = torch.rand(20, 15, generator=generator) < 0.1
    valid = torch.arange(15) < torch.randint(0, 16, (20, 1), generator=generator)
    expected = torch.zeros(20, 15, dtype=torch.bool)
    for b, t in starts.nonzero().tolist():
        expected[b, t : t + 4] = True
    assert torch.equal(span_mask(starts, valid, 4), expected & valid)


def test_loss_against_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 4, (3, 5), generator=generator)
    hidden = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 1], [0] * 5]).bool()
    each = []
    for b in range(3):
        terms = [
            -math.log(math.exp(logits[b, t, target[b, t]]) / sum(math.exp(v) for v in logits[b, t]))
            for t in range(5)
            if hidden[b, t]
        ]
        each.append(sum(terms) / len(terms) if terms else 0.0)
    assert hidden_cluster_nll(logits, target, hidden).item() == pytest.approx(sum(each) / 3)


def test_hidden_frames_are_not_seen_and_padding_changes_nothing() -> None:
    module = method().eval()
    frames, valid = module.frames_of(clips())
    hidden = torch.zeros_like(valid)
    hidden[:, 2:5] = True
    other = torch.where(hidden[:, :, None], torch.randn_like(frames), frames)
    with torch.no_grad():
        one, two = (module.encoder.forward_frames(x, valid, hidden & valid) for x in (frames, other))
        torch.testing.assert_close(one[:2][valid[:2]], two[:2][valid[:2]])
        assert not torch.allclose(module.encoder.forward_frames(other, valid)[0], one[0])
        torch.testing.assert_close(module.embed(clips()[1:2, :, :, :9]), module.embed(clips())[1:2])
        late = clips()
        late[0, :, 2, 11] += 1
        changed = module.encoder.tokens(late)[0] - module.encoder.tokens(clips())[0]
        assert changed[0, 0].abs().max() > 0  # it sees what comes later


def test_clusters_are_the_nearest_centers() -> None:
    module = method()
    frames, valid = module.frames_of(clips())
    module.shift.normal_()
    module.scale.uniform_(0.5, 2)
    scaled = (mfcc(frames) - module.shift) / module.scale
    distances = (scaled[:, :, None] - module.centers).square().sum(3)
    assert torch.equal(module.cluster_of(frames, valid), distances.argmin(2))


def test_clusters_are_found_when_an_iteration_begins(tmp_path: Path) -> None:
    """First of MFCC, then of the states of the network when the second begins; a checkpoint keeps them."""
    torch.manual_seed(0)
    encoder = ConformerFrames(width=16, depth=1, heads=2, kernel=3)
    module = HuBERT(
        encoder, clusters=8, second_iteration=1, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3)
    )
    data, seen = Tones(synthetic=True, batch_size=64), []
    found = module.find_clusters

    def find(data: Any, iteration: int) -> None:
        found(data, iteration)
        seen.append((iteration, module.centers.clone()))

    module.find_clusters = find  # type: ignore[method-assign]
    trainer = trainer_for(tmp_path, max_epochs=3, limit_train_batches=2, limit_val_batches=0)
    trainer.fit(module, data)
    assert [number for number, _ in seen] == [1, 2] and not torch.equal(seen[0][1], seen[1][1])
    again = HuBERT(encoder, clusters=8, second_iteration=1, optimizer=lambda p: torch.optim.AdamW(p))
    again.load_state_dict(module.state_dict())
    raw = data.dataset("val").__getitems__([0, 1])["input"]  # type: ignore[attr-defined]
    frames, valid = module.frames_of(data.transform({"input": raw}, None)["input"])
    assert torch.equal(again.cluster_of(frames, valid), module.cluster_of(frames, valid))
    first, second = method(), method()
    options: Any = {"num_mels": 5, "window_ms": 50.0, "synthetic": True}
    for one in (first, second):
        one.find_clusters(Tones(**options))
    assert torch.equal(first.centers, second.centers) and torch.equal(first.codes, second.codes)
    sizes = torch.bincount(first.cluster_of(*first.frames_of(clips((12, 12)))).flatten(), minlength=6)
    assert (sizes > 0).sum() > 1


class Clips:
    """Data of one batch; keeps the names of the splits that are read."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.read = x, []

    def dataset(self, split: str) -> Any:
        self.read.append(split)
        return self

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        return {"input": self.x[rows]}

    def transform(self, raw: dict[str, Tensor], generator: None) -> dict[str, Tensor]:
        return raw


def test_clusters_are_of_training_frames_without_padding_and_none_is_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Known mistakes. Nineteen of 24 frames are no padding."""
    module, fitted = method(), []
    data: Any = Clips(clips((12, 7)))
    fit = KMeans.fit
    monkeypatch.setattr(KMeans, "fit", lambda self, points: fitted.append(len(points)) or fit(self, points))
    module.find_clusters(data)
    assert data.read == ["bank"] and fitted == [19]
    frames, valid = module.frames_of(data.x)
    assert torch.bincount(module.cluster_of(frames, valid)[valid], minlength=6).min() > 0


def test_something_of_each_clip_is_hidden() -> None:
    """Known mistake: a clip in which no span begins has no loss."""
    module = method(mask_start=1e-9)
    for seed in range(5):
        torch.manual_seed(seed)
        batches: list[Any] = [{"input": clips((length,))} for length in (12, 2)]
        alone = [module.losses(batch)["loss"] for batch in batches]
        assert min(alone) > 0


def test_it_loads_as_a_model_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoModel

    module = method().eval()
    module.encoder.to_transformers().save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path).eval()
    frames, valid = module.frames_of(clips((12, 7)))
    with torch.no_grad():
        states = model(input_features=frames, attention_mask=valid.long()).last_hidden_state
    torch.testing.assert_close(states, module.encoder.tokens(clips((12, 7)))[0])


def test_what_cannot_be() -> None:
    for build, message in (
        (lambda: method(clusters=1), "clusters must be at least 2, got 1"),
        (lambda: method(mask_start=1.0), r"mask_start must be in \(0, 1\), got 1.0"),
        (lambda: method().embed(torch.zeros(1, 1, 4, 12)), None),
        (
            lambda: method().losses({"input": torch.zeros(1, 1, 4, 12)}),
            r"encoder takes log-mel \(B, 1, 5, T\)",
        ),
        (
            lambda: method(mask_length=12).losses({"input": clips()}),
            "mask_length must be less than 12 frames",
        ),
        (lambda: HuBERT(GRUFrames(), optimizer=torch.optim.Adam), "^encoder must be .*MaskedFrameEncoder"),  # type: ignore[arg-type]
    ):
        if message is not None:
            with pytest.raises(ValueError, match=message):
                build()
