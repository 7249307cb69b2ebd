"""Fine-tuning: the loss against torch's, what is trained and how fast, and what it is evaluated by."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import eval as script
import train
from datamodules.audio.mel import valid_frames
from datamodules.errors import ConfigError
from runtime.checkpoints import read_checkpoint
from runtime.messages import ROOT
from sslmodules import AudioMAE, FineTune
from sslmodules.fine_tune import soft_cross_entropy
from sslmodules.networks import (
    BertEncoder,
    ConvEncoder,
    GPTEncoder,
    GRUFrames,
    MLPEncoder,
    RecurrentEncoder,
    ResNetEncoder,
    TimmEncoder,
    TransformerFrames,
    ViTEncoder,
)
from sslmodules.networks.classifier import depths, masked_mean
from tests.conftest import batch_of, build

CONFIG = "configs/digits/finetune.yaml"
SGD = torch.optim.SGD


def fine_tune(encoder: Any, classes: int = 3, **options: Any) -> FineTune:
    return FineTune(encoder, classes, optimizer=lambda p: SGD(p, lr=0.1), **options)


def vit() -> ViTEncoder:
    return ViTEncoder(16, 4, 3, 24, 3, 2)


ENCODERS: dict[str, tuple[Any, torch.Tensor]] = {
    "ConvEncoder": (lambda: ConvEncoder(3, (8, 12)), torch.randn(4, 3, 16, 16)),
    "MLPEncoder": (lambda: MLPEncoder(48, (8, 12)), torch.randn(4, 3, 4, 4)),
    "ResNetEncoder": (lambda: ResNetEncoder(stem="cifar"), torch.randn(4, 3, 16, 16)),
    "ViTEncoder": (vit, torch.randn(4, 3, 16, 16)),
    "TimmEncoder": (
        lambda: TimmEncoder("vit_tiny_patch16_224", image_size=16, patch_size=8),
        torch.randn(4, 3, 16, 16),
    ),
    "BertEncoder": (lambda: BertEncoder(30, 16, 2, 2, 12, 0.0), torch.randint(5, 30, (4, 12))),
    "GPTEncoder": (lambda: GPTEncoder(30, 12, 16, 2, 2), torch.randint(5, 30, (4, 13))),
    "RecurrentEncoder": (lambda: RecurrentEncoder(30, 16, 1), torch.randint(5, 30, (4, 12))),
    "GRUFrames": (lambda: GRUFrames(8, 16, 2), torch.randn(4, 1, 8, 20)),
    "TransformerFrames": (lambda: TransformerFrames(8, 16, 2, 2), torch.randn(4, 1, 8, 20)),
}


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("head", ["linear", "mlp", "attentive"])
def test_every_encoder_and_head_learns(name: str, head: Any) -> None:
    """Gradients reach the first weights, and only tokens that are there are attended to."""
    make, x = ENCODERS[name]
    torch.manual_seed(0)
    if name == "MLPEncoder" and head == "attentive":
        with pytest.raises(
            ConfigError, match="head attentive needs an encoder with tokens or positions, but"
        ):
            fine_tune(make(), head=head)
        return
    module = fine_tune(make(), head=head)
    terms = module.losses({"input": x, "label": torch.tensor([0, 1, 2, 0])})
    terms["loss"].backward()
    first = next(p for p in module.encoder.parameters() if p.requires_grad)
    assert first.grad is not None and first.grad.any()
    module.eval()
    assert module.embed(x).shape == (4, module.encoder.num_features)
    assert module.classify(x).shape == (4, 3)


def test_tokens_may_be_narrower_than_features() -> None:
    """As those of a MobileNet, which has a hidden layer between its last map and the features."""
    make = functools.partial(TimmEncoder, "mobilenetv3_small_050")
    encoder = make()
    assert encoder.token_width == encoder.tokens(torch.randn(2, 3, 32, 32))[0].shape[2] < encoder.num_features
    assert fine_tune(encoder, head="attentive").classify(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    with pytest.raises(ConfigError) as told:
        fine_tune(make(), pooling="mean")
    assert str(told.value) == (
        "pooling mean needs tokens as wide as features, and those of TimmEncoder have 288 and 1024: leave it "
        "out"
    )


def test_the_loss_is_torchs() -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 3, -1])
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0])
    known = label >= 0
    target = F.one_hot(label.clamp(min=0), 4) * known[:, None]
    total = (target * weights).sum()
    ours = soft_cross_entropy(logits, target.float(), weights, 0.1, total)
    theirs = F.cross_entropy(logits, label, weights, ignore_index=-1, label_smoothing=0.1)
    torch.testing.assert_close(ours, theirs)


def test_patches_after_the_end_of_a_clip_are_padding() -> None:
    """As for AudioMAE's features, if the data has padding; a patch that is zero within a clip is none."""
    torch.manual_seed(0)
    encoder = ViTEncoder(image_size=(8, 16), patch_size=4, in_channels=1, width=16, depth=1, heads=2)
    x = torch.randn(2, 1, 8, 16)
    x[0, :, :, 9:] = 0  # 9 frames: a part of the third of four columns
    x[1, :, :4, 4:8] = 0
    with torch.no_grad():
        features = fine_tune(encoder, pooling="mean", padding="frames").embed(x)
        method = AudioMAE(encoder, 16, 1, 2, optimizer=SGD)
        head = fine_tune(encoder, head="attentive", padding="frames").eval()
        tokens, valid = head.tokens(x)
        scores = head.classify(x)
        expected = head.classifier(tokens[:1, [0, 1, 2, 4, 5, 6]], torch.ones(1, 6, dtype=torch.bool))
        torch.testing.assert_close(features, method.embed(x))
        torch.testing.assert_close(scores[:1], expected)
    assert valid.tolist() == [2 * [True, True, True, False], 8 * [True]]


