"""BERT against the library's own BertForPreTraining, closed forms, and the known mistakes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.text.tokenizer import CLS, MASK, PAD, SEP
from datamodules.transforms.tokens import segments_of
from sslmodules import BERT
from sslmodules.base import Gathered
from sslmodules.bert import masked_word_loss
from sslmodules.networks import BertEncoder, ConvEncoder
from tests.conftest import build, trainer_for

V, T = 40, 12


def bert(pooling: Any = "mean", next_sentence: bool = True) -> BERT:
    torch.manual_seed(0)
    encoder = BertEncoder(V, width=32, depth=2, heads=4, max_length=T, dropout=0.0, pooling=pooling)
    return BERT(encoder, next_sentence, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3))


def example() -> dict[str, Tensor]:
    rows = [
        [CLS, 5, 6, 7, SEP, 8, 9, 10, SEP],
        [CLS, 11, SEP, 12, 13, SEP],
        [CLS, 14, 15, SEP, 16, 17, 18, 19, 20, SEP],
    ]
    tokens = torch.tensor([row + [PAD] * (T - len(row)) for row in rows])
    corrupted, target = tokens.clone(), torch.full_like(tokens, -100)
    for i, j, shown in (
        (0, 1, MASK),
        (0, 6, 30),
        (2, 2, 15),
        (2, 5, MASK),
        (2, 6, MASK),
    ):  # nothing in the second row
        target[i, j], corrupted[i, j] = tokens[i, j], shown
    segment = segments_of(tokens)
    return {
        "input": tokens,
        "corrupted": corrupted,
        "target": target,
        "segment": segment,
        "is_next": torch.tensor([1, 0, 1]),
    }


def test_losses_are_those_of_the_library() -> None:
    """Both losses of transformers' BertForPreTraining with the same weights; there class 0 is the true
    pair.
    """
    module, batch = bert(), example()  # without dropout
    losses = module.losses(batch)  # type: ignore[arg-type]
    reference = module.to_transformers()
    with torch.no_grad():
        out = reference(
            input_ids=batch["corrupted"],
            attention_mask=(batch["corrupted"] != PAD).long(),
            token_type_ids=batch["segment"],
            labels=batch["target"],
            next_sentence_label=1 - batch["is_next"],
        )
    words = F.cross_entropy(out.prediction_logits.flatten(0, 1), batch["target"].flatten())
    pairs = F.cross_entropy(out.seq_relationship_logits, 1 - batch["is_next"])
    torch.testing.assert_close(losses["masked_word_loss"], words)
    torch.testing.assert_close(losses["next_sentence_loss"], pairs)
    torch.testing.assert_close(losses["loss"], out.loss)
    torch.testing.assert_close(module.derived(losses)["perplexity"], words.exp())
    torch.testing.assert_close(module.derived(losses)["loss"], out.loss)
    right = (out.prediction_logits.argmax(-1) == batch["target"])[batch["target"] != -100]
    assert losses["masked_word_accuracy"] == right.float().mean()
    told = out.seq_relationship_logits.argmax(1) == 1 - batch["is_next"]
    assert losses["next_sentence_accuracy"] == told.float().mean()


def test_before_training_every_word_is_equally_likely() -> None:
    """ln V and ln 2: the losses of a network that knows nothing."""
    losses = bert().losses(example())  # type: ignore[arg-type]
    assert losses["masked_word_loss"].item() == pytest.approx(math.log(V), abs=0.15)
    assert losses["next_sentence_loss"].item() == pytest.approx(math.log(2), abs=0.05)


def test_a_batch_without_a_selected_token_is_no_nan() -> None:
    """torch's mean over no token would be NaN, and so would every weight be after it."""
    module, batch = bert(), example()
    batch["target"] = torch.full_like(batch["target"], -100)
    losses = module.losses(batch)  # type: ignore[arg-type]
    assert losses["masked_word_loss"] == 0 and losses["masked_word_accuracy"] == 0
    losses["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
    assert masked_word_loss(torch.zeros(0, V), torch.zeros(0, dtype=torch.long), 0) == 0


def test_only_selected_tokens_count() -> None:
    """Another true word at an unselected place does not change the loss: unselected tokens are not copied for
    reward.
    """
    module, batch = bert().eval(), example()
    first = module.losses(batch)  # type: ignore[arg-type]
    changed = {**batch, "input": batch["input"].roll(1, 1), "label": torch.arange(3)}
    assert module.losses(changed)["loss"] == first["loss"]  # type: ignore[arg-type]


def test_the_loss_is_a_mean_over_tokens_of_all_ranks() -> None:
    """With a stand-in for the gathering: two ranks that hold 2 and 3 selected tokens average to the joined
    mean.
    """
    module, batch = bert().eval(), example()
    halves = [{k: v[i : i + 1] for k, v in batch.items()} for i in (0, 2)]
    joined = {k: v[[0, 2]] for k, v in batch.items()}
    everyone = (joined["target"] != -100).sum(1).float()
    assert everyone.tolist() == [2, 3]
    expected = module.losses(joined)["masked_word_loss"]  # type: ignore[arg-type]
    module.gather = lambda z: Gathered(everyone, 0)  # type: ignore[method-assign]
    got = torch.stack([module.losses(half)["masked_word_loss"] for half in halves]).mean()  # type: ignore[arg-type]
    torch.testing.assert_close(got, expected)


def test_perplexity_at_validation_is_that_of_the_whole_split(tmp_path: Any) -> None:
    """Not the mean of the batches' perplexities."""
    module, data = build("configs/text/bert.yaml")
    trainer = trainer_for(tmp_path, limit_val_batches=3)
    trainer.validate(module, data, verbose=False)
    metrics = trainer.callback_metrics
    assert metrics["val/perplexity"].item() == pytest.approx(
        metrics["val/masked_word_loss"].exp().item(), rel=1e-6
    )


def test_terms_of_a_split_do_not_depend_on_the_batch_size() -> None:
    """Words are averaged over words, answers over samples, and the loss is the sum of both means."""
    module, batch = bert().eval(), example()
    batch["input"] = batch["corrupted"]  # the samples hide 2, 0 and 3 words
    together = module.losses(batch)  # type: ignore[arg-type]
    sums: dict[str, float] = {}
    for i in range(3):
        one: Any = {key: value[i : i + 1] for key, value in batch.items()}
        for name, value in module.losses(one).items():
            sums[name] = sums.get(name, 0) + value.item() * module.averaged_over(one).get(name, 1)
    counts = {"masked_word_loss": 5, "masked_word_accuracy": 5}
    means = {name: torch.tensor(value / counts.get(name, 3)) for name, value in sums.items()}
    means |= module.derived(means)
    assert {name: value.item() for name, value in means.items() if name != "perplexity"} == pytest.approx(
        {name: value.item() for name, value in together.items()}, rel=1e-5
    )


def test_the_decoder_is_tied_and_has_its_own_bias() -> None:
    module = bert()
    names = [name for name, p in module.named_parameters() if p.shape == (V, 32)]
    assert names == ["encoder.net.embeddings.word_embeddings.weight"]
    assert module.decoder_bias.shape == (V,)
    module.losses(example())["masked_word_loss"].backward()  # type: ignore[arg-type]
    table = module.encoder.token_embedding.grad
    unused = 39  # a word that is nowhere in the batch moves only because the decoder shares the table
    assert table[unused].abs().sum() > 0 and module.decoder_bias.grad.abs().sum() > 0
    again = bert()
    again.load_state_dict(module.state_dict())
    assert again.encoder.token_embedding is again.encoder.net.embeddings.word_embeddings.weight


@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_padding_changes_nothing(pooling: str) -> None:
    """The same sample with more padding, and in the company of longer ones, has the same features."""
    module, tokens = bert(pooling).eval(), example()["input"]
    with torch.no_grad():
        h = module.embed(tokens)
        torch.testing.assert_close(module.embed(tokens[1:2, :6]), h[1:2])
        vectors = module.encoder.forward_tokens(tokens[1:2, :6], segments_of(tokens[1:2, :6]))
    torch.testing.assert_close(h[1], vectors[0].mean(0) if pooling == "mean" else vectors[0, 0])


def test_both_sides_and_segments_are_seen() -> None:
    module, batch = bert().eval(), example()
    with torch.no_grad():
        h = module.encoder.forward_tokens(batch["input"], batch["segment"])
        later = batch["input"].clone()
        later[0, 7] = 33
        assert not torch.allclose(module.encoder.forward_tokens(later, batch["segment"])[0, 1], h[0, 1])
        assert not torch.allclose(
            module.encoder.forward_tokens(batch["input"], 0 * batch["segment"])[0, 1], h[0, 1]
        )


def test_without_next_sentence() -> None:
    module, batch = bert(next_sentence=False), example()
    del batch["is_next"]
    module.check_batch(batch)  # type: ignore[arg-type]
    losses = module.losses(batch)  # type: ignore[arg-type]
    assert "next_sentence_loss" not in losses
    losses["loss"].backward()
    assert all(p.grad is not None for p in module.parameters())
    with pytest.raises(ValueError, match=r"BERT needs 'is_next' in the batch.*for text MaskedTokens"):
        bert().check_batch(batch)  # type: ignore[arg-type]


def test_what_cannot_be() -> None:
    with pytest.raises(
        ValueError,
        match=r"^encoder must be a text encoder that gives a vector for each token \(TokenEncoder: "
        r"BertEncoder\), got ConvEncoder$",
    ):
        BERT(ConvEncoder(1), optimizer=lambda p: torch.optim.AdamW(p))
    with pytest.raises(ValueError, match=r"width must be a multiple of heads \(5\), got 32"):
        BertEncoder(V, width=32, heads=5)
    with pytest.raises(ValueError, match="samples of 13 tokens are longer than max_length=12"):
        bert().embed(torch.ones(1, 13, dtype=torch.long))
    with pytest.raises(ValueError, match="pooling must be one of mean, class, got 'max'"):
        BertEncoder(V, pooling="max")  # type: ignore[arg-type]
