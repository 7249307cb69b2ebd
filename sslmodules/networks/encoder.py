"""The base class of encoders, the type of every method's first argument.

``Encoder`` turns a batch into features (B, D). A method that needs more, such as a feature map or a vector
for each token, requires one of its subclasses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.audio.mel import valid_frames
from datamodules.checks import check, check_at_least
from datamodules.errors import ConfigError
from datamodules.text.tokenizer import PAD
from datamodules.transforms.tokens import segments_of
from runtime.construction import Recorded
from runtime.discovery import below
from runtime.optional import optional


class Encoder(Recorded, nn.Module, ABC):
    """A network from a batch of samples to their features.

    Attributes:
        num_features: D, the width of the features.
        channels_last: its blocks give maps (B, H, W, D) instead of (B, D, H, W).
        vocab_size: number of known tokens; None if ``input`` is not tokens.
        in_channels: C of the accepted images; None if unknown.
        in_features: accepted number of values per sample, or per step of a sequence; None if any number is
            accepted.
    """

    num_features: int
    channels_last: bool = False
    in_channels: int | None = None
    in_features: int | None = None
    vocab_size: int | None = None

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """``input`` of a batch, such as (B, C, H, W) images or (B, T) tokens -> (B, D)."""

    @property
    def token_width(self) -> int:
        """Width of a vector of ``tokens``."""
        return self.num_features

    def published_state(self) -> dict[str, Tensor]:
        """The weights under the names used by the library that the network comes from."""
        state = dict(self.state_dict())
        wrapped = all(name.startswith("net.") for name in state)
        return {name.removeprefix("net.") if wrapped else name: value for name, value in state.items()}

    def library_code(self) -> str:
        """Python code that builds the network for the weights of ``published_state``, as ``model``.

        It uses the library that the network comes from, or else this project.
        """
        given = self.__dict__["_arguments"]
        if given is None or any(isinstance(value, dict) for value in given.values()):
            raise ConfigError(
                f"it is not known how {type(self).__name__} was built: export it with --format pt2"
            )
        options = ", ".join(f"{name}={value!r}" for name, value in given.items())
        name = type(self).__name__
        return f"from sslmodules.networks import {name}\n\nmodel = {name}({options})"

    def load_published(self, state: dict[str, Tensor]) -> None:
        """Load all or some of the weights, under the names of ``published_state``."""
        wrapped = all(name.startswith("net.") for name in self.state_dict())
        own = {f"net.{name}" if wrapped else name: value for name, value in state.items()}
        self.load_state_dict(own, strict=False)

    @optional
    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``input`` -> vectors of tokens or positions (B, N, D), and a mask (B, N) of those not padding.

        An encoder of images has no way to tell padding from black pixels: ``MapEncoder`` is told the length.
        """
        raise NotImplementedError

    @optional
    def block_list(self) -> list[nn.Module]:
        """The blocks from input to output; the output of each module is that of its block."""
        raise NotImplementedError

    @optional
    def to_transformers(self) -> Any:
        """The same network as a ``PreTrainedModel`` of the ``transformers`` library, in eval mode."""
        raise NotImplementedError


class WrappedEncoder(Encoder):
    """Any torch module as an encoder.

    Args:
        net: a batch of samples -> (B, num_features), or a map with that many values once flattened.
        num_features: D.

    Raises:
        ConfigError: ``num_features`` is below 1, or (at the first batch) differs from the output of ``net``.
    """

    def __init__(self, net: nn.Module, num_features: int) -> None:
        super().__init__()
        check_at_least(1, num_features=num_features)
        self.net, self.num_features = net, num_features

    def forward(self, x: Tensor) -> Tensor:
        h = self.net(x).flatten(1)
        width = h.shape[1]
        expected = f"the output width of {type(self.net).__name__} ({width})"
        check(width == self.num_features, "num_features", expected, self.num_features)
        return h


