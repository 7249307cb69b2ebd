"""EMP-SSL (Tong et al. 2023, https://arxiv.org/abs/2304.03977).

Many patches of one fixed scale are cut from each image and pulled to their mean, and the embeddings of each
patch position in the batch are spread out by their coding rate. Few passes over the data suffice, since each
image is used many times within a step.

Differs from the official code: the log-determinant is computed from the smaller of the two Gram matrices,
which gives the same value; the embeddings of a view are gathered from all processes before its coding rate,
so that several processes have the loss of one; any optimizer can be used instead of the clipped LARS. Probes
see the encoder's features of the whole image; ``bag`` gives the paper's own features, the mean over many
augmented patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.base import Batch
from datamodules.checks import check_at_least, check_positive
from sslmodules.base import SSLModule, full_precision
from sslmodules.networks import mlp
from sslmodules.networks.encoder import Encoder
from sslmodules.swav import encode_views


def coding_rate(z: Tensor, epsilon: float = 0.2) -> Tensor:
    """Total coding rate, 1/2 log det(I + D / (N epsilon) Z^T Z).

    Yu et al. 2020, https://arxiv.org/abs/2006.08558. Large if the N rows of Z point in many directions. By
    Sylvester's identity the (D, D) and the (N, N) matrix have the same determinant; the smaller one is
    factorized.

    Args:
        z: (..., N, D) embeddings of the GLOBAL batch, usually unit vectors; computed in float32 or better.
        epsilon: the papers' squared coding precision, > 0; 0.2 in EMP-SSL.

    Returns:
        (...) one rate for each batch of N rows, >= 0.

    Raises:
        ValueError: ``epsilon`` is not positive.
    """
    check_positive(epsilon=epsilon)
    with torch.autocast(z.device.type, enabled=False):
        z = full_precision(z)
        n, d = z.shape[-2:]
        gram = z @ z.mT if n < d else z.mT @ z  # (..., K, K) with K = min(N, D)
        identity = torch.eye(gram.shape[-1], device=z.device, dtype=z.dtype)
        # log det of a positive definite matrix is twice the sum of the logarithms of its factor's diagonal
        factor = torch.linalg.cholesky_ex(identity + d / (n * epsilon) * gram).L
        return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def patch_similarity(z: Tensor) -> Tensor:
    """Cosine similarity of each view with the mean of all views of its image (Tong et al. 2023).

    Args:
        z: (V, B, D) unit vectors.

    Returns:
        Scalar in [-1, 1], the mean over views and samples. Gradients flow into the mean as well.
    """
    return F.cosine_similarity(z, z.mean(0, keepdim=True), dim=2).mean()


class EMPSSL(SSLModule):
    """EMP-SSL: make many patches of an image similar, with a coding rate against collapse.

    The loss is ``-similarity_weight * patch_similarity - coding_rate``.

    Args:
        encoder: (B, C, H, W) -> (B, num_features).
        similarity_weight: weight of the similarity beside the coding rate, which has weight 1; 200 in the
            official code.
        epsilon: the coding rate's, > 0.
        projector_hidden: width of the projector's two hidden layers; the first is the paper's "pre-feature".
        projector_out: width D of the embeddings z.
        **kwargs: ``SSLModule``'s.

    Raises:
        ValueError: an option is out of range.
    """

    couples_batch = True
    batch_keys = ("views",)

    def __init__(
        self,
        encoder: Encoder,
        similarity_weight: float = 200.0,
        epsilon: float = 0.2,
        projector_hidden: int = 4096,
        projector_out: int = 1024,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_at_least(0, similarity_weight=similarity_weight)
        check_positive(epsilon=epsilon)
        check_at_least(1, projector_hidden=projector_hidden, projector_out=projector_out)
        self.encoder, self.similarity_weight, self.epsilon = encoder, similarity_weight, epsilon
        self.projector = mlp([encoder.num_features, projector_hidden, projector_hidden, projector_out])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        views = batch["views"]
        z = self.projector(encode_views(self.encoder, views)).unflatten(0, (len(views), -1))  # (V, B, D)
        with torch.autocast(z.device.type, enabled=False):
            z = F.normalize(full_precision(z), dim=2)
            similarity = patch_similarity(z)
            everyone = self.gather(z.transpose(0, 1)).rows.transpose(0, 1)  # (V, W * B, D)
            rate = coding_rate(everyone, self.epsilon).mean()
        loss = -self.similarity_weight * similarity - rate
        return {"loss": loss, "patch_similarity": similarity, "coding_rate": rate}

    @torch.no_grad()
    def bag(self, patches: Sequence[Tensor]) -> Tensor:
        """The paper's features: the mean over patches of the projector's first hidden layer.

        Args:
            patches: augmented patches of the same images, each (B, C, h, w).

        Returns:
            (B, projector_hidden).
        """
        first = self.projector[:3]  # linear, batch norm, ReLU
        return torch.stack([first(self.encoder(patch)) for patch in patches]).mean(0)
