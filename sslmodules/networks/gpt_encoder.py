"""A causal Transformer over tokens, and a recurrent alternative."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.checks import check, check_at_least, check_one_of, check_within
from datamodules.errors import ConfigError
from sslmodules.networks.encoder import CausalEncoder


class _Attention(nn.Module):
    """Causal self-attention; cached keys and values of earlier tokens make a new token cost one step."""

    def __init__(self, width: int, heads: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)
        self.heads, self.dropout = heads, dropout

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        b, t, d = x.shape
        q, k, v = (
            self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        )  # each (B, heads, T, d)
        if past is not None:  # t is 1: the new token attends to everything
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=past is None)
        return self.out(y.transpose(1, 2).reshape(b, t, d)), (k, v)


class _Block(nn.Module):
    """Pre-norm, as in GPT-2: layer norm before attention and MLP, each added to the residual stream."""

    def __init__(self, width: int, heads: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width, bias=bias), _Attention(width, heads, dropout, bias)
        self.norm2 = nn.LayerNorm(width, bias=bias)
        self.hidden, self.out = nn.Linear(width, 4 * width, bias=bias), nn.Linear(4 * width, width, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        attended, past = self.attention(self.norm1(x), past)
        x = x + self.dropout(attended)
        return x + self.dropout(self.out(F.gelu(self.hidden(self.norm2(x))))), past


class GPTEncoder(CausalEncoder):
    """GPT-2's Transformer (Radford et al. 2019): embeddings, pre-norm blocks, final layer norm.

    Initialized as GPT-2: normal weights of standard deviation 0.02, divided by sqrt(2 depth) for those that
    write to the residual stream, biases 0. As in nanoGPT, position embeddings also use 0.02 (GPT-2's code:
    0.01), and GELU is exact.

    Hand-written, because pixels need it without an optional package, and ``transformers``' ``GPT2Model`` has
    no ``bias: false``. ``to_transformers`` converts to that class, with equal outputs (tested).

    Args:
        vocab_size: number V of tokens.
        block_size: longest context.
        width: D.
        depth: number of blocks.
        heads: number of attention heads; must divide the width.
        dropout: after the embeddings, in attention, and on the output of each block (GPT-2: 0.1).
        bias: biases in linear layers and layer norms.

    Raises:
        ValueError: a size is out of range.
    """

    block_size: int

    def __init__(
        self,
        vocab_size: int,
        block_size: int = 1024,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_at_least(1, vocab_size=vocab_size, block_size=block_size, width=width, depth=depth, heads=heads)
        check_within(0, 1, "[)", dropout=dropout)
        check(width % heads == 0, "heads", f"a divisor of width ({width})", heads)
        self.vocab_size, self.block_size, self.num_features, self.heads = vocab_size, block_size, width, heads
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Embedding(block_size, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(width, heads, dropout, bias) for _ in range(depth))
        self.norm = nn.LayerNorm(width, bias=bias)
        for name, layer in self.named_modules():
            if isinstance(layer, (nn.Linear, nn.Embedding)):
                residual = name.endswith("out")
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * depth) if residual else 0.02)
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def resume(self, tokens: Tensor, state: list[Any] | None = None) -> tuple[Tensor, list[Any]]:
        """Like ``states``, continuing from ``state``.

        Args:
            tokens: (B, T), or (B, 1) after a state.
            state: returned by an earlier call, None to start.

        Returns:
            Hidden states (B, T, D), and the state after them: keys and values of each block.

        Raises:
            ValueError: more tokens than ``block_size``, or more than one after a state.
        """
        before = 0 if state is None else state[0][0].shape[2]
        length = tokens.shape[1]
        if before + length > self.block_size:
            raise ConfigError(f"{before + length} tokens in a row, more than block_size {self.block_size}")
        if before and length != 1:
            raise ValueError(f"after a state tokens come one at a time, got {length}")
        places = torch.arange(before, before + length, device=tokens.device)
        x = self.dropout(self.token_embedding(tokens) + self.position_embedding(places))  # (B, T, D)
        after = []
        for i, block in enumerate(self.blocks):
            x, past = block(x, None if state is None else state[i])
            after.append(past)
        return self.norm(x), after

    def block_list(self) -> list[nn.Module]:
        return list(self.blocks)

    def to_transformers(self) -> Any:
        """The same network as ``transformers``' ``GPT2Model``, in eval mode.

        ``AutoModel.from_pretrained`` loads what its ``save_pretrained`` writes; its ``last_hidden_state``
        equals ``states``.
        """
        from transformers import GPT2Config, GPT2Model

        model = GPT2Model(
            GPT2Config(
                vocab_size=self.vocab_size,
                n_positions=self.block_size,
                n_embd=self.num_features,
                n_layer=len(self.blocks),
                n_head=self.heads,
                activation_function="gelu",
                bos_token_id=None,
                eos_token_id=None,
            )
        )
        ours: dict[str, Any] = {
            "wte": self.token_embedding,
            "wpe": self.position_embedding,
            "ln_f": self.norm,
        }
        for i, block in enumerate(self.blocks):
            assert isinstance(block, _Block)
            parts: dict[str, Any] = {
                "ln_1": block.norm1,
                "attn.c_attn": block.attention.qkv,
                "attn.c_proj": block.attention.out,
            }
            parts |= {"ln_2": block.norm2, "mlp.c_fc": block.hidden, "mlp.c_proj": block.out}
            ours |= {f"h.{i}.{name}": part for name, part in parts.items()}
        state = {}
        for name, layer in ours.items():
            # its linear layers store the transposed matrix and always have a bias
            state[f"{name}.weight"] = layer.weight.T if isinstance(layer, nn.Linear) else layer.weight
            if not isinstance(layer, nn.Embedding):
                state[f"{name}.bias"] = (
                    model.state_dict()[f"{name}.bias"] * 0 if layer.bias is None else layer.bias
                )
        model.load_state_dict({key: value.detach().clone().contiguous() for key, value in state.items()})
        return model.eval()


class RecurrentEncoder(CausalEncoder):
    """A GRU or LSTM over tokens: the recurrent baseline of language modeling, with unlimited context.

    Embeddings have standard deviation 0.02, as in GPT, because the output layer shares them; at the input
    they are scaled to 1.

    Args:
        vocab_size: number V of tokens.
        width: D of embeddings and hidden states, equal because the output layer shares the embeddings.
        depth: layers.
        cell: ``gru`` (Cho et al. 2014) or ``lstm`` (Hochreiter and Schmidhuber 1997).
        dropout: on embeddings and outputs of each layer.

    Raises:
        ValueError: a size is out of range, or an unknown cell.
    """

    block_size: int | None = None

    def __init__(
        self,
        vocab_size: int,
        width: int = 256,
        depth: int = 2,
        cell: Literal["gru", "lstm"] = "gru",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_at_least(1, vocab_size=vocab_size, width=width, depth=depth)
        check_within(0, 1, "[)", dropout=dropout)
        check_one_of(("gru", "lstm"), cell=cell)
        self.vocab_size, self.num_features = vocab_size, width
        self.token_embedding = nn.Embedding(vocab_size, width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        kind = nn.GRU if cell == "gru" else nn.LSTM
        self.layers = kind(width, width, depth, batch_first=True, dropout=dropout if depth > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)

    def resume(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Like ``states``, continuing from ``state`` (None to start); also the state after the last token."""
        h, state = self.layers(self.dropout(50 * self.token_embedding(tokens)), state)
        return self.dropout(h), state
