"""BERT's network: the ``transformers`` library's ``BertModel`` with random weights."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from datamodules.checks import check, check_at_least, check_one_of, check_within
from datamodules.errors import ConfigError
from datamodules.text.tokenizer import PAD
from datamodules.transforms.tokens import segments_of
from sslmodules.networks.encoder import TokenEncoder


def transformers_library() -> Any:
    """The package, imported when one of its networks is built.

    Raises:
        ValueError: not installed; the message explains how to install it.
    """
    try:
        import transformers
    except ImportError:
        raise ConfigError(
            "text networks need the package transformers: pip install 'lightning-ssl[text]'"
        ) from None
    return transformers


class BertEncoder(TokenEncoder):
    """A bidirectional Transformer over tokens (Devlin et al. 2019, https://arxiv.org/abs/1810.04805).

    The default is BERT-base. Padding, token id 0, is masked in the attention.

    Args:
        vocab_size: V, at least the data's; determined by the checkpoint's tokenizer.
        width: D of each token.
        depth: number of layers.
        heads: number of attention heads; must divide ``width``.
        max_length: tokens of the longest sample.
        dropout: dropout rate of layers and attention.
        pooling: features are the ``mean`` over tokens without padding, or the ``class`` token.

    Raises:
        ValueError: an option is out of range, or ``transformers`` is not installed.
    """

    def __init__(
        self,
        vocab_size: int,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        max_length: int = 512,
        dropout: float = 0.1,
        pooling: Literal["mean", "class"] = "mean",
    ) -> None:
        super().__init__()
        check_at_least(1, vocab_size=vocab_size, depth=depth, heads=heads, max_length=max_length)
        check(width >= 1 and width % heads == 0, "width", f"a multiple of heads ({heads})", width)
        check_within(0, 1, "[)", dropout=dropout)
        check_one_of(("mean", "class"), pooling=pooling)
        library = transformers_library()
        config = library.BertConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            max_position_embeddings=max_length,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            pad_token_id=PAD,
        )
        self.net = library.BertModel(config, add_pooling_layer=False)
        self.vocab_size, self.num_features, self.max_length, self.pooling = (
            vocab_size,
            width,
            max_length,
            pooling,
        )

    @property
    def token_embedding(self) -> Tensor:
        """(V, D) token table, for a tied decoder."""
        return self.net.embeddings.word_embeddings.weight

    def block_list(self) -> list[nn.Module]:
        return list(self.net.encoder.layer)

    def to_transformers(self) -> Any:
        """The ``BertModel``, in eval mode."""
        return self.net.eval()

    def forward_tokens(self, tokens: Tensor, segment: Tensor) -> Tensor:
        """Tokens (B, T) and their segments (B, T) in {0, 1} -> (B, T, D)."""
        if tokens.shape[1] > self.max_length:
            raise ConfigError(
                f"samples of {tokens.shape[1]} tokens are longer than max_length={self.max_length}"
            )
        mask = (tokens != PAD).long()
        return self.net(input_ids=tokens, attention_mask=mask, token_type_ids=segment).last_hidden_state

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, D)."""
        h = self.forward_tokens(tokens, segments_of(tokens))  # (B, T, D)
        if self.pooling == "class":
            return h[:, 0]
        visible = (tokens != PAD).to(h.dtype)[:, :, None]
        return (h * visible).sum(1) / visible.sum(1).clamp(min=1)
