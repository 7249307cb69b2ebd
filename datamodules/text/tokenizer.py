"""Tokenizers: characters, bytes, BPE and WordPiece.

A tokenizer is stored as JSON text; for BPE and WordPiece in the library's own format, which other programs
can read.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np

from datamodules.checks import check, check_one_of
from datamodules.errors import ConfigError

Kind = Literal["characters", "bytes", "bpe", "wordpiece"]

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(len(SPECIALS))
"""Ids of the special tokens, the same for every tokenizer that has them."""


class Tokenizer:
    """Converts between text and token ids. Created by ``train_tokenizer`` or ``load_tokenizer``.

    Attributes:
        kind: one of ``Kind``.
        specials: ids 0 to 4 are [PAD], [UNK], [CLS], [SEP] and [MASK]; without them every id is text.
        vocab_size: number of ids, including special ones.
    """

    kind: Kind
    specials: bool
    vocab_size: int

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One int64 array of ids per text, without special tokens around it.

        A character that does not occur in the training text becomes [UNK] or, without special tokens, is
        dropped.
        """
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        raise NotImplementedError

    def count_unknown(self, text: str, ids: np.ndarray) -> int:
        """Number of characters or pieces of a text that are unknown in its ``ids``."""
        return int((ids == UNK).sum()) if self.specials else 0

    def to_json(self) -> str:
        """The JSON text that ``load_tokenizer`` reads."""
        raise NotImplementedError

    def continuations(self) -> np.ndarray:
        """(vocab_size,) bool: True for a piece that continues the word before it (WordPiece's ``##``)."""
        raise ValueError(f"only wordpiece marks the pieces of a word, but the tokenizer is {self.kind}")


class _Symbols(Tokenizer):
    """Characters or bytes: a lookup table; only the set of characters comes from the text."""

    def __init__(self, kind: Kind, specials: bool, characters: str = "") -> None:
        self.kind, self.specials, self.characters = kind, specials, characters
        self.first = len(SPECIALS) if specials else 0  # id of the first symbol
        self.vocab_size = self.first + (256 if kind == "bytes" else len(characters))
        self.codes = np.array([ord(c) for c in characters], dtype=np.uint32)  # in ascending order

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> np.ndarray:
        if self.kind == "bytes":
            return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64) + self.first
        codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        places = np.searchsorted(self.codes, codes).clip(max=len(self.codes) - 1)
        known = self.codes[places] == codes
        return np.where(known, places + self.first, UNK) if self.specials else places[known]

    def count_unknown(self, text: str, ids: np.ndarray) -> int:
        return (
            super().count_unknown(text, ids)
            if self.specials or self.kind == "bytes"
            else len(text) - len(ids)
        )

    def decode(self, ids: Sequence[int]) -> str:
        symbols = [int(i) - self.first for i in ids if i >= self.first]
        if self.kind == "bytes":
            return bytes(symbols).decode("utf-8", "replace")
        return "".join(self.characters[i] for i in symbols)

    def to_json(self) -> str:
        content: dict[str, Any] = {"kind": self.kind, "specials": self.specials}
        return json.dumps(content if self.kind == "bytes" else {**content, "characters": self.characters})


class _Pieces(Tokenizer):
    """BPE or WordPiece of the ``tokenizers`` library."""

    specials = True

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        tokenizer.encode_special_tokens = True  # "[SEP]" written in a text is text
        self.kind = "bpe" if type(tokenizer.model).__name__ == "BPE" else "wordpiece"
        self.vocab_size = tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(e.ids, dtype=np.int64) for e in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode([int(i) for i in ids])

    def to_json(self) -> str:
        return self.tokenizer.to_str()

    def continuations(self) -> np.ndarray:
        if self.kind != "wordpiece":
            return super().continuations()
        return np.array([self.tokenizer.id_to_token(i).startswith("##") for i in range(self.vocab_size)])


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ConfigError(
            "the tokenizers bpe and wordpiece need the package tokenizers: pip install "
            "'lightning-ssl[text]', or give --data.tokenizer characters or bytes"
        ) from None
    # if it is set, the library neither warns nor stops its threads when a DataLoader starts its workers
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    return tokenizers


