"""BERT (Devlin et al. 2019, https://arxiv.org/abs/1810.04805).

Some words of a text are hidden, and a Transformer that sees both sides of them predicts them; from the class
token it also predicts whether the second of two segments follows the first. Features are the mean over the
tokens, or the class token.

Differs from the paper: masks are redrawn at every step on the device, where the paper's data contains ten
fixed draws, and each token is selected with probability 15 % instead of a fixed number per sample; random
replacements are never special tokens, and a wrong second segment is always from another document.
Adam is PyTorch's, with bias correction.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.base import Batch
from sslmodules.base import SSLModule, full_precision
from sslmodules.networks.bert_encoder import transformers_library
from sslmodules.networks.encoder import TokenEncoder, require


def masked_word_loss(logits: Tensor, target: Tensor, total: Tensor | float) -> Tensor:
    """Cross entropy of the hidden words in nats: sum over the selected tokens, divided by their number.

    Args:
        logits: (N, V) for the selected tokens.
        target: (N,) their true ids.
        total: the number to divide by; values below 1, from a batch in which nothing is selected, count as 1,
            and the loss is 0.

    Returns:
        Scalar.
    """
    total = torch.as_tensor(total, device=logits.device).clamp(min=1)
    return F.cross_entropy(full_precision(logits), target, reduction="sum") / total


class BERT(SSLModule):
    """BERT: masked words and next-sentence prediction; the loss is the sum of both.

    Logs ``masked_word_loss`` (nats), ``perplexity`` (its exponential), ``masked_word_accuracy`` and, with
    next-sentence prediction, ``next_sentence_loss`` and ``next_sentence_accuracy``.

    Args:
        encoder: tokens (B, T) -> (B, num_features) and a vector per token; the decoder shares its
            ``token_embedding``.
        next_sentence: also predict whether the second segment follows the first, as in the paper; False
            requires ``next_sentence: false`` in the data's ``MaskedTokens`` if texts have a single segment.
        **kwargs: ``SSLModule``'s.

    Raises:
        ValueError: the encoder lacks a required method or attribute.
    """

    batch_keys: tuple[str, ...] = ("corrupted", "target", "segment", "is_next")
    encoder: TokenEncoder
    predicts_tokens = True
    extra_metrics = ("train/perplexity", "val/perplexity")

    def __init__(self, encoder: TokenEncoder, next_sentence: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require(encoder, TokenEncoder)
        self.encoder, self.next_sentence = encoder, next_sentence
        width = self.encoder.num_features
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=1e-12))
        self.decoder_bias = nn.Parameter(torch.zeros(self.encoder.vocab_size))
        if next_sentence:
            self.pooler, self.classifier = nn.Linear(width, width), nn.Linear(width, 2)
        else:
            self.batch_keys = self.batch_keys[:3]
        for module in (
            m for m in self.children() if m is not encoder for m in m.modules() if isinstance(m, nn.Linear)
        ):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def predict_words(self, h: Tensor) -> Tensor:
        """Token vectors (..., D) -> logits (..., V)."""
        return F.linear(self.transform(h), self.encoder.token_embedding, self.decoder_bias)

    def to_transformers(self) -> Any:
        """The trained network with its heads as ``transformers``' ``BertForPreTraining``, in eval mode.

        Without next-sentence prediction, that head and its pooler are untrained. Class 0 of the next sentence
        is a true pair.
        """
        library = transformers_library()
        network = self.encoder.to_transformers()
        model = library.BertForPreTraining(network.config)
        parts = {"bert": network, "cls.predictions.transform.dense": self.transform[0]}
        parts["cls.predictions.transform.LayerNorm"] = self.transform[2]
        state = {
            f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()
        }
        state["cls.predictions.bias"] = state["cls.predictions.decoder.bias"] = self.decoder_bias
        state["cls.predictions.decoder.weight"] = self.encoder.token_embedding
        if self.next_sentence:
            state |= {f"bert.pooler.dense.{key}": value for key, value in self.pooler.state_dict().items()}
            state |= {
                f"cls.seq_relationship.{key}": value.flip(0)
                for key, value in self.classifier.state_dict().items()
            }
        model.load_state_dict({**model.state_dict(), **state})
        return model.eval()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        target = batch["target"]
        h = self.encoder.forward_tokens(batch["corrupted"], batch["segment"])  # (B, T, D)
        selected = target != -100  # (B, T)
        # the only place where the step waits for the device: the number of selected tokens is a shape
        places = selected.flatten().nonzero().squeeze(1)  # (N,)
        words = target.flatten()[places]  # (N,)
        logits = self.predict_words(h.flatten(0, 1)[places])  # (N, V)
        # Ranks select different numbers of tokens: divide the sum over all ranks by the total count, not a
        # mean of means.
        counts = self.gather(selected.sum(1).float()).rows
        total = counts.sum() * len(target) / len(counts)
        masked = masked_word_loss(logits, words, total)
        terms = {
            "loss": masked,
            "masked_word_loss": masked,
            "masked_word_accuracy": (logits.argmax(1) == words).sum() / max(len(words), 1),
        }
        if self.next_sentence:
            answers = self.classifier(torch.tanh(self.pooler(h[:, 0])))  # (B, 2)
            entropy = F.cross_entropy(full_precision(answers), batch["is_next"])
            terms["loss"] = masked + entropy
            terms["next_sentence_loss"] = entropy
            terms["next_sentence_accuracy"] = (answers.argmax(1) == batch["is_next"]).float().mean()
        return terms

    def averaged_over(self, batch: Batch) -> dict[str, float]:
        return dict.fromkeys(
            ("masked_word_loss", "masked_word_accuracy"), int((batch["target"] != -100).sum())
        )

    def derived(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss: its two parts are means over words and over samples. And the perplexity of the words."""
        if "masked_word_loss" not in means:
            return {}
        words = means["masked_word_loss"]
        return {"loss": words + means.get("next_sentence_loss", 0.0), "perplexity": words.exp()}
