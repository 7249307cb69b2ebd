"""MAE against a slow reference, closed forms, and the mistakes of re-implementations: leaks, orders, places,
statistics.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from datamodules.transforms.base import apply_views
from datamodules.transforms.masks import RandomPatches
from evaluation.measures.reconstruction import reconstruction_psnr
from evaluation.pictures import FONT, LINE
from evaluation.samples import ImageGrid
from sslmodules.mae import (
    MAE,
    hidden_patch_mse,
    hidden_patches,
    known_visible,
    normalize_patches,
    patch_statistics,
    surroundings,
    visible_patches,
)
from sslmodules.networks import ConvEncoder, ResNetEncoder, TimmEncoder, ViTEncoder
from sslmodules.networks.vit import patchify, unpatchify
from tests.conftest import build, trainer_for

HEIGHT, WIDTH, PATCH, CHANNELS = 6, 8, 2, 3  # not square: rows and columns cannot be confused unnoticed
N = (HEIGHT // PATCH) * (WIDTH // PATCH)


def module(**options: Any) -> MAE:
    torch.manual_seed(0)
    encoder = ViTEncoder((HEIGHT, WIDTH), PATCH, CHANNELS, width=16, depth=2, heads=2)
    knobs = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2, **options}
    return MAE(encoder, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), **knobs).double()


def batch(size: int = 5, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, CHANNELS, HEIGHT, WIDTH, generator=generator, dtype=torch.float64)
    return {"input": x, **apply_views(RandomPatches(PATCH, 0.75), x, generator)}


# -------------------- the loss


def slow_loss(prediction: Tensor, images: Tensor, hidden: Tensor, normalize: bool) -> Tensor:
    """Patch by patch and pixel by pixel in float64, from the paper's words: the mean over removed patches
    only.
    """
    losses = []
    for b in range(len(images)):
        for n in range(N):
            if not hidden[b, n]:
                continue
            row, column = divmod(n, WIDTH // PATCH)
            values = [
                images[b, c, row * PATCH + p, column * PATCH + q].item()
                for p in range(PATCH)
                for q in range(PATCH)
                for c in range(CHANNELS)
            ]
            if normalize:
                mean = sum(values) / len(values)
                variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
                values = [(v - mean) / (variance + 1e-6) ** 0.5 for v in values]
            losses.append(
                sum((prediction[b, n, i].item() - v) ** 2 for i, v in enumerate(values)) / len(values)
            )
    return torch.tensor(sum(losses) / len(losses), dtype=torch.float64)


@pytest.mark.parametrize("normalize", [True, False])
def test_equals_the_slow_reference(normalize: bool) -> None:
    """The order p, q, C inside a patch, the unbiased variance, and the mean over hidden patches alone."""
    net, example = module(normalize_target=normalize), batch()
    hidden = hidden_patches(example["mask"], PATCH)
    assert hidden.sum(1).tolist() == [9] * 5
    prediction = net.predict(example["input"], hidden)
    expected = slow_loss(prediction, example["input"], hidden, normalize)
    torch.testing.assert_close(net.losses(example)["loss"], expected, rtol=1e-10, atol=0)


def test_visible_patches_are_not_in_the_loss() -> None:
    target, hidden = (
        torch.zeros(2, 4, 3),
        torch.tensor([[True, False, True, False], [False, False, True, True]]),
    )
    prediction = torch.where(hidden[..., None], 2.0, 100.0).expand(2, 4, 3).clone().requires_grad_()
    loss = hidden_patch_mse(prediction, target, hidden)
    loss.backward()
    assert loss.item() == 4 and prediction.grad is not None
    assert not prediction.grad[~hidden].any() and prediction.grad[hidden].all()


def test_predicting_zero_gives_the_known_level() -> None:
    """With the unbiased variance, a normalized patch of P values has mean square (P - 1) / P."""
    target = normalize_patches(torch.randn(4, 6, 12, dtype=torch.float64))
    loss = hidden_patch_mse(torch.zeros_like(target), target, torch.ones(4, 6, dtype=torch.bool))
    assert loss.item() == pytest.approx(11 / 12, rel=1e-4)


def test_a_patch_of_one_color_is_finite_in_half_precision() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        target = normalize_patches(torch.full((1, 2, 4), 0.3, dtype=dtype))
        assert target.dtype == torch.float32 and not target.any()
    prediction = torch.full(
        (1, 2, 4), 300.0, dtype=torch.float16, requires_grad=True
    )  # its square overflows float16
    loss = hidden_patch_mse(prediction, target.half(), torch.ones(1, 2, dtype=torch.bool))
    assert loss.item() == pytest.approx(90_000)


def test_halves_of_a_batch_average_to_the_whole() -> None:
    """Two processes: as many patches are hidden in each image, so the mean over all of them is the mean over
    ranks.
    """
    net, example = module(), batch(6)
    parts = [net.losses({k: v[i : i + 3] for k, v in example.items()})["loss"] for i in (0, 3)]
    torch.testing.assert_close(sum(parts) / 2, net.losses(example)["loss"], rtol=1e-12, atol=0)


# -------------------- what the network sees


def test_hidden_pixels_cannot_reach_the_encoder() -> None:
    """Not even as NaN: hidden patches and mask tokens are not encoded, they are left out."""
    net, example = module(), batch()
    hidden = hidden_patches(example["mask"], PATCH)
    poisoned = example["input"].masked_fill(example["mask"], float("nan"))
    seen: list[Tensor] = []
    handle = net.encoder.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    visible = visible_patches(hidden)
    latent = net.encoder.forward_visible(example["input"], visible)
    assert torch.equal(latent, net.encoder.forward_visible(poisoned, visible))
    handle.remove()
    assert seen[0].shape == (5, 1 + 3, 16)  # the class token and the three visible patches of twelve
    gradient = torch.autograd.grad(
        net.predict(example["input"].requires_grad_(), hidden).sum(), example["input"]
    )[0]
    assert not gradient[example["mask"].expand_as(gradient)].any()
    assert (gradient != 0)[~example["mask"].expand_as(gradient)].float().mean() > 0.9


@pytest.mark.parametrize("normalize", [True, False])
def test_hidden_pixels_cannot_reach_the_reconstruction(normalize: bool) -> None:
    """Un-normalizing with the hidden patch's own mean and variance would give away most of the answer."""
    net, example = module(normalize_target=normalize), batch()
    poisoned = {**example, "input": example["input"].masked_fill(example["mask"], float("nan"))}
    first, second = net.reconstruct(example), net.reconstruct(poisoned)
    assert first.isfinite().all() and torch.equal(first, second)


