"""The vision transformer: places, patches, features, attention."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from timm.models import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from sslmodules.networks import ConvEncoder, ResNetEncoder, TimmEncoder, ViTEncoder, class_attention
from sslmodules.networks.equal_buffers import names_of_equal_buffers
from sslmodules.networks.vit import patchify, sincos_positions, unpatchify
from sslmodules.simclr import SimCLR


def small(**options: Any) -> ViTEncoder:
    torch.manual_seed(0)
    knobs = {
        "image_size": (6, 8),
        "patch_size": 2,
        "in_channels": 3,
        "width": 16,
        "depth": 2,
        "heads": 2,
        **options,
    }
    return ViTEncoder(**knobs)


def test_patches_are_row_by_row_with_channels_last() -> None:
    """Written out for a non-square image: patch n, row p, column q, channel c."""
    x = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    patches = patchify(x, 2)
    assert patches.shape == (2, 2 * 3, 2 * 2 * 3)
    for n in range(6):
        row, column = divmod(n, 3)
        for p in range(2):
            for q in range(2):
                for c in range(3):
                    assert torch.equal(
                        patches[:, n, (p * 2 + q) * 3 + c], x[:, c, row * 2 + p, column * 2 + q]
                    )
    assert torch.equal(unpatchify(patches, 2, (2, 3)), x)


def test_positions_are_those_of_the_official_code() -> None:
    """First half: the column. Within a half: sines, then cosines. Frequencies 10,000^(-i / (D / 4))."""
    h, w, d = 3, 5, 16
    expected = torch.empty(h * w, d, dtype=torch.float64)
    for row in range(h):
        for column in range(w):
            for half, place in enumerate((column, row)):
                for i in range(d // 4):
                    angle = place / 10_000 ** (i / (d / 4))
                    expected[row * w + column, half * d // 2 + i] = math.sin(angle)
                    expected[row * w + column, half * d // 2 + d // 4 + i] = math.cos(angle)
    torch.testing.assert_close(sincos_positions((h, w), d).double(), expected, rtol=0, atol=1e-6)


def test_positions_of_a_small_crop_are_stretched_over_the_reference() -> None:
    """Two patches over the span of four lie midway between its first and its last pair; equal grids change
    nothing.
    """
    assert torch.equal(sincos_positions((3, 5), 16, (3, 5)), sincos_positions((3, 5), 16))
    first = sincos_positions((1, 2), 8, (1, 4))[0]
    assert first[0].item() == pytest.approx(math.sin(0.5)) and first[2].item() == pytest.approx(math.cos(0.5))
    encoder = small().eval()
    assert encoder(torch.randn(2, 3, 4, 4)).shape == (2, 16)


def test_positions_are_neither_trained_nor_stored() -> None:
    encoder = small()
    assert (
        not [n for n, _ in encoder.named_parameters() if "position" in n]
        and "positions" not in encoder.state_dict()
    )


def test_the_patch_embedding_is_the_usual_convolution() -> None:
    encoder, x = small(), torch.randn(2, 3, 6, 8)
    kernel = encoder.patch_embed.weight.view(16, 2, 2, 3).permute(0, 3, 1, 2)
    expected = F.conv2d(x, kernel, encoder.patch_embed.bias, stride=2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder.patch_embed(patchify(x, 2)), expected, rtol=1e-5, atol=1e-5)


def test_initial_weights_are_those_of_the_paper() -> None:
    encoder = ViTEncoder(16, 8, width=128, depth=1, heads=4)
    for layer in (encoder.patch_embed, encoder.blocks[0].attn.qkv, encoder.blocks[0].mlp.fc1):
        bound = math.sqrt(
            6 / sum(layer.weight.shape)
        )  # uniform Glorot; the patch projection counts as a linear layer
        assert 0.99 * bound < layer.weight.abs().max() <= bound and not layer.bias.any()
    assert encoder.class_token.std().item() == pytest.approx(0.02, rel=0.25)
    assert encoder.norm.eps == encoder.blocks[0].norm1.eps == 1e-6


def test_all_patches_named_are_all_patches() -> None:
    encoder, x = small().eval(), torch.randn(2, 3, 6, 8)
    tokens = encoder.forward_visible(x)
    assert tokens.shape == (2, 1 + 12, 16)
    torch.testing.assert_close(encoder.forward_visible(x, torch.arange(12).expand(2, -1)), tokens)


def test_features() -> None:
    encoder, x = small().eval(), torch.randn(2, 3, 6, 8)
    tokens = encoder.forward_visible(x)
    assert torch.equal(encoder(x), tokens[:, 0]) and encoder.num_features == 16
    maps = encoder.forward_features(x)
    assert maps.shape == (2, 16, 3, 4)
    assert torch.equal(maps[:, :, 1, 2], tokens[:, 1 + 1 * 4 + 2])


def test_a_joint_embedding_method_takes_it() -> None:
    method = SimCLR(small(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    method.losses({"views": [torch.randn(4, 3, 6, 8), torch.randn(4, 3, 6, 8)]})["loss"].backward()
    assert not [n for n, p in method.named_parameters() if p.grad is None]


def test_learned_positions_begin_small_and_learn() -> None:
    """Fixed ones are declared equal on all ranks, which DDP leaves alone; learned ones need its gradients."""
    encoder = ViTEncoder(8, 2, width=64, depth=1, heads=2, learned_positions=True)
    assert encoder.positions.std().item() == pytest.approx(0.02, rel=0.1)
    assert names_of_equal_buffers(encoder) == [] and "positions" in encoder.state_dict()
    assert names_of_equal_buffers(small()) == ["positions"] and "positions" not in small().state_dict()
    encoder(torch.randn(2, 3, 8, 8))[:, 0].sum().backward()
    assert encoder.positions.grad is not None and (encoder.positions.grad != 0).any(1).all()


def test_learned_positions_are_interpolated_and_bound_to_their_patches() -> None:
    encoder = ViTEncoder(8, 2, width=8, depth=1, heads=2, learned_positions=True).eval()
    row = torch.tensor([0.0, 1.0, 2.0, 3.0])
    with torch.no_grad():
        encoder.positions.copy_((row[:, None] + 10 * row)[:, :, None].expand(-1, -1, 8).flatten(0, 1))
    half = encoder._positions_of(torch.zeros(1, 3, 4, 4)).view(2, 2, 8)
    assert half.shape == (2, 2, 8) and torch.equal(half[..., 0], half[..., 7])
    torch.testing.assert_close(half[1, 0] - half[0, 0], (half[0, 1] - half[0, 0]) / 10)  # rows and columns
    assert half.mean().item() == pytest.approx(encoder.positions.mean().item(), rel=1e-5)
    x, order = torch.randn(1, 3, 8, 8), torch.tensor([[3, 1, 8]])
    one, two = (encoder.forward_visible(x, o) for o in (order, order.flip(1)))
    torch.testing.assert_close(one[:, 1:], two[:, 1:].flip(1))


def test_learned_positions_go_to_timm_and_back() -> None:
    """timm gives the class token a position as well: here it is part of the token."""
    options = {"width": 16, "depth": 2, "heads": 2}
    theirs = VisionTransformer(img_size=8, patch_size=2, embed_dim=16, depth=2, num_heads=2, num_classes=0)
    ours = ViTEncoder(8, 2, **options, learned_positions=True).eval()
    theirs.eval().load_state_dict(ours.published_state())
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        theirs.pos_embed.normal_()
    ours.load_published(theirs.state_dict())
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-4, atol=1e-5)


# -------------------- attention


def slow_attention(encoder: ViTEncoder, x: Tensor) -> Tensor:
    tokens = encoder.patch_embed(patchify(x, encoder.patch_size)) + encoder.positions
    tokens = torch.cat([encoder.class_token.expand(len(x), -1, -1), tokens], 1)
    for block in encoder.blocks[:-1]:
        tokens = block(tokens)
    block = encoder.blocks[-1]
    h, d = encoder.blocks[-1].attn.num_heads, encoder.num_features
    q, k, _ = block.attn.qkv(block.norm1(tokens)).split(d, 2)
    maps = torch.empty(len(x), h, tokens.shape[1] - 1, dtype=x.dtype)
    for b in range(len(x)):
        for head in range(h):
            part = slice(head * d // h, (head + 1) * d // h)
            logits = torch.stack(
                [torch.dot(q[b, 0, part], k[b, t, part]) for t in range(tokens.shape[1])]
            ) / math.sqrt(d / h)
            maps[b, head] = logits.softmax(0)[1:]
    return maps.view(len(x), h, *encoder.grid)


def test_attention_of_the_class_token() -> None:
    encoder, x = small().eval(), torch.randn(2, 3, 6, 8)
    shown = class_attention(encoder, x)
    assert shown is not None and shown.shape == (2, 2, 3, 4)
    with torch.no_grad():
        torch.testing.assert_close(shown, slow_attention(encoder, x), rtol=1e-4, atol=1e-6)
    assert (shown.sum((2, 3)) < 1).all()
    assert not encoder.blocks[-1].attn._forward_pre_hooks  # nothing stays behind


def test_attention_of_a_timm_vit() -> None:
    torch.manual_seed(0)
    encoder = TimmEncoder("vit_tiny_patch16_224", 32, 8).eval()
    x = torch.randn(2, 3, 32, 32)
    shown = class_attention(encoder, x)
    assert shown is not None and shown.shape == (2, 3, 4, 4)
    encoder.net.blocks[-1].attn.fused_attn = False
    weights: list[Tensor] = []
    encoder.net.blocks[-1].attn.attn_drop.register_forward_hook(lambda _, args, out: weights.append(out))
    with torch.no_grad():
        encoder(x)
    torch.testing.assert_close(shown.flatten(2), weights[0][:, :, 0, 1:], rtol=1e-4, atol=1e-6)


def test_no_attention_where_there_is_none() -> None:
    x = torch.randn(2, 3, 32, 32)
    others = [
        ConvEncoder(),
        ResNetEncoder(),
        TimmEncoder("resnet18"),
        ViTEncoder(32, 8, 4, width=8, depth=1, heads=1),
    ]
    assert all(class_attention(encoder.eval(), x) is None for encoder in others)


# -------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 5}, r"patch_size must be a divisor of image_size \(6x8\), got 5"),
        ({"image_size": 7}, r"patch_size must be a divisor of image_size \(7x7\), got 2"),
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"width": 18}, "width must be divisible by 4 .* got 18"),
        ({"heads": 3}, r"heads must be a divisor of width \(16\), got 3"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
    ],
)
def test_bad_knobs(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_an_image_that_patches_do_not_tile() -> None:
    with pytest.raises(ValueError, match="patch_size 2 does not divide an image of 7x8"):
        small()(torch.randn(1, 3, 7, 8))
