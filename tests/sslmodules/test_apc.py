"""APC: the loss against loops and closed values, padding, causality, and continued clips."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslmodules import APC
from sslmodules.apc import shifted_l1
from sslmodules.networks import FrameEncoder, GRUFrames, TransformerFrames

NETWORKS: dict[str, Any] = {
    "gru": lambda: GRUFrames(in_features=5, width=16, depth=3),
    "transformer": lambda: TransformerFrames(in_features=5, width=16, depth=2, heads=2),
}


def module_of(network: str = "gru", ahead: int = 2) -> APC:
    torch.manual_seed(0)
    return APC(NETWORKS[network](), ahead=ahead, optimizer=torch.optim.Adam).double()


def clips(lengths: tuple[int, ...] = (12, 7, 2, 0), total: int = 12) -> Tensor:
    x = torch.randn(
        len(lengths), 1, 5, total, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    for row, length in enumerate(lengths):
        x[row, :, :, length:] = 0
    return x


def slow_loss(prediction: Tensor, frames: Tensor, lengths: list[int], ahead: int) -> float:
    clips = []
    for b, length in enumerate(lengths):
        errors = [
            abs(float(frames[b, t + ahead, m]) - float(prediction[b, t, m]))
            for t in range(max(0, length - ahead))
            for m in range(frames.shape[2])
        ]
        clips.append(sum(errors) / len(errors) if errors else 0.0)
    return sum(clips) / len(clips)


@pytest.mark.parametrize("ahead", [1, 3])
def test_loss_against_loops(ahead: int) -> None:
    lengths = [12, 7, 2, 0]
    frames, prediction = clips()[:, 0].transpose(1, 2), torch.randn(4, 12, 5, dtype=torch.float64)
    got = shifted_l1(prediction, frames, torch.tensor(lengths), ahead)
    assert got.item() == pytest.approx(slow_loss(prediction, frames, lengths, ahead), abs=1e-12)


def test_loss_closed_values() -> None:
    """A ramp of slope 1, predicted by itself: every frame is n too low. Predicted perfectly: 0."""
    ramp = torch.arange(10.0)[None, :, None].expand(2, 10, 3)
    length = torch.tensor([10, 6])
    assert shifted_l1(ramp, ramp, length, 3).item() == pytest.approx(3)
    assert shifted_l1(ramp + 3, ramp, length, 3).item() == 0


def test_padding_is_never_a_target() -> None:
    """Predictions of padding, or from it, change neither loss nor gradient."""
    module, x = module_of(), clips()
    frames = x[:, 0].transpose(1, 2)
    prediction = torch.randn(4, 12, 5, dtype=torch.float64, requires_grad=True)
    shifted_l1(prediction, frames, torch.tensor([12, 7, 2, 0]), 2).backward()
    assert prediction.grad is not None
    touched = prediction.grad.abs().sum(2) > 0
    assert touched.sum(1).tolist() == [10, 5, 0, 0]
    assert not touched[1, 5:].any()
    short = module.losses({"input": x[1:2, :, :, :7]})["loss"]
    torch.testing.assert_close(module.losses({"input": x[1:2]})["loss"], short)


@pytest.mark.parametrize("network", NETWORKS)
def test_causal_by_value_and_gradient(network: str) -> None:
    encoder = module_of(network).encoder
    x = torch.randn(2, 9, 5, dtype=torch.float64, requires_grad=True)
    changed = x.detach().clone()
    changed[:, 5:] += 1.0
    one, two = encoder.states(x), encoder.states(changed)
    torch.testing.assert_close(one[:, :5], two[:, :5])
    assert not torch.allclose(one[:, 5:], two[:, 5:])
    (gradient,) = torch.autograd.grad(one[:, 4].square().sum(), x)
    assert (gradient[:, 5:] == 0).all()
    assert (gradient[:, :5].abs().sum(2) > 0).all()  # and every earlier frame is heard


@pytest.mark.parametrize("network", NETWORKS)
def test_embed_is_the_mean_over_valid_frames(network: str) -> None:
    module, x = module_of(network), clips()
    h = module.embed(x)
    assert h.shape == (4, 16) and h.isfinite().all()
    for row, length in enumerate((12, 7, 2)):
        alone = module.encoder.states(x[row : row + 1, 0, :, :length].transpose(1, 2))
        torch.testing.assert_close(h[row], alone[0].mean(0))
    assert (h[3] == 0).all()


def test_residual_connections_begin_at_the_second_layer() -> None:
    encoder = GRUFrames(
        in_features=16, width=16, depth=2
    )  # of equal widths, where a sum would be possible below, too
    for name, p in encoder.named_parameters():
        if name.startswith("layers.1."):
            nn.init.zeros_(p)
    x = torch.randn(2, 4, 16)
    torch.testing.assert_close(encoder.states(x), encoder.layers[0](x)[0])


def test_copy_loss_is_that_of_a_frame_that_stays() -> None:
    x = clips()
    frames = x[:, 0].transpose(1, 2)
    terms = module_of().losses({"input": x})
    assert terms["copy_loss"].item() == pytest.approx(slow_loss(frames, frames, [12, 7, 2, 0], 2))


class Slope(FrameEncoder):
    """Says at each t by how much the frames grow: a state from which the linear layer can predict a ramp
    exactly.
    """

    in_features, num_features = 1, 1

    def states(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("ahead", [1, 3])
def test_continue_clip_goes_on(ahead: int) -> None:
    """With the predictor x + n, a ramp continues without a jump, whatever n."""
    module = APC(Slope(), ahead=ahead, optimizer=torch.optim.Adam)
    nn.init.ones_(module.predict.weight)
    nn.init.constant_(module.predict.bias, float(ahead))
    x = torch.arange(1.0, 6.0).view(1, 1, 1, 5)
    for steps in (1, 2, 7):
        assert module.continue_clip(x, steps).flatten().tolist() == list(range(1, 6 + steps))
    with pytest.raises(ValueError, match="ahead"):
        module.continue_clip(x[..., : ahead - 1], 3)


def test_bad_knobs() -> None:
    with pytest.raises(ValueError, match="ahead"):
        module_of(ahead=0)
    with pytest.raises(ValueError, match="Linear"):
        APC(nn.Linear(1, 1), optimizer=torch.optim.Adam)
    with pytest.raises(ValueError, match=r"in_features.*num_mels"):
        module_of().embed(torch.zeros(1, 1, 4, 9))
    with pytest.raises(ValueError, match="9 frames"):
        module_of(ahead=9).embed(torch.zeros(1, 1, 5, 9))
    with pytest.raises(ValueError, match="depth"):
        GRUFrames(depth=0)
    with pytest.raises(ValueError, match="heads"):
        TransformerFrames(width=20, heads=8)
