"""The letters of DNA and protein, as codes and as tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from datamodules.errors import DataFileError
from datamodules.text.tokenizer import SPECIALS, Tokenizer

FOREIGN = 255
"""Code of a byte that is not a letter of the alphabet."""
AMBIGUOUS = 254
"""Code of an ambiguous letter, before it is replaced by the unknown one."""

AlphabetName = Literal["dna", "protein"]


class Alphabet(NamedTuple):
    """Letters with codes 0, 1, ... in this order, and the extensions of their FASTA files."""

    letters: str
    unknown: int  # code of the letter for any (N, X)
    table: bytes  # 256 codes, one for each byte
    expected: str  # for messages
    endings: tuple[str, ...]  # of files

    def codes(self, letters: str, where: str, place: int = 0) -> tuple[bytes, int]:
        """Letters of either case as codes, and the number of ambiguous ones, which become ``unknown``.

        Args:
            letters: a piece of a sequence.
            where: for messages: file and record.
            place: number of letters before the piece.

        Raises:
            DataFileError: a letter of another alphabet.
        """
        codes = letters.encode("ascii", "replace").translate(self.table)
        if (wrong := codes.find(FOREIGN)) >= 0:
            letter, at = letters[wrong], place + wrong + 1
            raise DataFileError(f"{where} has {letter!r} at position {at}, {self.advice(letter)}")
        if ambiguous := codes.count(AMBIGUOUS):
            codes = codes.replace(bytes([AMBIGUOUS]), bytes([self.unknown]))
        return codes, ambiguous

    def advice(self, letter: str) -> str:
        if letter in "-.":
            return "an alignment gap: remove the gaps"
        if self is DNA and PROTEIN.table[ord(letter) % 256] != FOREIGN and letter.isalpha():
            return f"which is not a letter of {self.expected}: for protein give --data.alphabet protein"
        return f"which is not a letter of {self.expected}"


def _alphabet(letters: str, unknown: str, also: dict[str, str], *rest: tuple[str, ...] | str) -> Alphabet:
    """An alphabet; ``also`` maps further letters to one of ``letters``, or to "?" if they are ambiguous."""
    table = bytearray([FOREIGN] * 256)
    for letter, meaning in ({c: c for c in letters} | also).items():
        for case in (letter, letter.lower()):
            table[ord(case)] = AMBIGUOUS if meaning == "?" else letters.index(meaning)
    return Alphabet(letters, letters.index(unknown), bytes(table), *rest)  # type: ignore[arg-type]


FASTA = (".fa", ".fasta", ".fas")
DNA = _alphabet(
    "ACGTN",
    "N",
    {"U": "T"} | dict.fromkeys("RYSWKMBDHV", "?"),
    "DNA (A, C, G, T, U, N or another of IUPAC's)",
    (*FASTA, ".fna", ".ffn", ".frn"),
)
PROTEIN = _alphabet(
    "ACDEFGHIKLMNPQRSTVWYBJOUXZ*-",
    "X",
    {},
    "protein (the 20 amino acids, B, J, O, U, X, Z, * or -)",
    (*FASTA, ".faa", ".pep"),
)
ALPHABETS: dict[str, Alphabet] = {"dna": DNA, "protein": PROTEIN}

COMPLEMENT = np.array([3, 2, 1, 0, 4], dtype=np.uint8)


def reverse_complement(codes: np.ndarray) -> np.ndarray:
    """(..., n) codes of DNA as read from the other strand."""
    return COMPLEMENT[codes[..., ::-1]]


class Letters(Tokenizer):
    """Letters, or k-mers of DNA, as tokens.

    With k = 1 a token is a letter's code; otherwise k consecutive bases are one number in base 4, the first
    one most significant, and 4^k stands for any k-mer with an N. Special tokens, if any, come first.

    Args:
        alphabet: of the codes.
        k: letters per token.
        specials: ids 0 to 4 are [PAD], [UNK], [CLS], [SEP] and [MASK].
    """

    kind = "characters"

    def __init__(self, alphabet: Alphabet, k: int, specials: bool) -> None:
        self.alphabet, self.k, self.specials = alphabet, k, specials
        self.first = len(SPECIALS) if specials else 0  # id of the first letter
        self.vocab_size = self.first + (len(alphabet.letters) if k == 1 else 4**k + 1)

    def tokens(self, codes: np.ndarray) -> np.ndarray:
        """(..., T * k) codes -> (..., T) int64 token ids."""
        if self.k == 1:
            return codes.astype(np.int64) + self.first
        words = codes.reshape(*codes.shape[:-1], -1, self.k).astype(np.int64)
        numbers = words @ 4 ** np.arange(self.k - 1, -1, -1)
        return np.where((words == self.alphabet.unknown).any(-1), 4**self.k, numbers) + self.first

    def codes(self, ids: np.ndarray) -> np.ndarray:
        """(..., T) token ids -> (..., T, k) int64 codes; -1 for special tokens."""
        numbers = ids.astype(np.int64)[..., None] - self.first
        if self.k > 1:
            powers = 4 ** np.arange(self.k - 1, -1, -1)
            letters = np.where(numbers == 4**self.k, self.alphabet.unknown, numbers // powers % 4)
            return np.where(numbers < 0, -1, letters)
        return np.maximum(numbers, -1)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As ``Tokenizer.encode``; white space is ignored and an incomplete last k-mer dropped."""
        found = []
        for text in texts:
            codes, _ = self.alphabet.codes("".join(text.split()), "the text")
            whole = np.frombuffer(codes, np.uint8)[: len(codes) // self.k * self.k]
            found.append(self.tokens(whole))
        return found

    def decode(self, ids: Sequence[int]) -> str:
        codes = self.codes(np.array(ids, np.int64)).ravel()
        return "".join(self.alphabet.letters[code] for code in codes if code >= 0)

    def to_json(self) -> str:
        return json.dumps({"letters": self.alphabet.letters, "k": self.k, "specials": self.specials})
