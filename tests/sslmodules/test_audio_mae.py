"""Audio-MAE: patches on a grid that is not square, padding that is not a target, and filled-in patches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datamodules.transforms.masks import RandomPatches
from sslmodules import AudioMAE
from sslmodules.audio_mae import target_patch_mse
from sslmodules.networks import ViTEncoder
from sslmodules.networks.vit import patchify, sounding_patches

BANDS, FRAMES, P = 8, 20, 4  # 2 rows and 5 columns of patches


def module_of(normalize_target: bool = False) -> AudioMAE:
    torch.manual_seed(0)
    encoder = ViTEncoder(image_size=(BANDS, FRAMES), patch_size=P, in_channels=1, width=16, depth=2, heads=2)
    options: dict[str, Any] = {
        "decoder_width": 16,
        "decoder_depth": 1,
        "decoder_heads": 2,
        "optimizer": torch.optim.Adam,
    }
    return AudioMAE(encoder, normalize_target=normalize_target, **options)


def batch_of(lengths: tuple[int, ...] = (20, 9, 3, 0)) -> dict[str, Any]:
    x = torch.randn(len(lengths), 1, BANDS, FRAMES, generator=torch.Generator().manual_seed(1))
    for row, length in enumerate(lengths):
        x[row, :, :, length:] = 0
    masks = RandomPatches(P, 0.8)
    mask = masks(x, masks.draw(x, torch.Generator().manual_seed(2)))["mask"]
    return {"input": x, "mask": mask}


def test_patches_go_along_time_within_a_row_of_frequencies() -> None:
    """Patch i * 5 + j holds bands 4i to 4i + 3 and frames 4j to 4j + 3."""
    band, frame = torch.meshgrid(torch.arange(BANDS), torch.arange(FRAMES), indexing="ij")
    patches = patchify((100 * band + frame)[None, None].float(), P)[0]
    assert patches.shape == (10, 16)
    assert patches[:, 0].tolist() == [0, 4, 8, 12, 16, 400, 404, 408, 412, 416]
    assert patches[6, :5].tolist() == [404, 405, 406, 407, 504]


def test_sounding_patches() -> None:
    x = batch_of()["input"]
    whole, any_sound = (sounding_patches(x, P, whole).view(4, 2, 5) for whole in (True, False))
    assert whole[:, 0].sum(1).tolist() == [5, 2, 0, 0] and any_sound[:, 0].sum(1).tolist() == [5, 3, 1, 0]
    assert torch.equal(whole[:, 0], whole[:, 1])
    assert whole[1, 0].tolist() == [True, True, False, False, False]


def test_loss_against_loops() -> None:
    prediction, target = torch.randn(3, 10, 4), torch.randn(3, 10, 4)
    counted = torch.rand(3, 10, generator=torch.Generator().manual_seed(0)) < 0.4
    counted[2] = False
    clips = []
    for b in range(3):
        errors = [
            (prediction[b, n] - target[b, n]).square().mean().item() for n in range(10) if counted[b, n]
        ]
        clips.append(sum(errors) / len(errors) if errors else 0.0)
    assert target_patch_mse(prediction, target, counted).item() == pytest.approx(sum(clips) / 3, rel=1e-5)


@pytest.mark.parametrize("normalize_target", [False, True])
def test_padding_and_visible_patches_are_no_targets(
    normalize_target: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, batch = module_of(normalize_target), batch_of()
    prediction = torch.randn(4, 10, P * P, requires_grad=True)
    monkeypatch.setattr(module, "predict", lambda x, hidden, visible: prediction)
    module.losses(batch)["loss"].backward()
    assert prediction.grad is not None
    hidden = nn.functional.max_pool2d(batch["mask"].float(), P).flatten(1).bool()
    assert hidden.sum(1).tolist() == [8] * 4
    expected = hidden & sounding_patches(batch["input"], P, whole=True)
    assert torch.equal(prediction.grad.abs().sum(2) > 0, expected)
    assert 0 < expected[1].sum() < 8


@pytest.mark.parametrize("normalize_target", [False, True])
def test_hidden_values_are_not_seen(normalize_target: bool) -> None:
    """By the prediction, nor by what is filled in."""
    module, batch = module_of(normalize_target).eval(), batch_of((20, 9))
    x, mask = batch["input"], batch["mask"]
    frame = torch.arange(FRAMES) < torch.tensor([20, 9])[:, None, None, None]
    other = torch.where(mask & frame, x * 3 + 1, x)
    with torch.no_grad():
        one, two = module.fill(batch), module.fill({**batch, "input": other})
    torch.testing.assert_close(one, two)
    assert torch.equal(one.masked_fill(mask, 0), x.masked_fill(mask, 0))
    assert not torch.allclose(one[mask & frame], x[mask & frame])
    assert (one[1, :, :, 9:] == 0).all()


def test_fill_puts_patches_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    module, batch = module_of(), batch_of((20,))
    monkeypatch.setattr(module, "predict", lambda x, hidden: patchify(x, P))
    assert torch.equal(module.fill(batch), batch["input"])


def test_embed_leaves_padding_patches_out() -> None:
    module, x = module_of().eval(), batch_of()["input"]
    seen: list[Tensor] = []
    module.encoder.norm.register_forward_hook(lambda m, i, o: seen.append(o))
    with torch.no_grad():
        h = module.embed(x)
    tokens = seen[0][:, 1:].unflatten(1, (2, 5))
    for row, columns in enumerate((5, 3, 1)):
        torch.testing.assert_close(h[row], tokens[row, :, :columns].flatten(0, 1).mean(0))
    assert (h[3] == 0).all()


def test_bad_knobs_and_shapes() -> None:
    with pytest.raises(ValueError, match="ViTEncoder"):
        AudioMAE(nn.Identity(), optimizer=torch.optim.Adam)
    with pytest.raises(ValueError, match=r"encoder\.in_channels must be 1, that of log-mel, got 3"):
        AudioMAE(
            ViTEncoder(image_size=8, patch_size=4, width=16, depth=1, heads=2), optimizer=torch.optim.Adam
        )
    with pytest.raises(ValueError, match=r"num_mels, frames"):
        module_of().losses(
            {"input": torch.zeros(2, 1, FRAMES, BANDS), "mask": torch.ones(2, 1, FRAMES, BANDS).bool()}
        )