def test_tokens_keep_the_place_of_their_patch() -> None:
    """Positions are added before patches are left out, so the encoder's tokens know where they come from."""
    encoder = module().encoder.eval()
    x = torch.ones(
        1, CHANNELS, HEIGHT, WIDTH, dtype=torch.float64
    )  # all patches equal: only places can differ
    one, other = (encoder.forward_visible(x, torch.tensor([[n]])) for n in (1, 10))
    assert not torch.allclose(one, other)
    patches = patchify(x, PATCH)
    expected = encoder.patch_embed(patches)[:, 10] + encoder.positions[10]
    seen: list[Tensor] = []
    encoder.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    encoder.forward_visible(x, torch.tensor([[10]]))
    torch.testing.assert_close(seen[0][:, 1], expected)
    torch.testing.assert_close(seen[0][:, 0], encoder.class_token[0])


def test_order_of_the_visible_patches_does_not_matter() -> None:
    """The decoder puts every token back where its patch is, in whatever order it comes: for each image by
    itself.
    """
    net, example = module(), batch()
    visible = visible_patches(hidden_patches(example["mask"], PATCH))
    shuffled = torch.stack([row[torch.randperm(len(row))] for row in visible])
    assert not torch.equal(visible, shuffled)
    outputs = [net.decoder(net.encoder.forward_visible(example["input"], v), v) for v in (visible, shuffled)]
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-12)


def test_decoder_puts_tokens_and_mask_tokens_where_they_belong() -> None:
    decoder = module().decoder
    visible = torch.tensor([[7, 2, 11], [0, 5, 6]])
    tokens = torch.randn(2, 4, 16, dtype=torch.float64)
    seen: list[Tensor] = []
    decoder.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    assert decoder(tokens, visible).shape == (2, N, PATCH**2 * CHANNELS)
    embedded = decoder.embed(tokens)
    for b in range(2):
        torch.testing.assert_close(seen[0][b, 0], embedded[b, 0])
        for n in range(N):
            where = visible[b].tolist().index(n) + 1 if n in visible[b] else None
            token = decoder.mask_token[0, 0] if where is None else embedded[b, where]
            torch.testing.assert_close(seen[0][b, 1 + n], token + decoder.positions[n])


