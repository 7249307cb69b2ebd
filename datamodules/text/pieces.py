"""Cuts long texts into pieces that together have the tokens of the whole text."""

from __future__ import annotations

import re
from collections.abc import Iterator

PIECE = 2**16
"""Approximate length of a piece in characters: tokenizers take up to 200 bytes of memory for each."""

SAFE = re.compile(r"(?<=\S) (?=\S)")
"""A single space between two words: no tokenizer merges the text before it with the text after it."""


def pieces(text: str) -> Iterator[tuple[str, bool]]:
    """(piece, is it the last) of a text, cut before single spaces.

    If ``PIECE`` characters contain no such space, the piece continues to the next one.
    """
    start = 0
    while len(text) - start > PIECE:
        found = SAFE.search(text, start + PIECE)
        if found is None:
            break
        yield text[start : found.start()], False
        start = found.start()
    yield text[start:], True
