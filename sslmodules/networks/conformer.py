"""A Conformer over frames: the transformers library's Wav2Vec2BertModel with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from datamodules.checks import check, check_at_least, check_within
from sslmodules.networks.bert_encoder import transformers_library
from sslmodules.networks.encoder import MaskedFrameEncoder


class ConformerFrames(MaskedFrameEncoder):
    """A Transformer with convolutions over frames (Conformer), as in w2v-BERT 2.0.

    Gulati et al. 2020, https://arxiv.org/abs/2005.08100. Hidden frames are replaced by a learned vector.
    Args:
        in_features: values of a frame: the number of mel bands.
        width: D of each frame.
        depth: number of layers.
        heads: number of attention heads; must divide ``width``.
        kernel: frames in a (causal) convolution: those before a frame and the frame itself.
        dropout: dropout rate of layers and attention.

    Raises:
        ValueError: an option is out of range, or ``transformers`` is not installed.
    """

    def __init__(
        self,
        in_features: int = 40,
        width: int = 256,
        depth: int = 4,
        heads: int = 4,
        kernel: int = 15,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_at_least(1, in_features=in_features, depth=depth, heads=heads, kernel=kernel)
        check(width >= 1 and width % heads == 0, "width", f"a multiple of heads ({heads})", width)
        check_within(0, 1, "[)", dropout=dropout)
        rates = ("hidden_dropout", "attention_dropout", "feat_proj_dropout", "conformer_conv_dropout")
        library = transformers_library()
        config = library.Wav2Vec2BertConfig(
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            feature_projection_input_dim=in_features,
            conv_depthwise_kernel_size=kernel,
            layerdrop=0.0,
            **dict.fromkeys(rates, dropout),
        )
        self.net = library.Wav2Vec2BertModel(config)
        self.in_features, self.num_features = in_features, width

    def block_list(self) -> list[nn.Module]:
        return list(self.net.encoder.layers)

    def to_transformers(self) -> Any:
        """The ``Wav2Vec2BertModel``, in eval mode; its ``input_features`` are standardized log-mel frames."""
        return self.net.eval()

    def forward_frames(self, frames: Tensor, valid: Tensor, hidden: Tensor | None = None) -> Tensor:
        if hidden is None:  # without a mask, the library would draw its own in training
            hidden = torch.zeros_like(valid)
        return self.net(
            input_features=frames, attention_mask=valid.long(), mask_time_indices=hidden
        ).last_hidden_state