def test_the_mask_is_each_images_own() -> None:
    example = batch(32)
    assert len(hidden_patches(example["mask"], PATCH).unique(dim=0)) > 20
    net = module()
    for b in (0, 3):
        alone = net.predict(example["input"][b : b + 1], hidden_patches(example["mask"][b : b + 1], PATCH))
        torch.testing.assert_close(
            net.predict(example["input"], hidden_patches(example["mask"], PATCH))[b], alone[0]
        )


def test_trains_on_the_view_and_restores_the_clean_image() -> None:
    net, example = module(), batch()
    view = torch.randn_like(example["input"])
    assert torch.equal(
        net.losses({**example, "views": [view]})["loss"], net.losses({**example, "input": view})["loss"]
    )
    assert torch.equal(net.reconstruct({**example, "views": [view]}), net.reconstruct(example))


# -------------------- patches, masks, reconstruction


def test_a_patch_with_any_hidden_pixel_is_hidden() -> None:
    mask = torch.zeros(1, 1, HEIGHT, WIDTH, dtype=torch.bool)
    mask[0, 0, 3, 5] = True  # patch row 1, column 2 of a 3x4 grid
    assert hidden_patches(mask, PATCH).nonzero().tolist() == [[0, 1 * 4 + 2]]


@pytest.mark.parametrize(("patch_size", "known"), ((2, True), (4, False)))
def test_indices_that_come_with_the_mask_are_used_if_they_are_of_its_patches(
    patch_size: int, known: bool
) -> None:
    """And the loss is the same without them."""
    torch.manual_seed(0)
    net = MAE(ViTEncoder(8, 2, 1, width=16, depth=1, heads=2), optimizer=torch.optim.SGD, decoder_heads=2)
    images, generator = torch.rand(3, 1, 8, 8), torch.Generator().manual_seed(0)
    example = {"input": images, **apply_views(RandomPatches(patch_size, 0.5), images, generator)}
    assert (known_visible(example, 16) is not None) == known
    without = {key: value for key, value in example.items() if key in ("input", "mask")}
    assert torch.equal(net.losses(example)["loss"], net.losses(without)["loss"])


def test_visible_patches_are_those_that_are_not_hidden() -> None:
    hidden = torch.tensor([[True, False, True, False], [False, False, True, True]])
    assert visible_patches(hidden).tolist() == [[1, 3], [0, 1]]


@pytest.mark.parametrize(
    "hidden", [[[True, False], [True, True]], [[True, False], [False, False]], [[True, True]]]
)
def test_uneven_masks_are_refused(hidden: list[list[bool]]) -> None:
    with pytest.raises(ValueError, match=r"mask must leave .* it leaves \d to \d: use MAEViews"):
        visible_patches(torch.tensor(hidden))


