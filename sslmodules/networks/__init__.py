"""Encoders, decoders and heads. encoder.py defines what an encoder is."""

from sslmodules.networks.bert_encoder import BertEncoder
from sslmodules.networks.conformer import ConformerFrames
from sslmodules.networks.convnet import ConvDecoder, ConvEncoder
from sslmodules.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from sslmodules.networks.encoder import (
    CausalEncoder,
    Encoder,
    FrameEncoder,
    MapEncoder,
    MaskedFrameEncoder,
    PatchEncoder,
    SequenceEncoder,
    TokenEncoder,
    WrappedEncoder,
)
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
    "CausalEncoder",
    "ConformerFrames",
    "ConvDecoder",
    "ConvEncoder",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "Encoder",
    "FrameEncoder",
    "GPTEncoder",
    "GRUFrames",
    "MLPDecoder",
    "MLPEncoder",
    "MapEncoder",
    "MaskedFrameEncoder",
    "MomentumCopy",
    "PatchDecoder",
    "PatchEncoder",
    "PixelTokens",
    "RecurrentEncoder",
    "ResNetEncoder",
    "SequenceEncoder",
    "TimmEncoder",
    "TokenEncoder",
    "TransformerFrames",
    "VectorDecoder",
    "ViTEncoder",
    "WrappedEncoder",
    "class_attention",
    "cosine_momentum",
    "mlp",
    "projection_mlp",
]
