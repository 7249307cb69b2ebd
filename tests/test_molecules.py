"""benchmarks/molecules.py: hashed parts, and the shares of valid, unique and new molecules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.molecules import character_counts, divisions, labeled_molecules, part_of, probe_scores, shares
from datamodules.errors import DataFileError


def test_the_part_of_a_molecule_depends_on_its_text_only() -> None:
    assert [part_of(smiles) for smiles in ("CCO", "c1ccccc1", "CC(=O)O", "[Cl]", "CCO")] == [3, 7, 9, 8, 3]


def test_each_part_is_test_once_and_val_once() -> None:
    parts = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9])
    found = [[rows.nonzero()[:, 0].tolist() for rows in division] for division in divisions(parts)]
    assert found[0] == [[2, 3, 4, 5, 6, 7, 8, 9, 10], [1], [0]]
    assert found[9] == [[1, 2, 3, 4, 5, 6, 7, 8], [0], [9, 10]]
    assert sorted(row for _, _, test in found for row in test) == list(range(11))


def test_features_that_tell_the_label_score_100_and_constant_ones_50() -> None:
    labels, parts = torch.arange(40) % 2, torch.arange(40) // 2 % 10
    known, constant = labels[:, None].float(), torch.ones(40, 1)
    assert probe_scores(known, labels, parts) == ([100.0] * 10, [100.0] * 10)
    assert probe_scores(constant, labels, parts)[0] == [50.0] * 10


def test_counts_of_characters_that_occur_in_five_molecules() -> None:
    counts = character_counts(["CCO", "CCO", "CCO", "CCO", "CCCO", "N"])
    assert counts.tolist() == [[2, 1, 1, 1, 1]] * 4 + [[3, 2, 1, 1, 1], [0] * 5]  # C, CC, CCO, CO, O


def test_shares_of_valid_unique_and_new_molecules() -> None:
    """Lower case is the canonical form here, and x is no molecule; "" has no end."""
    smiles = ["CO", "co", "CC", "N", "x", "", "O", "C"]
    found = shares(smiles, {"co", "n"}, lambda text: None if text == "x" else text.lower())
    assert found == [75.0, 100 * 5 / 6, 60.0]
    assert shares(["x", ""], set(), lambda _: None) == [0.0, 0.0, 0.0]


def test_shares_by_rdkit() -> None:
    chem = pytest.importorskip("rdkit.Chem", reason="rdkit is not installed: pip install -e '.[molecules]'")
    from benchmarks.molecules import reader

    canonical = reader()
    assert canonical is not None and chem is not None
    assert shares(["OCC", "CCO", "C1CC", "C(", "N"], {"N"}, canonical) == [60.0, 100 * 2 / 3, 50.0]


def test_labels_other_than_0_and_1_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("smiles,y\nC,1\nN,0\nO,\n")
    smiles, labels = labeled_molecules(table, "y")
    assert (smiles, labels.tolist()) == (["C", "N"], [1, 0])
    table.write_text("smiles,y\nC,1\nN,2\n")
    with pytest.raises(DataFileError) as error:
        labeled_molecules(table, "y")
    assert str(error.value) == f"{table}: column y has ['1', '2'], expected 0 and 1"