@pytest.mark.parametrize("normalize", [True, False])
def test_a_perfect_prediction_restores_the_image(normalize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches that all have the same mean and variance: what the surroundings say is then exact."""
    net, example = module(normalize_target=normalize), batch()
    patches = normalize_patches(patchify(example["input"], PATCH)) * 1.7 + 0.4
    x = unpatchify(patches, PATCH, net.grid)
    target = normalize_patches(patches) if normalize else patches
    monkeypatch.setattr(net, "predict", lambda image, hidden: target.clone())
    torch.testing.assert_close(net.reconstruct({**example, "input": x}), x, rtol=1e-5, atol=1e-6)


def test_visible_pixels_are_returned_as_they_are() -> None:
    net, example = module(), batch()
    restored = net.reconstruct(example)
    visible = ~example["mask"].expand_as(restored)
    assert torch.equal(restored[visible], example["input"][visible])
    assert not torch.isclose(restored[~visible], example["input"][~visible]).any()


def test_surroundings_are_a_weighted_mean_of_visible_patches() -> None:
    """Of a row of four, the second is hidden: distances 1, 1 and 2."""
    values = torch.tensor([[[1.0], [float("nan")], [3.0], [10.0]]], dtype=torch.float64)
    hidden = torch.tensor([[False, True, False, False]])
    near, far = torch.exp(torch.tensor([-0.5, -2.0], dtype=torch.float64))
    expected = (near * 1 + near * 3 + far * 10) / (2 * near + far)
    torch.testing.assert_close(surroundings(values, hidden, (1, 4))[0, 1, 0], expected)
    column = surroundings(values, hidden, (4, 1))
    torch.testing.assert_close(column[0, 1, 0], expected)
    square = surroundings(values, hidden, (2, 2))[
        0, 1, 0
    ]  # above, diagonal and beside: distances 1, sqrt 2, 1
    diagonal = torch.exp(torch.tensor(-1.0, dtype=torch.float64))
    torch.testing.assert_close(square, (near * 1 + diagonal * 3 + near * 10) / (2 * near + diagonal))


def test_statistics_are_those_of_each_patch() -> None:
    mean, variance = patch_statistics(torch.tensor([[[1.0, 3.0], [2.0, 2.0]]]))
    assert mean.flatten().tolist() == [2, 2] and variance.flatten().tolist() == [2, 0]


# -------------------- refusals


@pytest.mark.parametrize(
    "encoder",
    [lambda: ResNetEncoder(), lambda: ConvEncoder(), lambda: TimmEncoder("vit_tiny_patch16_224", 32, 8)],
)
def test_an_encoder_that_cannot_leave_patches_out_is_refused(encoder: Any) -> None:
    net: nn.Module = encoder()
    with pytest.raises(
        ValueError,
        match=r"^encoder must be an image encoder that can encode some patches without the others "
        rf"\(PatchEncoder: ViTEncoder\), got {type(net).__name__}$",
    ):
        MAE(net, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder_width": 18}, "decoder_width must be divisible by 4 .* got 18"),
        ({"decoder_width": 0}, "decoder_width must be at least 1, got 0"),
        ({"decoder_depth": 0}, "decoder_depth must be at least 1, got 0"),
        ({"decoder_heads": 3}, r"decoder_heads must be a divisor of decoder_width \(16\), got 3"),
        ({"decoder_heads": -1}, "decoder_heads must be at least 1, got -1"),
    ],
)
def test_bad_knobs(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(**options)


def test_patches_of_one_value_have_no_variance() -> None:
    encoder = ViTEncoder(4, 1, 1, width=8, depth=1, heads=1)
    with pytest.raises(ValueError, match=r"normalize_target .* patch_size 1"):
        MAE(encoder, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))


def test_images_of_another_size_are_named() -> None:
    net, example = module(), batch()
    wrong = {"input": example["input"][..., :4], "mask": example["mask"][..., :4]}
    with pytest.raises(
        ValueError, match=r"\(3, 6, 8\) in 3x4 patches, got \(3, 6, 4\) and a mask of 6 patches"
    ):
        net.losses(wrong)


# -------------------- pictures


def test_pictures_of_a_run(tmp_path: Path) -> None:
    """Input, masked, prediction, filled; and the attention of each head beside the input."""
    logger = TensorBoardLogger(str(tmp_path), name="log")
    trainer = trainer_for(
        tmp_path, max_epochs=1, limit_train_batches=1, callbacks=[ImageGrid(num_samples=5)], logger=logger
    )
    trainer.fit(*build("configs/digits/mae.yaml"))
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    heads = trainer.lightning_module.encoder.blocks[-1].attn.num_heads
    for tag, columns in (("reconstruction", 4), ("attention", 1 + heads)):
        image = events.Images(tag)[0]
        digit = int(FONT.getlength("0")) + 6  # beside a row; a line of titles above the columns
        # 8 pixels enlarged to 64, 2 between
        assert (image.width, image.height) == (digit + columns * 66 + 2, LINE + 5 * 66 + 2)


def test_error_of_a_run_stands_beside_the_mean_patch() -> None:
    """What is reported after a run: a network that knows nothing is no better than the mean image at the
    hidden places.
    """
    net, data = build("configs/digits/mae.yaml")
    data.setup("test")
    report = reconstruction_psnr(net.eval(), data, torch.device("cpu"))
    values = report["psnr_hidden"]
    assert values["model"] < values["mean_image"] and report["hidden_pixels"] == 256 * 8 * 4
