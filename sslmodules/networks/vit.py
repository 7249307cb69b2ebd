"""A vision transformer that can encode a subset of its patches, and its decoder."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.audio.mel import valid_frames
from datamodules.checks import check, check_at_least
from datamodules.errors import ConfigError
from sslmodules.networks.encoder import PatchEncoder


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Images (B, C, H, W) -> patches (B, N, p * p * C), row by row.

    Within a patch, pixels are row by row with channels last.
    """
    b, c, height, width = images.shape
    h, w, p = height // patch_size, width // patch_size, patch_size
    return images.reshape(b, c, h, p, w, p).permute(0, 2, 4, 3, 5, 1).reshape(b, h * w, p * p * c)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """Inverse of ``patchify``: patches (B, h * w, p * p * C) of an (h, w) grid -> (B, C, h * p, w * p)."""
    b, (h, w), p = len(patches), grid, patch_size
    return patches.reshape(b, h, w, p, p, -1).permute(0, 5, 1, 3, 2, 4).reshape(b, -1, h * p, w * p)


def sounding_patches(x: Tensor, patch_size: int, whole: bool) -> Tensor:
    """Mask of the patches of log-mel (B, 1, M, T) that contain audio, frequency by frequency: (B, N) bool.

    Args:
        x: standardized, padding frames exactly 0.
        patch_size: p; the grid has M / p rows and T / p columns.
        whole: True requires audio in all frames of a patch, False in at least one.
    """
    rows, columns = x.shape[2] // patch_size, x.shape[3] // patch_size
    frames = valid_frames(x)
    length = frames // patch_size if whole else (frames + patch_size - 1) // patch_size  # in columns
    sounding = torch.arange(columns, device=x.device) < length[:, None]  # (B, columns)
    return sounding.repeat(1, rows)


