"""Samples and networks of GAN, and rejected settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from datamodules import Digits
from datamodules.errors import ConfigError
from sslmodules.gan import GAN, discriminator_loss, generator_loss
from sslmodules.networks import ConvEncoder, DCGANDiscriminator, DCGANGenerator
from tests.sslmodules.gans import RANGE, gan, images, sgd, state


def test_samples_come_from_the_same_noise_in_every_call_and_run() -> None:
    module = gan("batch").eval()
    before = state(module)
    few, many = module.sample(8), module.sample(70)
    assert many.shape == (70, 1, 8, 8) and torch.equal(few, module.sample(8))
    torch.testing.assert_close(
        many[:8], module.sample(64)[:8]
    )  # a convolution may sum a larger batch in another order
    assert not torch.equal(many[64:], module.sample(70)[64:])  # beyond the fixed ones it draws
    torch.testing.assert_close(module.sample(3, module.fixed_z[3:6]), module.sample(6)[3:])
    assert torch.equal(module.fixed_z, gan().fixed_z) and not many.requires_grad
    assert all(torch.equal(v, before[k]) for k, v in state(module).items())


@pytest.mark.parametrize(
    ("size", "channels", "smallest"), [(8, (16, 8), 2), (28, (16, 8), 7), (32, (16, 8, 4), 4)]
)
def test_networks_of_each_size(size: int, channels: tuple[int, ...], smallest: int) -> None:
    generator, encoder = DCGANGenerator(5, size, channels, 2), DCGANDiscriminator(2, size, channels[::-1])
    x = generator(torch.randn(3, 5))
    assert x.shape == (3, 2, size, size) and x.abs().max() <= 1
    assert generator.map_shape[1] == smallest == encoder.forward_features(x).shape[-1]
    assert encoder(x).shape == (3, encoder.num_features) == (3, 16 * smallest**2)


def test_networks_start_as_the_paper_says() -> None:
    generator, encoder = DCGANGenerator(), DCGANDiscriminator()
    for net in (generator, encoder):
        for name, p in net.named_parameters():
            if p.ndim > 1:
                assert p.mean().item() == pytest.approx(0, abs=2e-3) and p.std().item() == pytest.approx(
                    0.02, rel=0.05
                ), name
        assert all(torch.all(m.bias == 0) for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    # no norm at the generator's output nor at the discriminator's input, where they would hide what the data
    # look like
    assert [type(m) for m in generator.layers][-2:] == [nn.ConvTranspose2d, nn.Tanh]
    assert [type(m) for m in encoder.layers][:3] == [nn.Conv2d, nn.LeakyReLU, nn.Conv2d]


def test_the_generator_reaches_black_and_white_and_nothing_beyond() -> None:
    generator, data = DCGANGenerator(4, 8, (8, 4), 1, **RANGE), Digits()
    last = generator.layers[-2]
    for bias, pixel in ((-50.0, 0.0), (50.0, 1.0)):
        nn.init.constant_(last.bias, bias)
        expected = data.standardize(torch.full((1, 1, 8, 8), pixel))
        torch.testing.assert_close(generator(torch.randn(1, 4)), expected)


def test_data_that_the_generator_cannot_make_is_refused() -> None:
    with pytest.raises(ValueError, match=r"makes samples of shape \(1, 8, 8\), the data's are \(1, 28, 28\)"):
        gan().check_batch({"input": torch.zeros(2, 1, 28, 28)})
    with pytest.raises(ValueError, match=r"values are in -0.81 to 1.84, the data's in -2.10 to 3.00"):
        gan().check_batch({"input": torch.linspace(-2.1, 3.0, 128).view(2, 1, 8, 8)})
    module = gan("batch")
    before = state(module)
    module.check_batch({"input": images()})
    assert all(torch.equal(v, before[k]) for k, v in state(module).items())


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("loss", "wgan"),
        ("penalty_weight", -1.0),
        ("discriminator_steps", 0),
        ("accumulate", 0),
        ("clip_norm", 0.0),
        ("warmup_epochs", -1),
    ],
)
def test_a_bad_knob_is_named_with_its_value(knob: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{knob}.*{value}"):
        gan(**{knob: value})


def test_networks_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match=r"loss wgan_gp .* batch norm .* norm: layer"):
        gan("batch", loss="wgan_gp")
    with pytest.raises(
        ConfigError,
        match=r"^generator must be a network from noise to a sample \(Generator: DCGANGenerator\), got "
        r"Identity$",
    ):
        GAN(ConvEncoder(1), nn.Identity(), optimizer=sgd)
    for function in (
        lambda: discriminator_loss(torch.zeros(1), torch.zeros(1), "ls"),
        lambda: generator_loss(torch.zeros(1), "ls"),
    ):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="loss must be one of non_saturating, hinge, wgan_gp, got 'ls'"):
            function()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: DCGANGenerator(0), "latent_dim must be at least 1, got 0"),
        (lambda: DCGANGenerator(image_size=28), "image_size must be a multiple of 8.*got 28"),
        (lambda: DCGANGenerator(channels=()), "channels must be at least one width of 1 or more, got"),
        (
            lambda: DCGANGenerator(channels=(8, 0)),
            r"channels must be at least one width of 1 or more, got \(8, 0\)",
        ),
        (
            lambda: DCGANGenerator(mean=(0.1, 0.2)),
            r"mean must be one value or one for each of 3 channels, got \(0.1, 0.2\)",
        ),
        (lambda: DCGANGenerator(std=(0.0,)), r"std must be positive, got \(0.0,\)"),
        (lambda: DCGANDiscriminator(image_size=4), "image_size must be at least 8 for 3 channels, got 4"),
        (lambda: DCGANDiscriminator(norm="spectral"), "norm must be one of batch, layer, got 'spectral'"),  # type: ignore[arg-type]
        (
            lambda: DCGANDiscriminator(1)(torch.zeros(1, 1, 28, 28)),
            r"image_size is 32, but the images are \(28, 28\)",
        ),
    ],
)
def test_bad_knobs_of_the_networks(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()
