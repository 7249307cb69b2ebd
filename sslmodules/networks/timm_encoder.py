"""Any timm model as an encoder."""

from __future__ import annotations

import os
import socket
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from timm.layers import PatchEmbed
from torch import Tensor, nn

from datamodules.checks import check
from datamodules.errors import ConfigError
from sslmodules.networks.encoder import MapEncoder


def patch_layer(encoder: nn.Module) -> PatchEmbed | None:
    """The patch embedding layer of a timm ViT; None for other networks."""
    return next((part for part in encoder.modules() if isinstance(part, PatchEmbed)), None)


def check_weights(name: str) -> None:
    """Raise ConfigError unless timm's weights of a model are cached or can be downloaded.

    Without a network, timm would retry for minutes.
    """
    published = timm.get_pretrained_cfg(name)
    if published is None or not (published.hf_hub_id or published.url):
        raise ConfigError(f"pretrained must be false: timm has published no weights of {name!r}")
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if published.hf_hub_id:
        files = ("model.safetensors", "pytorch_model.bin")
        here = any(isinstance(try_to_load_from_cache(published.hf_hub_id, file), str) for file in files)
    else:
        address = str(published.url)
        here = (Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(address).path).name).is_file()
    if here or getproxies():
        return
    place = urlsplit(address)
    port = place.port or (80 if place.scheme == "http" else 443)
    try:
        socket.create_connection((place.hostname or "", port), timeout=5).close()
    except OSError as error:
        raise ConfigError(
            f"pretrained: the weights of {name!r} are not on this machine, and {place.hostname} cannot be "
            f"reached ({error.strerror or error}): give pretrained false, download them once with a network, "
            f"or copy {_file_of(published)} here and give --init_from FILE"
        ) from None


def _file_of(published: Any) -> str:
    """URL of the file of published weights."""
    if published.hf_hub_id:
        return f"https://huggingface.co/{published.hf_hub_id}/resolve/main/model.safetensors"
    return str(published.url)


class TimmEncoder(MapEncoder):
    """A timm model by name, without its classifier.

    On the command line, the name is enough: ``--model.encoder vit_tiny_patch16_224``.
    Args:
        name: timm's name, with or without the tag of its weights (``vit_small_patch16_224``,
            ``resnet50.a1_in1k``).
        image_size: height and width in pixels, for models with a fixed input size (ViTs); None = the model's
            default.
        patch_size: patch size of a ViT in pixels; None = the model's default.
        in_channels: channels of the image.
        any_size: a ViT also accepts other image sizes, with its position embedding resized to each: for views
            of several sizes (multi-crop of SwAV and DINO). Sizes must be multiples of the patch size.
        pretrained: start from timm's published weights, downloaded if they are not cached.

    Raises:
        ValueError: timm has no such model (the message gives the three nearest names), the model does not
            support an option, or its published weights are unavailable.
    """

    def __init__(
        self,
        name: str,
        image_size: int | None = None,
        patch_size: int | None = None,
        in_channels: int = 3,
        any_size: bool = False,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        if not timm.is_model(name):
            near = get_close_matches(name, timm.list_models(), n=3)
            raise ConfigError(
                f"name must be a timm model, got {name!r}" + (f"; nearest: {', '.join(near)}" if near else "")
            )
        try:
            timm.get_pretrained_cfg(name)
        except RuntimeError as error:  # a tag that the model does not have
            raise ConfigError(f"name {name!r}: {error}") from None
        if image_size and patch_size:
            check(
                image_size % patch_size == 0,
                "patch_size",
                f"a divisor of image_size ({image_size})",
                patch_size,
            )
        asked = {"image_size": ("img_size", image_size), "patch_size": ("patch_size", patch_size)}
        asked["any_size"] = ("dynamic_img_size", True if any_size else None)
        sizes: dict[str, Any] = {theirs: value for theirs, value in asked.values() if value is not None}
        if pretrained:
            check_weights(name)
        try:
            self.net = timm.create_model(
                name, pretrained=pretrained, num_classes=0, in_chans=in_channels, **sizes
            )
        except TypeError as error:
            refused = [ours for ours, (theirs, _) in asked.items() if f"'{theirs}'" in str(error)]
            if not refused:
                raise
            raise ConfigError(
                f"{refused[0]} is for ViTs, but {name!r} has no such setting: remove it from the config"
            ) from None
        self.name, self.sizes, self.in_channels = name, sizes, in_channels
        self.channels_last = getattr(self.net, "output_fmt", None) == "NHWC"  # Swin and others
        # some models have a hidden layer before the classifier, so their output is wider than the last
        # feature map
        self.num_features = int(getattr(self.net, "head_hidden_size", None) or self.net.num_features)  # type: ignore[arg-type]

    @property
    def token_width(self) -> int:
        """D' of ``forward_features``."""
        return int(self.net.num_features)  # type: ignore[arg-type]

    def library_code(self) -> str:
        options = {"num_classes": 0, "in_chans": self.in_channels, **self.sizes}
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        return f"import timm\n\nmodel = timm.create_model({self.name!r}, {given})"

    def block_list(self) -> list[nn.Module]:
        """The blocks of a ViT, or the stages of a convolutional network.

        Raises:
            ConfigError: the model has neither under a usual name.
        """
        for name in ("blocks", "stages", "layers"):
            if isinstance(found := getattr(self.net, name, None), (nn.Sequential, nn.ModuleList)):
                stages = [list(part) if isinstance(part, nn.ModuleList) else [part] for part in found]
                return [block for stage in stages for block in stage]
        if isinstance(getattr(self.net, "layer4", None), nn.Module):  # a ResNet
            return [getattr(self.net, f"layer{i}") for i in range(1, 5)]
        raise ConfigError(f"{type(self.net).__name__} of timm does not list its blocks: use another encoder")

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D', h, w): the last feature map, or the patch tokens of a ViT, for a decoder.

        D' is ``num_features``, or less for models with a hidden layer before the classifier.

        Raises:
            ValueError: timm provides no feature maps for this model.
        """
        if not hasattr(self.net, "forward_intermediates"):
            raise ConfigError(
                f"timm gives no feature map of {type(self.net).__name__}: use another encoder under a decoder"
            )
        return self.net.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[0]  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        return self.net(x)
