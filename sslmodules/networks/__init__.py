"""Encoders, decoders and heads. An encoder tells the width of its features as ``num_features``.

Any ``nn.Module`` with ``num_features`` and ``forward(x) -> (B, num_features)`` is an encoder; timm's models
(with ``num_classes=0``) are. One that also has ``forward_features(x) -> (B, num_features, h, w)`` can feed a
convolutional decoder.
"""

from sslmodules.networks.bert_encoder import BertEncoder
from sslmodules.networks.convnet import ConvDecoder, ConvEncoder
from sslmodules.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from sslmodules.networks.frames import GRUFrames, TransformerFrames
from sslmodules.networks.gpt_encoder import GPTEncoder, RecurrentEncoder
from sslmodules.networks.heads import mlp, projection_mlp
from sslmodules.networks.momentum import MomentumCopy, cosine_momentum
from sslmodules.networks.pixel_tokens import PixelTokens
from sslmodules.networks.resnet import ResNetEncoder
from sslmodules.networks.timm_encoder import TimmEncoder
from sslmodules.networks.vector_nets import MLPDecoder, MLPEncoder, VectorDecoder
from sslmodules.networks.vit import PatchDecoder, ViTEncoder, class_attention

__all__ = [
    "BertEncoder",
    "ConvDecoder",
    "ConvEncoder",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "GPTEncoder",
    "GRUFrames",
    "MLPDecoder",
    "MLPEncoder",
    "MomentumCopy",
    "PatchDecoder",
    "PixelTokens",
    "RecurrentEncoder",
    "ResNetEncoder",
    "TimmEncoder",
    "TransformerFrames",
    "VectorDecoder",
    "ViTEncoder",
    "class_attention",
    "cosine_momentum",
    "mlp",
    "projection_mlp",
]