@pytest.mark.parametrize("name", ["ConvEncoder", "ResNetEncoder", "ViTEncoder", "TimmEncoder"])
def test_a_black_margin_is_no_padding(name: str) -> None:
    """Pixels may be exactly 0 after standardization; only clips are padded, which the data declares."""
    make, x = ENCODERS[name]
    torch.manual_seed(0)
    encoder = make().eval()
    black = x.clone()
    black[:, :, :, 8:] = 0
    assert encoder.tokens(black)[1].all()
    tokens, all_valid = fine_tune(encoder, head="attentive").eval().tokens(black)
    assert all_valid.all() and torch.equal(tokens, encoder.tokens(black)[0])
    _, valid = fine_tune(encoder, head="attentive", padding="frames").eval().tokens(black)
    side = round(valid.shape[1] ** 0.5)
    left = max(1, side // 2)  # of the columns of its map
    assert valid.tolist() == 4 * [side * (left * [True] + (side - left) * [False])]


def test_padding_is_that_of_the_data() -> None:
    """Only the data knows: it would be attended to, or a part of the samples would not."""
    audio, images = build("configs/tones/audio_mae.yaml")[1], build(CONFIG)[1]
    assert (audio.padding, images.padding) == ("frames", None)
    attentive = functools.partial(fine_tune, ConvEncoder(1, (8, 12)), head="attentive")
    for module, data, told in (
        (
            attentive(),
            audio,
            "Tones fills up short clips with frames, but padding is None: give --model.padding frames, "
            "otherwise padding is treated as sound",
        ),
        (
            attentive(padding="frames"),
            images,
            "Digits has no padding, but padding is frames: give --model.padding null, otherwise samples are "
            "treated as padding",
        ),
        (
            fine_tune(GPTEncoder(30, 12, 16, 2, 2)),
            build("configs/text/bert.yaml")[1],
            "TextFiles pads short samples with token 0, but padding is None: give --model.padding 0, "
            "otherwise padding is treated as text",
        ),
        (
            fine_tune(BertEncoder(30, 16, 1, 2, 32)),
            build("configs/dna/gpt.yaml")[1],
            "BertEncoder ignores token 0, which is text in Fasta: give --data.views MaskedTokens, as in its "
            "pre-training",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            module.check_data(data)
        assert str(caught.value) == told
    fine_tune(ConvEncoder(1, (8, 12)), classes=audio.num_classes or 0).check_data(audio)  # its own features


def test_padding_counts_for_nothing() -> None:
    tokens = torch.tensor([[1.0, 3.0], [5.0, 7.0]])[:, :, None]
    valid = torch.tensor([[True, False], [False, False]])
    assert masked_mean(tokens, valid).tolist() == [[1.0], [0.0]]
    torch.manual_seed(0)
    module = fine_tune(GRUFrames(8, 16, 1), head="attentive").eval()
    clip = torch.randn(1, 1, 8, 10)
    longer = torch.cat([clip, torch.zeros(1, 1, 8, 6)], dim=3)
    assert valid_frames(longer).tolist() == [10]
    torch.testing.assert_close(module.classify(clip), module.classify(longer))
    torch.testing.assert_close(module.embed(clip), module.embed(longer))
    gpt = fine_tune(GPTEncoder(30, 12, 16, 2, 2), padding=0).eval()
    text = torch.randint(5, 30, (1, 6))
    torch.testing.assert_close(gpt.embed(text), gpt.embed(F.pad(text, (0, 4))))


def test_each_block_has_its_share_of_the_learning_rate() -> None:
    """Of a ViT of three blocks: embedding, blocks, and what is behind them with the classifier."""
    module = fine_tune(vit(), layer_decay=0.5)
    depth, last = depths(module.encoder)
    named = {name: depth[p] for name, p in module.encoder.named_parameters()}
    assert last == 4
    assert (named["class_token"], named["patch_embed.weight"], named["norm.weight"]) == (0, 0, 4)
    assert [named[f"blocks.{i}.mlp.fc1.bias"] for i in range(3)] == [1, 2, 3]
    groups = module.parameter_groups()
    scales = {p: group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scales) == len(list(module.parameters()))
    assert scales[module.encoder.class_token] == 0.5**4  # type: ignore[index]
    assert scales[module.classifier.weight] == 1.0  # type: ignore[index]
    conv, end = depths(ConvEncoder(3, (4, 8)))
    assert (sorted(set(conv.values())), end) == ([0, 1], 3)


def test_a_schedule_keeps_the_shares(tmp_path: Path) -> None:
    options = ["--model.layer_decay=0.5", "--model.warmup_epochs=0", "--model.final_lr_factor=1"]
    module, data = build(CONFIG, *options)
    from tests.conftest import trainer_for

    trainer = trainer_for(tmp_path, max_steps=2, limit_val_batches=0)
    trainer.fit(module, data)
    [optimizer] = trainer.optimizers
    rates = {group["lr_scale"]: group["lr"] for group in optimizer.param_groups}
    whole = rates[1.0]
    assert len(rates) == 4 and all(lr == pytest.approx(scale * whole) for scale, lr in rates.items())


def test_a_frozen_encoder_stays_as_it_is() -> None:
    module, data = build(CONFIG, "--model.freeze", "true")
    module.train()
    before = {k: v.clone() for k, v in module.encoder.state_dict().items()}
    module.losses(batch_of(data))["loss"].backward()  # type: ignore[arg-type]
    assert not module.encoder.training and module.classifier.training  # type: ignore[union-attr]
    assert all(torch.equal(before[k], v) for k, v in module.encoder.state_dict().items())
    assert all(p.grad is None for p in module.encoder.parameters())
    assert [p for g in module.parameter_groups() for p in g["params"]] == list(module.classifier.parameters())  # type: ignore[union-attr]


def test_mixing_blends_two_samples_and_their_labels() -> None:
    module, data = build(CONFIG, "--model.mixup", "1.0", "--data.views", "null")
    module.train()
    seen: list[torch.Tensor] = []
    module.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    batch = batch_of(data)
    assert list(module.losses(batch)) == ["loss"]  # type: ignore[arg-type]
    x, y = batch["input"], batch["input"].roll(1, 0)
    share = ((seen[0] - y) * (x - y)).sum() / (x - y).square().sum()
    assert 0 < share < 1
    torch.testing.assert_close(seen[0], share * x + (1 - share) * y)
    with pytest.raises(ConfigError, match="mixup and cutmix need images"):
        module.check_batch({"input": torch.zeros(2, 5), "label": torch.zeros(2)})


def test_the_running_mean_follows_and_is_what_is_evaluated() -> None:
    module, data = build(CONFIG, "--model.ema", "0.75")
    batch = batch_of(data)
    old, new = module.classifier.bias.detach().clone(), torch.ones(10)  # type: ignore[union-attr,operator]
    module.classifier.bias.data.copy_(new)  # type: ignore[union-attr,operator]
    module.losses(batch)  # type: ignore[arg-type]
    module.update_teacher()
    copied = module.average.net  # type: ignore[union-attr]
    torch.testing.assert_close(copied[1].bias, 0.75 * old + 0.25 * new)  # type: ignore[index]
    name = "layers.1.running_mean"
    assert torch.equal(copied[0].state_dict()[name], module.encoder.state_dict()[name])  # type: ignore[index]
    module.eval()
    assert torch.equal(module.classify(batch["input"]), copied[1](copied[0](batch["input"])))  # type: ignore[index]


def test_in_double_precision_the_targets_are_double_too() -> None:
    """A GPU divides smoothed targets by the number of classes with another rounding than a CPU."""
    module, data = build("finetune-mean", "--model.head", "linear")
    module, batch = module.double().eval(), batch_of(data)
    x, label = batch["input"].double(), batch["label"]
    expected = F.cross_entropy(module.classify(x), label, module.class_weights, label_smoothing=0.1)
    loss = module.losses({**batch, "input": x})["loss"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-14)


def test_what_cannot_be_trained() -> None:
    for options, message in (
        ({"drop_path": 0.1}, "drop_path is for ViTs, but the encoder is ConvEncoder: leave it out"),
        ({"class_weights": [1.0]}, r"class_weights must be 3 numbers, got \[1.0\]"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"head": "deep"}, "head must be one of linear, mlp, attentive, got 'deep'"),
    ):
        with pytest.raises(ConfigError, match=message):
            fine_tune(ConvEncoder(3), **options)


def test_training_samples_without_labels_are_refused() -> None:
    """From data with labels only in the bank, it would silently learn nothing."""
    module, data = build(CONFIG)
    module.check_data(data)
    data.dataset("train").labels[:] = -1  # type: ignore[attr-defined]
    with pytest.raises(
        ConfigError, match="but no training sample of Digits has one: give data whose training"
    ):
        module.check_data(data)


def test_a_run_is_evaluated_at_its_best_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Best on val, test read once: a late rise of the learning rate ruins last.ckpt, not the result."""
    monkeypatch.delenv("SSL_RUN_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    ruined = []

    def ruin(self: FineTune) -> None:
        if self.current_epoch == 3:
            self.classifier.weight.data.zero_()  # type: ignore[union-attr,operator]
            ruined.append(self.current_epoch)

    monkeypatch.setattr(FineTune, "on_train_epoch_start", ruin)
    options = ["--config", str(ROOT / CONFIG), "--run_dir=run", "--trainer.max_epochs=4", "--model.ema=0.0"]
    options += ["--trainer.check_val_every_n_epoch=1", "--trainer.accelerator=cpu", "--data.batch_size=512"]
    options += ["--trainer.enable_progress_bar=false", "--model.warmup_epochs=0"]
    assert train.main(options) == 0
    report = json.loads((tmp_path / "run/results.json").read_text())
    best = read_checkpoint("run/checkpoints/best.ckpt")
    assert ruined == [3] and best["epoch"] < 3
    assert report["checkpoint"] == "run/checkpoints/best.ckpt"
    assert report["classifier"]["samples"] == 360
    assert "the method's classifier" in capsys.readouterr().out
    assert script.main(["probe", "run"]) == 0
    again = json.loads((tmp_path / "run/results.json").read_text())
    assert again["classifier"] == report["classifier"] and again["checkpoint"] == report["checkpoint"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--model.num_classes=3"],
            "Digits has 10 classes, but num_classes is 3: give --model.num_classes 10",
        ),
        (["--data=TextFiles", "--data.views=null"], "FineTune learns from labels, but TextFiles has none"),
    ],
)
def test_labels_that_do_not_fit(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("SSL_RUN_DIR", raising=False)
    assert train.main(["--config", str(ROOT / CONFIG), f"--run_dir={tmp_path}/run", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "run").exists()