def sincos_positions(
    grid: tuple[int, int],
    width: int,
    reference: tuple[int, int] | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Fixed sine-cosine embedding of grid positions, as in the official MAE and MoCo v3 code.

    The first half of the dimensions encodes the column, the second half the row; within a half sines come
    before cosines, at ``width / 4`` frequencies from 1 down to nearly 1 / 10,000 per patch.

    Args:
        grid: (rows h, columns w).
        width: D, divisible by 4.
        reference: grid that this one is stretched over (small crops in a network for large images); None =
            itself.
        device: device of the result.

    Returns:
        (h * w, D) float32, row by row.
    """
    frequency = 10_000.0 ** -(torch.arange(width // 4, device=device) / (width // 4))  # (D / 4,)

    def encode(count: int, span: int) -> Tensor:
        place = (torch.arange(count, device=device) + 0.5) * (
            span / count
        ) - 0.5  # 0, 1, 2, ... if span is count
        angle = place[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=1)  # (count, D / 2)

    (h, w), (span_h, span_w) = grid, reference or grid
    column = encode(w, span_w)[None].expand(h, -1, -1)  # (h, w, D / 2)
    row = encode(h, span_h)[:, None].expand(-1, w, -1)
    return torch.cat([column, row], dim=2).flatten(0, 1)


def _check_blocks(prefix: str, width: int, depth: int, heads: int) -> None:
    check_at_least(1, **{f"{prefix}width": width, f"{prefix}depth": depth, f"{prefix}heads": heads})
    check(width % 4 == 0, f"{prefix}width", "divisible by 4 (sine and cosine of row and column)", width)
    check(width % heads == 0, f"{prefix}heads", f"a divisor of {prefix}width ({width})", heads)


def _blocks(width: int, depth: int, heads: int) -> nn.Sequential:
    norm: Any = partial(nn.LayerNorm, eps=1e-6)  # the original ViT's epsilon
    return nn.Sequential(*[Block(width, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth)])


def _initialize(module: nn.Module) -> None:
    """MAE's initialization of linear layers, including the patch projection: Glorot uniform, zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class ViTEncoder(PatchEncoder):
    """A vision transformer from timm's blocks with class token and sine-cosine positions; default ViT-B/16.

    Other image sizes than ``image_size`` also work if patches tile them; positions are then stretched over
    the grid (learned ones by bicubic interpolation).

    Args:
        image_size: height and width in pixels; one number for squares.
        patch_size: side of a patch in pixels; must divide ``image_size``.
        in_channels: channels of the image.
        width: width of the tokens, which is ``num_features``; divisible by 4.
        depth: number of blocks.
        heads: number of attention heads; must divide ``width``.
        learned_positions: learn the positions of patches, from a deviation of 0.02, as DINO and iBOT do. In
            small networks, fixed ones are larger than the patches' content.

    Attributes:
        grid: rows and columns of patches.
        num_features: ``width``.

    Raises:
        ValueError: an option is out of range, or patches do not tile the image.
    """

    positions: Tensor

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        learned_positions: bool = False,
    ) -> None:
        super().__init__()
        height, across = (image_size, image_size) if isinstance(image_size, int) else image_size
        _check_blocks("", width, depth, heads)
        check_at_least(1, in_channels=in_channels, patch_size=patch_size)
        divides = height >= 1 and across >= 1 and height % patch_size == 0 and across % patch_size == 0
        check(divides, "patch_size", f"a divisor of image_size ({height}x{across})", patch_size)
        self.image_size, self.patch_size, self.in_channels = (height, across), patch_size, in_channels
        self.grid = (height // patch_size, across // patch_size)
        self.num_features = width
        self.patch_embed = nn.Linear(patch_size**2 * in_channels, width)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        positions = sincos_positions(self.grid, width)
        if learned_positions:
            self.positions = nn.Parameter(positions)
        else:
            self.register_buffer("positions", positions, persistent=False)
        self.equal_buffers = () if learned_positions else ("positions",)  # DDP leaves these alone
        self.blocks = _blocks(width, depth, heads)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        _initialize(self)
        nn.init.normal_(self.class_token, std=0.02)
        if learned_positions:
            nn.init.trunc_normal_(self.positions, std=0.02)

    def published_state(self) -> dict[str, Tensor]:
        """The weights as timm's ``VisionTransformer`` names them, the positions as ``pos_embed``."""
        state = dict(self.state_dict())
        state.pop("positions", None)  # learned ones
        kernel = state.pop("patch_embed.weight").unflatten(1, (self.patch_size, self.patch_size, -1))
        positions = self.positions.detach()
        places = torch.cat([torch.zeros_like(positions[:1]), positions])  # the class token has none
        return {
            "cls_token": state.pop("class_token"),
            "pos_embed": places[None],
            "patch_embed.proj.weight": kernel.permute(0, 3, 1, 2).contiguous(),
            "patch_embed.proj.bias": state.pop("patch_embed.bias"),
            **state,
        }

    def library_code(self) -> str:
        size, depth = tuple(n * self.patch_size for n in self.grid), len(self.blocks)
        heads = next(part.num_heads for part in self.modules() if isinstance(part, Attention))
        return (
            "from timm.models import VisionTransformer\n\n"
            f"model = VisionTransformer(\n    img_size={size}, patch_size={self.patch_size}, "
            f"in_chans={self.in_channels}, embed_dim={self.num_features}, depth={depth}, num_heads={heads}, "
            "num_classes=0\n)"
        )

    def load_published(self, state: dict[str, Tensor]) -> None:
        """Load weights under timm's names. ``pos_embed`` is ignored if positions are fixed; otherwise the
        class token's is added to the token.
        """
        own = {name: value for name, value in state.items() if name != "pos_embed"}
        if isinstance(self.positions, nn.Parameter) and (places := state.get("pos_embed")) is not None:
            own["positions"] = places[0, 1:]
            own["cls_token"] = own.get("cls_token", self.class_token.detach()) + places[:, :1]
        renamed = {"cls_token": "class_token", "patch_embed.proj.bias": "patch_embed.bias"}
        if (kernel := own.pop("patch_embed.proj.weight", None)) is not None:
            own["patch_embed.weight"] = kernel.permute(0, 2, 3, 1).flatten(1)
        self.load_state_dict({renamed.get(name, name): value for name, value in own.items()}, strict=False)

    def _grid_of(self, x: Tensor) -> tuple[int, int]:
        height, width = x.shape[2:]
        if height % self.patch_size or width % self.patch_size:
            raise ConfigError(f"patch_size {self.patch_size} does not divide an image of {height}x{width}")
        return height // self.patch_size, width // self.patch_size

    def forward_visible(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """Class token and tokens of the given patches; no other pixel is used.

        Args:
            x: (B, C, H, W).
            visible: (B, K) int64, patches to encode, numbered row by row; None = all.

        Returns:
            (B, 1 + K, D), the class token first, then the patches in the order of ``visible``.
        """
        positions = self._positions_of(x)
        patches = patchify(x, self.patch_size)  # (B, N, p * p * C)
        if visible is not None:
            patches = patches.gather(
                1, visible[:, :, None].expand(-1, -1, patches.shape[2])
            )  # (B, K, p * p * C)
            positions = positions[visible]  # (B, K, D): each patch keeps its position in the image
        return self._encode(self.patch_embed(patches) + positions)

    def forward_masked(self, x: Tensor, hidden: Tensor, mask_token: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1 + N, D), with ``mask_token`` (1, 1, D) for the patches ``hidden`` (B, N)."""
        patches = self.patch_embed(patchify(x, self.patch_size))  # (B, N, D)
        patches = torch.where(hidden[:, :, None], mask_token.to(patches.dtype), patches)
        return self._encode(patches + self._positions_of(x))

    def _encode(self, tokens: Tensor) -> Tensor:
        """Patch tokens with their positions (B, K, D) -> (B, 1 + K, D)."""
        class_token = self.class_token.expand(tokens.shape[0], -1, -1).to(tokens.dtype)  # without position
        return self.norm(self.blocks(torch.cat([class_token, tokens], dim=1)))

    def _positions_of(self, x: Tensor) -> Tensor:
        grid = self._grid_of(x)
        if grid == self.grid:
            return self.positions
        if isinstance(self.positions, nn.Parameter):
            places = self.positions.T.unflatten(1, self.grid)[None]  # (1, D, h, w)
            return F.interpolate(places, grid, mode="bicubic").flatten(2)[0].T
        return sincos_positions(grid, self.num_features, self.grid, x.device).to(self.positions.dtype)

    def block_list(self) -> list[nn.Module]:
        return list(self.blocks)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, h, w): the patch tokens, for a decoder."""
        return self.forward_visible(x)[:, 1:].transpose(1, 2).unflatten(2, self._grid_of(x))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D): the class token after the last norm."""
        return self.forward_visible(x)[:, 0]


class _FromTokens(nn.Module):
    """The parts of a network that predicts a vector for each of some patches from the tokens of others.

    Args:
        grid: rows and columns of patches.
        in_width: width of the given tokens.
        out_features: values to predict for each patch.
        width: width of this network's tokens; divisible by 4.
        depth: number of blocks.
        heads: number of attention heads; must divide ``width``.

    Raises:
        ValueError: an option is out of range.
    """

    equal_buffers = ("positions",)
    positions: Tensor
    prefix: str  # of the options in the method

    def __init__(
        self, grid: tuple[int, int], in_width: int, out_features: int, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        _check_blocks(self.prefix, width, depth, heads)
        self.embed = nn.Linear(in_width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.register_buffer("positions", sincos_positions(grid, width), persistent=False)
        self.blocks = _blocks(width, depth, heads)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, out_features)
        _initialize(self)
        nn.init.normal_(self.mask_token, std=0.02)


class PatchDecoder(_FromTokens):
    """Predicts a vector for every patch from the tokens of some; a learned mask token replaces the others."""

    prefix = "decoder_"

    def forward(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Class token and tokens of the patches ``visible`` (B, K), together (B, 1 + K, in_width) -> (B, N,
        out_features).
        """
        x = self.embed(tokens)
        b, width = len(x), x.shape[2]
        places = self.mask_token.to(x.dtype).expand(b, len(self.positions), -1)  # (B, N, width)
        places = places.scatter(
            1, visible[:, :, None].expand(-1, -1, width), x[:, 1:]
        )  # each token goes to the position of its patch
        x = torch.cat([x[:, :1].to(self.positions.dtype), places + self.positions], dim=1)
        return self.predict(self.norm(self.blocks(x))[:, 1:])


class PatchPredictor(_FromTokens):
    """Predicts the tokens of some patches of an image from those of others (I-JEPA)."""

    prefix = "predictor_"

    def forward(self, tokens: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        """Predict each block of targets separately, from the whole context.

        Args:
            tokens: (B, K, in_width) of the patches ``context``.
            context: (B, K) int64.
            targets: (B, M, L) int64, patches of each of M blocks.

        Returns:
            (B, M, L, out_features).
        """
        m, k = targets.shape[1], context.shape[1]
        seen = (self.embed(tokens) + self.positions[context]).repeat_interleave(m, 0)  # (B * M, K, width)
        asked = self.mask_token + self.positions[targets.flatten(0, 1)]  # (B * M, L, width)
        x = self.norm(self.blocks(torch.cat([seen, asked.to(seen.dtype)], dim=1)))
        return self.predict(x[:, k:]).unflatten(0, (-1, m))


@torch.no_grad()
def class_attention(encoder: nn.Module, x: Tensor) -> Tensor | None:
    """Attention of the class token in the last block (Caron et al. 2021, https://arxiv.org/abs/2104.14294).
    Args:
        encoder: a ``ViTEncoder``, or a ``TimmEncoder`` of a plain ViT; in eval mode.
        x: (B, C, H, W).

    Returns:
        (B, heads, h, w): share of the attention on each patch; other tokens are left out, so a map sums to at
        most 1. None for an encoder without a class token, or for images with other channels.
    """
    kinds = (ViTEncoder, VisionTransformer)
    vit: Any = next((part for part in encoder.modules() if isinstance(part, kinds)), None)
    if isinstance(vit, ViTEncoder):
        channels, patch, prefix = vit.in_channels, (vit.patch_size, vit.patch_size), 1
    elif (
        isinstance(vit, VisionTransformer)
        and vit.has_class_token
        and isinstance(vit.blocks[-1].attn, Attention)
    ):
        channels, patch = vit.patch_embed.proj.in_channels, vit.patch_embed.patch_size
        prefix = vit.num_prefix_tokens
    else:
        return None
    if x.shape[1] != channels:
        return None
    attention = vit.blocks[-1].attn
    seen: list[Tensor] = []
    handle = attention.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        encoder(x)
    finally:
        handle.remove()
    b, t, _ = seen[0].shape
    q, k, _ = (
        attention.qkv(seen[0]).reshape(b, t, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    )  # (B, heads, T, d)
    q, k = attention.q_norm(q[:, :, :1]).float(), attention.k_norm(k).float()
    shares = (q @ k.transpose(2, 3) * attention.scale).softmax(-1)[:, :, 0, prefix:]  # (B, heads, N)
    return shares.unflatten(2, (x.shape[2] // patch[0], x.shape[3] // patch[1]))
