"""Tokenizers: round trips, fixed ids of the special tokens, and the same vocabulary from the same text."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import models, normalizers, pre_tokenizers, trainers

from datamodules.text.corpus import embedded_documents, made_up_documents
from datamodules.text.tokenizer import SPECIALS, UNK, Kind, load_tokenizer, train_tokenizer

TEXT = "Ünïcode, “quotes” and\nlines; the [SEP] of a text is text. 10 words!"
KINDS = get_args(Kind)


@pytest.mark.parametrize("kind", ["characters", "bytes", "bpe"])
@pytest.mark.parametrize("specials", [True, False])
def test_round_trip(kind: Kind, specials: bool) -> None:
    """Nothing is lost, and no id of a special token stands for text, even where the text spells one."""
    tokenizer = train_tokenizer(kind, [TEXT], 400, specials)
    [ids] = tokenizer.encode([TEXT])
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.specials == (specials or kind == "bpe")
    assert ids.min() >= (len(SPECIALS) if tokenizer.specials else 0) and ids.max() < tokenizer.vocab_size
    again = load_tokenizer(tokenizer.to_json())
    assert again.to_json() == tokenizer.to_json() and again.vocab_size == tokenizer.vocab_size
    assert again.encode([TEXT])[0].tolist() == ids.tolist()


def test_characters_are_those_of_the_text() -> None:
    """By hand: 'abac' has three characters, in the order of their code points from 0 (nanoGPT), or from 5."""
    plain, special = (train_tokenizer("characters", ["abac"], 0, specials) for specials in (False, True))
    assert plain.vocab_size == 3 and plain.encode(["abac"])[0].tolist() == [0, 1, 0, 2]
    assert special.vocab_size == 8 and special.encode(["cab"])[0].tolist() == [7, 5, 6]


def test_unknown_characters_are_counted() -> None:
    plain, special = (train_tokenizer("characters", ["abac"], 0, specials) for specials in (False, True))
    [left_out], [marked] = plain.encode(["azbz"]), special.encode(["azbz"])
    assert left_out.tolist() == [0, 1] and plain.count_unknown("azbz", left_out) == 2
    assert marked.tolist() == [5, UNK, 6, UNK] and special.count_unknown("azbz", marked) == 2


def test_word_pieces() -> None:
    tokenizer = train_tokenizer(
        "wordpiece", ["walk walks walked walking talk talks talked"] * 9, 100, specials=True
    )
    [ids] = tokenizer.encode(["Walks TALKING [SEP]"])
    assert tokenizer.decode(ids[:2]).replace(" ", "").startswith("walk") and ids.min() >= 1
    assert 3 not in ids.tolist()  # "[SEP]" written out is text
    pieces = [tokenizer.tokenizer.id_to_token(i) for i in range(tokenizer.vocab_size)]  # type: ignore[attr-defined]
    assert pieces[:5] == list(SPECIALS)
    assert [p.startswith("##") for p in pieces] == tokenizer.continuations().tolist()
    with pytest.raises(ValueError, match="only wordpiece"):
        train_tokenizer("bpe", ["a"], 300, True).continuations()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_text_gives_the_same_vocabulary(kind: Kind) -> None:
    """The library's own WordPieceTrainer does not: it numbers pieces in the order of a hash table."""
    texts = [document.text for document in made_up_documents(1, labeled=False)]
    first = train_tokenizer(kind, iter(texts), 600, specials=True).to_json()
    assert all(train_tokenizer(kind, iter(texts), 600, specials=True).to_json() == first for _ in range(4))


def test_word_pieces_are_those_of_the_library() -> None:
    """The second way to the vocabulary: nearly the same pieces (ties are broken otherwise), and as short
    sequences.
    """
    texts = [document.text for document in embedded_documents()][:20]
    ours = train_tokenizer("wordpiece", iter(texts), 1000, specials=True)
    theirs = LibraryTokenizer(models.WordPiece(unk_token="[UNK]"))
    theirs.normalizer, theirs.pre_tokenizer = (
        normalizers.BertNormalizer(lowercase=True),
        pre_tokenizers.BertPreTokenizer(),
    )
    theirs.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=1000, special_tokens=list(SPECIALS), show_progress=False)
    )
    mine = set(ours.tokenizer.get_vocab())  # type: ignore[attr-defined]
    assert len(mine & set(theirs.get_vocab())) >= 950
    lengths = sum(map(len, ours.encode(texts))), sum(len(e.ids) for e in theirs.encode_batch(texts))
    assert abs(lengths[0] - lengths[1]) < 0.002 * lengths[1]


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="at least 261 for bpe, got 260"):
        train_tokenizer("bpe", ["a"], 260, True)
    with pytest.raises(ValueError, match="no character"):
        train_tokenizer("characters", [""], 0, False)
    with pytest.raises(ValueError, match=r"--data.vocabulary is not a tokenizer"):
        load_tokenizer('{"kind": 3')
    moved = json.loads(train_tokenizer("bpe", ["a"], 300, True).to_json())
    moved["added_tokens"], moved["model"]["vocab"] = (
        [],
        {t: i for t, i in moved["model"]["vocab"].items() if i > 4},
    )
    with pytest.raises(ValueError, match=r"expected 0 to 4|is not a tokenizer"):
        load_tokenizer(json.dumps(moved))