class MapEncoder(Encoder, ABC):
    """An image encoder that also gives its last feature map, for a convolutional decoder."""

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D', h, w); D' is ``num_features`` if the features are the map's mean."""

    def tokens(self, x: Tensor, length: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Positions of the map, row by row, and which of them are not padding.

        Args:
            x: (B, C, H, W).
            length: (B,) columns of each sample before its padding; None = there is no padding.

        Returns:
            (B, h * w, D'), and a mask (B, h * w) of the positions that begin before the padding.
        """
        maps = self.forward_features(x)  # (B, D', h, w)
        h, w = maps.shape[2:]
        length = torch.full_like(x[:, 0, 0, 0], x.shape[3]) if length is None else length
        column = torch.arange(w, device=x.device) * x.shape[3]  # where it begins, times w
        return maps.flatten(2).transpose(1, 2), (column < length[:, None] * w).repeat(1, h)


class PatchEncoder(MapEncoder, ABC):
    """An image encoder that can encode some patches without the others.

    Attributes:
        in_channels: C of the image.
        patch_size: side of a patch in pixels.
        grid: rows and columns of patches of an image.
    """

    in_channels: int
    patch_size: int
    grid: tuple[int, int]

    @abstractmethod
    def forward_visible(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """Class token and patch tokens, computed from the given patches only.

        Args:
            x: (B, C, H, W).
            visible: (B, K) int64, patches to encode, numbered row by row; None = all.

        Returns:
            (B, 1 + K, D), the class token first, then the patches in the order of ``visible``.
        """

    @abstractmethod
    def forward_masked(self, x: Tensor, hidden: Tensor, mask_token: Tensor) -> Tensor:
        """Class token and all patch tokens, where a mask token takes the place of hidden patches.

        Args:
            x: (B, C, H, W).
            hidden: (B, N) bool, True = hidden; patches numbered row by row.
            mask_token: (1, 1, D), the method's parameter; a hidden patch keeps its position.

        Returns:
            (B, 1 + N, D), the class token first.
        """


class TokenEncoder(Encoder, ABC):
    """A text encoder that gives a vector for each token.

    Attributes:
        vocab_size: V, number of known tokens.
        token_embedding: (V, D) token table, for a tied decoder.
    """

    vocab_size: int

    @property
    @abstractmethod
    def token_embedding(self) -> Tensor: ...

    @abstractmethod
    def forward_tokens(self, tokens: Tensor, segment: Tensor) -> Tensor:
        """Tokens (B, T) and their segments (B, T) in {0, 1} -> (B, T, D)."""

    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) int64 -> (B, T, D); padding is token 0."""
        return self.forward_tokens(x, segments_of(x)), x != PAD


class SequenceEncoder(Encoder, ABC):
    """A causal network over a sequence; its features are the mean of its states."""

    @abstractmethod
    def states(self, x: Tensor) -> Tensor:
        """(B, T, ...) -> (B, T, D); state t depends on steps 0..t only."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, ...) -> (B, D): the mean over all steps."""
        return self.states(x).mean(1)

    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, ...) -> (B, T, D)."""
        states = self.states(x)
        return states, torch.ones(states.shape[:2], dtype=torch.bool, device=x.device)


class FrameEncoder(SequenceEncoder, ABC):
    """A causal network over audio frames.

    Attributes:
        in_features: values of a frame, the number of mel bands.
    """

    in_features: int

    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, M, T) log-mel, a batch's ``input``, -> (B, T, D); padding frames are 0 in every band."""
        states, length = self.states(x[:, 0].transpose(1, 2)), valid_frames(x)
        return states, torch.arange(states.shape[1], device=x.device) < length[:, None]


class MaskedFrameEncoder(Encoder, ABC):
    """A bidirectional network over audio frames, some of which can be hidden.

    Attributes:
        in_features: values of a frame, the number of mel bands.
    """

    in_features: int

    @abstractmethod
    def forward_frames(self, frames: Tensor, valid: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Frames (B, T, M), masks (B, T) of those not padding and of those hidden -> (B, T, D)."""

    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, M, T) log-mel, a batch's ``input``, -> (B, T, D); padding frames are 0 in every band."""
        frames = x[:, 0].transpose(1, 2)
        valid = torch.arange(frames.shape[1], device=x.device) < valid_frames(x)[:, None]  # (B, T)
        return self.forward_frames(frames, valid), valid

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, M, T) -> (B, D): the mean over the frames that are not padding."""
        states, valid = self.tokens(x)
        return (states * valid[:, :, None]).sum(1) / valid.sum(1).clamp(min=1)[:, None]


class CausalEncoder(SequenceEncoder, ABC):
    """A causal network over tokens.

    Attributes:
        vocab_size: V, number of known tokens.
        block_size: longest context; None = unlimited.
        token_embedding: the token table, whose weight (V, D) the output layer shares.
    """

    vocab_size: int
    block_size: int | None
    token_embedding: nn.Embedding

    def states(self, x: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, D); state t depends on tokens 0..t only."""
        return self.resume(x)[0]

    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) int64 -> (B, T, D), without the last token of a sample one longer than a block."""
        full = self.block_size is not None and x.shape[1] == self.block_size + 1
        return super().tokens(x[:, :-1] if full else x)

    @abstractmethod
    def resume(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Like ``states``, continuing from ``state``.

        Args:
            tokens: (B, T).
            state: returned by an earlier call, None to start.

        Returns:
            Hidden states (B, T, D), and the state after them.
        """


def require(network: nn.Module, kind: type, option: str = "encoder") -> None:
    """Raise ConfigError, listing suitable networks, unless ``network`` is of the required kind."""
    if not isinstance(network, kind):
        need = (kind.__doc__ or "").split("\n")[0].rstrip(".")
        need = need[:1].lower() + need[1:]
        raise ConfigError(
            f"{option} must be {need} ({kind.__name__}: {', '.join(below([kind.__name__]))}), got "
            f"{type(network).__name__}",
            option,
        )
