"""Denoising and plain autoencoders (Vincent et al. 2008, https://dl.acm.org/doi/10.1145/1390156.1390294).

An encoder maps a damaged image to a vector, and a decoder maps that to the clean image. To undo the damage,
the vector has to capture what the images have in common; the model learns to map a damaged image to a likely
one (Alain and Bengio 2012, https://arxiv.org/abs/1211.4246). Without damage it is a plain autoencoder, whose
vector must be narrower than the image; otherwise it learns to copy.

Differs from the paper: squared error instead of cross entropy, networks of any depth trained jointly instead
of layer by layer, and no shared weights between encoder and decoder.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from datamodules.base import Batch
from datamodules.checks import check
from datamodules.errors import ConfigError
from sslmodules.base import SSLModule, full_precision
from sslmodules.networks.decoder import Decoder
from sslmodules.networks.encoder import Encoder, require


def reconstruction_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over all values of the batch, in float32 or better.

    Args:
        prediction: (B, C, H, W).
        target: (B, C, H, W), the CLEAN image.

    Returns:
        Scalar.

    Raises:
        ValueError: the shapes differ (broadcasting would hide that).
    """
    if prediction.shape != target.shape:
        raise ConfigError(
            f"the decoder gives {tuple(prediction.shape[1:])} for images of {tuple(target.shape[1:])}"
        )
    return (full_precision(prediction) - full_precision(target)).square().mean()


class Autoencoder(SSLModule):
    """Autoencoder: image to vector to image; denoising if the data's views damage the encoder's input.

    It denoises with GaussianNoise, SaltAndPepper or MaskingNoise as ``data.views``, and is plain without.
    Args:
        encoder: (B, C, H, W) -> (B, num_features).
        decoder: (B, num_features) -> (B, C, H, W), unbounded: the image in standardized units.
        **kwargs: ``SSLModule``'s.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require(decoder, Decoder, "decoder")
        width, takes = encoder.num_features, decoder.in_features
        check(takes == width, "decoder.in_features", f"the encoder's num_features ({width})", takes)
        self.encoder, self.decoder = encoder, decoder

    def reconstruct(self, batch: Batch) -> Tensor:
        """(B, C, H, W) images before the damage, from ``corrupted``, or from ``input`` without one."""
        return self.decoder(self.encoder(batch.get("corrupted", batch["input"])))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        x = batch["input"]
        terms = {"loss": reconstruction_error(self.reconstruct(batch), x)}
        if "corrupted" in batch:
            terms["mse_noisy"] = reconstruction_error(
                batch["corrupted"], x
            )  # the error of returning the damaged image
            if not self.training:  # probes use clean images: does the network handle those?
                terms["mse_clean"] = reconstruction_error(self.reconstruct({"input": x}), x)
        return terms
