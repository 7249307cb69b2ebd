"""Features of blocks: known answers, and their rows in the report."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evaluation.layers import layer_encoders
from evaluation.report import evaluate
from sslmodules import SimCLR
from sslmodules.networks import TimmEncoder
from tests.conftest import batch_of, build

VIT = "--model.encoder ViTEncoder --model.encoder.image_size 8 --model.encoder.patch_size 4 "
VIT += "--model.encoder.in_channels 1 --model.encoder.width 24 --model.encoder.heads 2 --model.encoder.depth"


def vit(depth: int) -> tuple[Any, Any]:
    module, data = build("configs/digits/simclr.yaml", *VIT.split(), str(depth))
    return module.eval(), data


@torch.no_grad()
def test_features_of_blocks_are_means_over_tokens() -> None:
    module, data = vit(6)
    x = batch_of(data, 5)["input"]
    functions = layer_encoders(module, "all")
    assert list(functions) == [*(f"block {i}" for i in range(1, 7)), "blocks 3-6"]
    outputs = []
    for block in module.encoder.blocks:
        block.register_forward_hook(lambda block, inputs, output: outputs.append(output.mean(1)))
    module.embed(x)
    each = [functions[f"block {i}"](x) for i in range(1, 7)]
    for found, expected in zip(each, outputs, strict=False):
        assert torch.equal(found, expected)
    assert torch.equal(functions["blocks 3-6"](x), torch.cat(outputs[2:6], 1))
    other = batch_of(data, 5, split="val")["input"]
    assert not torch.equal(functions["block 1"](other), outputs[0])


def test_several_blocks_of_a_batch_are_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    module, data = vit(2)
    passes = []
    embed = module.embed
    monkeypatch.setattr(module, "embed", lambda x: (passes.append(1), embed(x))[1])
    x = batch_of(data, 4)["input"]
    for function in layer_encoders(module, "all").values():
        function(x)
    assert passes == [1]


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "count", "last"),
    [
        ("configs/digits/simclr.yaml", 3, "blocks 1-3"),
        ("configs/text/bert.yaml", 2, "blocks 1-2"),
        ("configs/tones/apc.yaml", 2, "blocks 1-2"),
        ("configs/digits/dino.yaml", 3, "blocks 1-3"),
    ],
)
def test_blocks_of_every_kind_of_encoder(config: str, count: int, last: str) -> None:
    module, data = build(config)
    functions = layer_encoders(module.eval(), "all", data.padding)
    assert list(functions) == [*(f"block {i + 1}" for i in range(count)), last]
    x = batch_of(data, 3)["input"]
    for function in functions.values():
        h = function(x)
        assert h.ndim == 2 and len(h) == 3 and h.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_atto"])
def test_maps_of_timm_with_the_width_last_or_first(name: str) -> None:
    """Means over positions, as timm's own intermediate maps have them, which are (B, D, H, W) for both."""
    size = {"image_size": 64} if "swin" in name else {}
    encoder = TimmEncoder(name, **size).eval()  # type: ignore[arg-type]
    functions = layer_encoders(SimCLR(encoder, optimizer=torch.optim.SGD).eval(), "all")
    x = torch.randn(2, 3, 64, 64)
    maps = encoder.net.forward_intermediates(x, intermediates_only=True)[-4:]  # type: ignore[operator]
    for i, of_block in enumerate(maps):
        torch.testing.assert_close(functions[f"block {i + 1}"](x), of_block.mean((2, 3)))


def test_blocks_in_groups_are_listed_one_by_one() -> None:
    """Twins keeps a list of blocks for each stage, which no forward pass calls."""
    blocks = TimmEncoder("twins_svt_small").block_list()
    assert {type(block).__name__ for block in blocks} == {"Block"} and len(blocks) == 18


@torch.no_grad()
def test_padding_does_not_count() -> None:
    module, data = build("configs/text/bert.yaml")
    x = batch_of(data, 2)["input"].clone()
    x[:, 20:] = 0
    function = layer_encoders(module.eval(), "2", padding=0)["block 2"]
    hidden = module.encoder.tokens(x)[0][:, :20].mean(1)  # the last block's output is the network's
    torch.testing.assert_close(function(x), hidden)


@torch.no_grad()
def test_padded_frames_do_not_count() -> None:
    module, data = build("configs/tones/apc.yaml")
    x = batch_of(data, 2)["input"].clone()
    x[:, :, :, 20:] = 0
    function = layer_encoders(module.eval(), "1", data.padding)["block 1"]
    first = module.encoder.block_list()[0]
    torch.testing.assert_close(function(x), first(x[:, 0].transpose(1, 2))[0][:, :20].mean(1))


def test_blocks_are_rows_of_the_report() -> None:
    module, data = vit(2)
    report = evaluate(module, module, data, "x.ckpt", probes=("knn",), layers="2,last4")
    assert list(report["results"]) == ["pretrained", "random_init", "block 2", "blocks 1-2", "raw_input"]
    assert report["protocol"]["layers"] == "mean over positions or tokens of a block's output"
    assert report["failed"] == {}


@pytest.mark.parametrize("asked", ["3", "0", "last", "1,,2"])
def test_an_unknown_block(asked: str) -> None:
    module, _ = vit(2)
    wrong = "" if ",," in asked else asked
    with pytest.raises(ValueError, match=f"^--layers {wrong}: expected all, last4, or numbers from 1 to 2$"):
        layer_encoders(module, asked)
