"""GPT (Radford et al. 2018; GPT-2, Radford et al. 2019; images: Chen et al. 2020,
http://proceedings.mlr.press/v119/chen20s.html).

A causal network reads a sequence and predicts each next token from those before it. Features are its hidden
states, averaged over the sequence. Text, DNA and quantized pixels are treated alike.

Differs from the papers: the network is a parameter (a causal Transformer, or a GRU or LSTM); features come
from the last layer for both text and images. The causal Transformer itself is that of
https://arxiv.org/abs/1706.03762.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.base import Batch, SSLDataModule, check_padding, data_of
from datamodules.checks import check, check_at_least, check_one_of, check_within
from datamodules.errors import ConfigError
from sslmodules.base import SSLModule, full_precision
from sslmodules.networks import PixelTokens
from sslmodules.networks.encoder import CausalEncoder, require


def next_token_nll(logits: Tensor, tokens: Tensor) -> Tensor:
    """-log p(token | tokens before it) in nats, for each token (Radford et al. 2018).
    Args:
        logits: (B, T - 1, V), row t of tokens 0..t.
        tokens: (B, T) int64; row t is scored on token t + 1.

    Returns:
        (B, T - 1) float32 or better. The first token has no prediction.
    """
    return F.cross_entropy(full_precision(logits).transpose(1, 2), tokens[:, 1:], reduction="none")


def choose(logits: Tensor, uniform: Tensor, temperature: float = 1.0, top_k: int | None = None) -> Tensor:
    """One token for each row, drawn from softmax(logits / temperature) over its ``top_k`` likeliest tokens.

    Args:
        logits: (B, V).
        uniform: (B,) random numbers in [0, 1): their position in the cumulative probabilities selects the
            token.
        temperature: 0 = the likeliest token.
        top_k: None = all. Tokens tied with the last one are included.

    Returns:
        (B,) int64.
    """
    logits = full_precision(logits)
    if temperature == 0:
        return logits.argmax(1)
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[1]), dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    upto = (logits / temperature).softmax(1).double().cumsum(1)  # (B, V), rising to about 1
    # strictly above, so that a token of probability 0 is never chosen; times the total, which rounding may
    # leave below 1
    return (upto <= uniform.double()[:, None] * upto[:, -1:]).sum(1)


class GPT(SSLModule):
    """GPT: next-token prediction; the output layer shares the encoder's token embeddings and has no bias.

    Args:
        encoder: (B, T) int64 tokens -> causal hidden states (B, T, num_features).
        pixels: converts images in [0, 1] (data.mean 0 and data.std 1) to tokens and back; None if ``input``
            is tokens.
        pooling: features are the ``mean`` of the hidden states, or the ``last`` one, which depends on the
            whole input.
        padding: padding token, never predicted or pooled: the data's ``pad_id``, or None if it has none.
        **kwargs: ``SSLModule``'s.
    """

    encoder: CausalEncoder
    predicts_tokens = True
    extra_metrics = ("train/perplexity", "val/perplexity", "val/bits_per_character")

    def __init__(
        self,
        encoder: CausalEncoder,
        pixels: PixelTokens | None = None,
        pooling: Literal["mean", "last"] = "mean",
        padding: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_one_of(("mean", "last"), pooling=pooling)
        require(encoder, CausalEncoder)
        vocab_size = encoder.vocab_size
        check_within(0, vocab_size, "[)", padding=padding)
        if pixels is not None:
            check(
                vocab_size == pixels.levels + 1,
                "encoder.vocab_size",
                f"pixels.levels + 1 ({pixels.levels + 1})",
                vocab_size,
            )
        self.encoder, self.pixels, self.pooling, self.padding = encoder, pixels, pooling, padding

    # ---- the model -----------------------------------------------------------------------------------------

    def tokens(self, x: Tensor) -> Tensor:
        """``input`` of a batch as (B, T) int64."""
        return x if self.pixels is None else self.pixels(x)

    def logits(self, h: Tensor) -> Tensor:
        """(B, T, D) hidden states -> (B, T, V): inner products with the token embeddings."""
        return F.linear(h, self.encoder.token_embedding.weight)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Mean over all predicted tokens of the batch, on all ranks, without padding.

        In nats, and in bits per token or, for images, per dimension (a value of a pixel).
        """
        tokens = self.tokens(batch["input"])  # (B, T)
        nll = next_token_nll(self.logits(self.encoder.states(tokens[:, :-1])), tokens)  # (B, T - 1)
        if self.padding is None:
            loss = nll.mean()
        else:
            real = tokens[:, 1:] != self.padding
            # ranks have different numbers of tokens: divided by the mean number, DDP's mean over ranks is the
            # mean over tokens
            count = self.gather(real.sum().to(nll.dtype)[None]).rows.mean().clamp(min=1)
            loss = (nll * real).sum() / count
        return {
            "loss": loss,
            f"bits_per_{'token' if self.pixels is None else 'dimension'}": loss / math.log(2),
        }

    def averaged_over(self, batch: Batch) -> dict[str, float]:
        if self.padding is None:  # every sample has as many tokens
            return {}
        predicted = int((batch["input"][:, 1:] != self.padding).sum())
        return dict.fromkeys(("loss", "bits_per_token"), predicted)

    def derived(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"perplexity": means["loss"].exp()} if "loss" in means else {}

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        metrics, data = self.trainer.callback_metrics, data_of(self.trainer)
        symbols = None if data is None else data.characters_per_token
        if "val/bits_per_token" in metrics and symbols is not None:
            self.log("val/bits_per_character", metrics["val/bits_per_token"] / symbols)

    def check_data(self, data: SSLDataModule) -> None:
        check_padding(self.padding, data)

    def check_batch(self, batch: Batch) -> None:
        super().check_batch(batch)
        if self.global_step:  # the checks below make the host wait for the device
            return
        x, v, limit = batch["input"], self.encoder.vocab_size, self.encoder.block_size
        if self.pixels is not None:
            if not bool(((x >= 0) & (x <= 1)).all()):
                raise ConfigError(
                    f"pixels must be in [0, 1], got input from {x.min():.2f} to {x.max():.2f}: set "
                    "data.mean to 0 and data.std to 1 for each channel"
                )
        elif x.is_floating_point():
            raise ConfigError(
                f"GPT reads tokens, got fractions of shape {tuple(x.shape)}: for images set model.pixels "
                "to PixelTokens"
            )
        elif int(x.max()) >= v:
            raise ConfigError(
                f"the data has token {int(x.max())}, but the encoder knows only {v} tokens: increase "
                "model.encoder.vocab_size"
            )
        length = self.tokens(x).shape[1]
        if length < 2:
            raise ConfigError(
                f"samples of {length} token: there is no next one to predict; expected at least 2"
            )
        if limit is not None and length > limit + 1:
            raise ConfigError(
                f"samples of {length} tokens are longer than block_size + 1 ({limit} + 1): set "
                f"model.encoder.block_size to {length - 1}, or reduce the data's length"
            )

    def embed(self, x: Tensor) -> Tensor:
        """(B, D): pooled hidden states of ``input``, without the last token of a full block, as in
        training.
        """
        tokens = self.tokens(x)
        limit = self.encoder.block_size
        if limit is not None and tokens.shape[1] == limit + 1:
            tokens = tokens[:, :-1]
        h = self.encoder.states(tokens)  # (B, T, D)
        real = torch.ones_like(tokens) if self.padding is None else (tokens != self.padding).long()
        if self.pooling == "mean":
            return (h * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)
        last = (real * torch.arange(tokens.shape[1], device=tokens.device)).argmax(1)  # (B,)
        return h[torch.arange(len(h), device=h.device), last]

    # ---- for use -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def extend(
        self, tokens: Tensor, length: int, temperature: float = 1.0, top_k: int | None = None
    ) -> Tensor:
        """Sample the following tokens one by one, each given the last ``block_size`` before it.

        Args:
            tokens: (B, t) int64, t >= 1.
            length: number of tokens to add.
            temperature: below 1 likelier, above 1 more varied; 0 always takes the likeliest token.
            top_k: sample from this many likeliest tokens only; None = all.

        Returns:
            (B, t + length) int64.

        Raises:
            ValueError: an empty start, or a setting out of range.
        """
        if tokens.shape[1] < 1:
            raise ValueError("a continuation needs at least one token to start from, got none")
        check_within(0, math.inf, "[)", temperature=temperature)
        check_at_least(1, top_k=top_k)
        limit: Any = self.encoder.block_size
        state = None
        for _ in range(length):
            if state is not None and (limit is None or tokens.shape[1] <= limit):
                new = tokens[:, -1:]
            else:  # the start, or past block_size, where every token changes its position
                new, state = tokens if limit is None else tokens[:, -limit:], None
            h, state = self.encoder.resume(new, state)
            logits = self.logits(h[:, -1:])[:, 0]  # (B, V)
            for never in (self.padding, None if self.pixels is None else self.pixels.begin):
                if never is not None:
                    logits[:, never] = -math.inf
            chosen = choose(logits, self.rand(len(tokens)), temperature, top_k)
            tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        return tokens

    def sample(
        self, n: int, length: int | None = None, temperature: float = 1.0, top_k: int | None = None
    ) -> Tensor:
        """New samples: images (n, C, H, W), or (n, length) tokens that start with a random one.

        Args:
            n: number of samples.
            length: tokens per sample, by default ``block_size``; ignored for images.
            temperature, top_k: as in ``extend``.
        """
        if self.pixels is not None:
            first = torch.full((n, 1), self.pixels.begin, device=self.device)
            return self.pixels.decode(self.extend(first, self.pixels.num_values, temperature, top_k))
        first = (self.rand(n, 1) * self.encoder.vocab_size).long()
        length = int(self.encoder.block_size or 256) if length is None else length
        return self.extend(first, length - 1, temperature, top_k)

    def complete(
        self, x: Tensor, keep: float = 0.5, temperature: float = 1.0, top_k: int | None = None
    ) -> Tensor:
        """``input`` with everything after its first part sampled, in the same form (images: the lower rows).
        Args:
            x: (B, ...), as ``input``.
            keep: share of the values to keep, rounded down.
            temperature, top_k: as in ``extend``.
        """
        check_within(0, 1, keep=keep)
        tokens = self.tokens(x)
        kept = (
            max(1, int(keep * tokens.shape[1]))
            if self.pixels is None
            else 1 + int(keep * self.pixels.num_values)
        )
        completed = self.extend(tokens[:, :kept], tokens.shape[1] - kept, temperature, top_k)
        return completed if self.pixels is None else self.pixels.decode(completed)
