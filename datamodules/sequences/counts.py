"""Counts of short words in sequences: features without learning."""

from __future__ import annotations

import torch
from torch import Tensor


def count_words(codes: Tensor, n: int, letters: int) -> Tensor:
    """Count each word of n consecutive letters, at all positions.

    Args:
        codes: (B, T) int64; a word with a code outside 0..letters-1 is not counted.
        n: letters of a word.
        letters: size of the alphabet.

    Returns:
        (B, letters^n) float32; the first letter of a word is the most significant.
    """
    words = codes.unfold(1, n, 1)  # (B, T - n + 1, n)
    powers = letters ** torch.arange(n - 1, -1, -1, device=codes.device)
    counted = ((words >= 0) & (words < letters)).all(-1)
    numbers = (words @ powers).masked_fill(~counted, 0)
    counts = torch.zeros(len(codes), letters**n, device=codes.device)
    return counts.scatter_add_(1, numbers, counted.float())