def train_tokenizer(kind: Kind, texts: Iterable[str], vocab_size: int, specials: bool) -> Tokenizer:
    """Build a tokenizer from a corpus.

    ``characters``: those in the corpus, in code point order (as nanoGPT). ``bytes``: UTF-8, all 256. ``bpe``:
    byte-level pairs as in GPT-2 (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909); nothing is ever
    unknown. ``wordpiece``: pieces of lower-case words without accents, as in uncased BERT
    (https://arxiv.org/abs/1810.04805).

    Args:
        kind: the kind of tokenizer.
        texts: the corpus: training data only.
        vocab_size: maximum number of ids for bpe and wordpiece, including special ones; not needed for the
            others.
        specials: give characters and bytes the special tokens too; the others always have them.
    Raises:
        ValueError: unknown kind, an empty corpus, or a vocab_size too small for the single symbols.
    """
    if kind == "bytes":
        return _Symbols(kind, specials)
    if kind == "characters":
        found: set[str] = set()
        for text in texts:
            found.update(text)
        if not found:
            raise ConfigError("the training text contains no characters")
        return _Symbols(kind, specials, "".join(sorted(found)))
    check_one_of(get_args(Kind), tokenizer=kind)
    least = len(SPECIALS) + 256 if kind == "bpe" else 100
    check(vocab_size >= least, "vocab_size", f"at least {least} for {kind}", vocab_size)
    library = _library()
    common = {"vocab_size": vocab_size, "special_tokens": list(SPECIALS), "show_progress": False}
    if kind == "bpe":
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(), **common
        )
    else:
        normalizer, splitter = (
            library.normalizers.BertNormalizer(lowercase=True),
            library.pre_tokenizers.BertPreTokenizer(),
        )
        words: Counter[str] = Counter()
        for text in texts:
            words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
        vocabulary = _word_pieces(library, words, common)
        tokenizer = library.Tokenizer(library.models.WordPiece(vocabulary, unk_token=SPECIALS[UNK]))
        tokenizer.add_special_tokens(list(SPECIALS))
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
        tokenizer.decoder = library.decoders.WordPiece()
        return _Pieces(tokenizer)
    tokenizer.train_from_iterator(texts, trainer)
    return _Pieces(tokenizer)


def _word_pieces(library: Any, words: Counter[str], options: dict[str, Any]) -> dict[str, int]:
    """A WordPiece vocabulary that is reproducible for the same words.

    The library's ``WordPieceTrainer`` numbers pieces in hash-table order, which differs between calls, and
    these numbers break ties between equally frequent pairs. Its ``BpeTrainer`` sorts. So every letter inside
    a word gets its own code, pairs are learned as in BPE, and a piece that starts with such a code gets
    ``##``.
    """
    words = _within_alphabet(words, options["vocab_size"] - len(SPECIALS))
    inner = sorted({letter for word in words for letter in word[1:]})
    code = {letter: chr(0xF0000 + i) for i, letter in enumerate(inner)}  # a private-use plane of Unicode
    letter_of = {c: letter for letter, c in code.items()}
    trained = library.Tokenizer(library.models.BPE())
    trained.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    coded = (
        " ".join([word[0] + "".join(code[c] for c in word[1:])] * count) for word, count in words.items()
    )
    trained.train_from_iterator(coded, library.trainers.BpeTrainer(**options))
    pieces = {}
    for piece, number in trained.get_vocab().items():
        plain = "".join(letter_of.get(c, c) for c in piece)
        pieces[plain if piece in SPECIALS or piece[0] not in letter_of else f"##{plain}"] = number
    return pieces


def _within_alphabet(words: Counter[str], most: int) -> Counter[str]:
    """The words that can be written with the ``most`` commonest letters.

    A letter at the start of a word and one inside count separately. These are all words, except in scripts
    with thousands of letters, whose rarest letters become [UNK].
    """
    counts: Counter[tuple[bool, str]] = Counter()
    for word, count in words.items():
        for place, letter in enumerate(word):
            counts[place > 0, letter] += count
    if len(counts) <= most:
        return words
    kept = set(sorted(counts, key=lambda key: (-counts[key], key))[:most])
    return Counter(
        {w: n for w, n in words.items() if all((i > 0, letter) in kept for i, letter in enumerate(w))}
    )


def load_tokenizer(text: str) -> Tokenizer:
    """Load a tokenizer from the text that ``to_json`` wrote.

    Raises:
        ValueError: not the JSON of a tokenizer, or its special tokens are not ids 0 to 4.
    """
    try:
        content = json.loads(text)
        if "model" in content:
            tokenizer = _Pieces(_library().Tokenizer.from_str(text))
        else:
            return _Symbols(content["kind"], bool(content["specials"]), content.get("characters", ""))
    except Exception as error:  # the library raises plain Exception
        raise ConfigError(f"--data.vocabulary is not a tokenizer ({type(error).__name__}: {error})") from None
    ids = [tokenizer.tokenizer.token_to_id(token) for token in SPECIALS]
    if ids != list(range(len(SPECIALS))):
        raise ConfigError(f"--data.vocabulary: {', '.join(SPECIALS)} have the ids {ids}, expected 0 to 4")
    return tokenizer
