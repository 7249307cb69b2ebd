"""The target is the clean image, noise enters through the batch alone, and features never see it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules import Digits, GaussianNoise
from sslmodules.autoencoder import Autoencoder, reconstruction_error
from sslmodules.networks import MLPDecoder, MLPEncoder, TimmEncoder, VectorDecoder
from sslmodules.networks.decoder import Decoder
from sslmodules.networks.encoder import Encoder
from tests.conftest import batch_of, trainer_for


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def module() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(MLPEncoder(64, (12,)), MLPDecoder(12, (16,), 8), optimizer=sgd)


def batch(n: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(n, 1, 8, 8, generator=generator) for _ in range(2))
    return {"input": x, "corrupted": x + noise}


class Flat(Encoder, Decoder):
    """Copies: as an encoder, or back to an image."""

    num_features = in_features = 64

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.ndim == 4 else x.view(-1, 1, 8, 8)


def test_equals_the_slow_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    errors = [(p - t) ** 2 for p, t in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)]
    assert reconstruction_error(a, b).item() == pytest.approx(sum(errors) / len(errors), rel=1e-12)
    assert reconstruction_error(b + 3, b).item() == pytest.approx(9, rel=1e-12)


def test_the_target_is_the_clean_image() -> None:
    """A network that copies what it sees is left with the power of the noise; with a noisy target it would be
    perfect.
    """
    example = batch()
    copier = Autoencoder(Flat(), Flat(), optimizer=sgd)
    noise = (example["corrupted"] - example["input"]).square().mean()
    terms = copier.losses(example)
    torch.testing.assert_close(terms["loss"], noise)
    assert torch.equal(terms["loss"], terms["mse_noisy"])
    assert copier.losses({"input": example["input"]})["loss"] == 0  # plain: copying is what is asked for


def test_the_encoder_sees_the_damaged_image_and_nothing_else() -> None:
    net, example = module(), batch()
    other = {**example, "input": torch.randn(4, 1, 8, 8)}
    assert torch.equal(net.reconstruct(example), net.reconstruct(other))
    assert not torch.equal(net.reconstruct(example), net.reconstruct({"input": example["input"]}))


def test_features_are_of_the_clean_image() -> None:
    net, example = module(), batch()
    assert torch.equal(net.embed(example["input"]), net.encoder(example["input"]))


def test_validation_draws_the_same_noise_every_time_and_bank_and_features_have_none(tmp_path: Any) -> None:
    """Noise at validation belongs to the loss alone; noise that changes with each validation would move its
    curve.
    """
    seen: list[dict[str, Tensor]] = []

    class Watched(Autoencoder):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
            out = super().validation_step(batch, batch_idx, dataloader_idx)
            assert torch.equal(out["features"], self.encoder(batch["input"]))
            assert ("corrupted" in batch) == (dataloader_idx == 0)
            if dataloader_idx == 0 and batch_idx == 0:
                seen.append(batch)
            return out

    torch.manual_seed(0)
    net = Watched(MLPEncoder(64, (12,)), MLPDecoder(12, (16,), 8), optimizer=sgd)
    data = Digits(views=GaussianNoise(), batch_size=64)
    trainer = trainer_for(tmp_path, max_epochs=2, limit_train_batches=1, limit_val_batches=2)
    trainer.fit(net, data)
    assert torch.equal(seen[0]["corrupted"], seen[1]["corrupted"])
    assert {"val/mse_clean", "val/mse_noisy", "val/loss"} <= trainer.callback_metrics.keys()


def test_half_precision_errors_are_summed_in_float32() -> None:
    a, b = (
        torch.full((4, 3, 64, 64), 300.0, dtype=torch.float16),
        torch.zeros(4, 3, 64, 64, dtype=torch.float16),
    )
    loss = reconstruction_error(a, b)  # 300^2 is more than float16 holds
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(90_000)


def test_halves_of_a_batch_average_to_the_whole() -> None:
    net, example = module(), batch()
    halves = [net.losses({k: v[i : i + 2] for k, v in example.items()})["loss"] for i in (0, 2)]
    torch.testing.assert_close(sum(halves) / 2, net.losses(example)["loss"])


def test_it_removes_noise_from_digits() -> None:
    """A hundred steps beat doing nothing on images it has not seen."""
    torch.manual_seed(0)
    net = Autoencoder(MLPEncoder(64, (128, 64)), MLPDecoder(64, (128,), 8), optimizer=sgd)
    data = Digits(views=GaussianNoise(0.3))
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for step in range(100):
        optimizer.zero_grad()
        net.losses(batch_of(data, 256, draw=step))["loss"].backward()
        optimizer.step()
    terms = net.eval().losses(batch_of(data, 256, split="val"))
    assert terms["loss"] < 0.75 * terms["mse_noisy"]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"decoder.in_features must be the encoder's num_features \(12\), got 13"
    ):
        Autoencoder(MLPEncoder(64, (12,)), MLPDecoder(13, (16,), 8), optimizer=sgd)
    net = Autoencoder(MLPEncoder(64, (12,)), MLPDecoder(12, (16,), 1), optimizer=sgd)
    with pytest.raises(ValueError, match=r"the decoder gives \(1, 1, 1\) for images of \(1, 8, 8\)"):
        net.losses(batch())


def test_any_encoder_of_vectors_will_do() -> None:
    net = Autoencoder(
        TimmEncoder("vit_tiny_patch16_224", 32, 16), VectorDecoder(192, 4, 32, (16, 8)), optimizer=sgd
    )
    x = torch.randn(2, 3, 32, 32)
    assert net.reconstruct({"input": x}).shape == x.shape


@pytest.mark.parametrize(
    ("map_size", "image_size", "channels"), [(7, 28, (8, 8, 4)), (4, 30, (8, 8, 8, 4)), (8, 8, (4,))]
)
def test_vector_decoder_gives_the_size_it_is_asked_for(
    map_size: int, image_size: int, channels: tuple[int, ...]
) -> None:
    net = VectorDecoder(5, map_size, image_size, channels, 2)
    assert net(torch.randn(3, 5)).shape == (3, 2, image_size, image_size)


def test_every_latent_reaches_every_pixel_of_the_vector_decoder() -> None:
    net = VectorDecoder(5, 2, 8, (8, 8, 8), 1).eval()
    z = torch.randn(1, 5)
    moved = net(z + torch.eye(5)) - net(z)  # one latent at a time
    assert (moved.abs() > 0).flatten(1).float().mean() > 0.9


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MLPEncoder(0), "in_features must be at least 1, got 0"),
        (lambda: MLPEncoder(4, ()), "hidden must be at least one width of 1 or more, got"),
        (lambda: MLPEncoder(4, (3, 0)), r"hidden must be at least one width of 1 or more, got \(3, 0\)"),
        (lambda: MLPDecoder(0), "in_features must be at least 1, got 0"),
        (lambda: MLPDecoder(2, (-1,)), r"hidden must be at least 1, got \(-1,\)"),
        (lambda: MLPDecoder(image_size=0), "image_size must be at least 1, got 0"),
        (lambda: VectorDecoder(out_channels=0), "out_channels must be at least 1, got 0"),
        (
            lambda: VectorDecoder(map_size=9, image_size=8),
            r"image_size must be at least map_size \(9\), got 8",
        ),
        (lambda: VectorDecoder(channels=()), "channels must be at least one width of 1 or more, got"),
        (
            lambda: VectorDecoder(channels=(4, 0)),
            r"channels must be at least one width of 1 or more, got \(4, 0\)",
        ),
    ],
)
def test_bad_knobs_of_the_networks(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
