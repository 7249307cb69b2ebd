"""Molecules as SMILES: probes the features of a run of configs/molecules/, and counts what its GPT generates.

    python train.py --config configs/molecules/gpt.yaml --data.root DIR --run_dir RUN
    python benchmarks/molecules.py RUN --probe BBBP.csv --samples 1000

``--probe``: a table with the columns ``smiles`` and ``--label``, 0 or 1. The molecules are divided into ten
parts by a hash of the SMILES as written. Each part is the test split once; the next part is val, on which the
L2 penalty of the linear probe is chosen, and the other eight are train. Printed are ROC AUC and accuracy in
percent, mean ± standard deviation over the ten parts, beside those of the same network before training, of
counts of one to three neighboring characters with the same probe, and of the most common class.

``--samples``: so many molecules drawn from a GPT, beside as many of its training set, by RDKit
(``pip install -e '.[molecules]'``). Valid: RDKit reads the SMILES. Unique: the share of different molecules
among the valid ones. New: the share of the unique ones that the training table does not contain. Molecules
are compared by RDKit's canonical SMILES.

Exit status: 0 measured; 2 bad arguments; 3 RDKit is missing, after everything else is printed.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing

from benchmarks.parts.pages import mean_and_deviation
from benchmarks.parts.rounds import not_run
from datamodules import TextFiles
from datamodules.errors import ConfigError, DataFileError
from datamodules.text.store import frame
from datamodules.text.tables import table_rows
from datamodules.text.tokenizer import CLS, PAD, SEP
from evaluation.accuracy import top1
from evaluation.probes.linear import select_linear_probe
from runtime.checkpoints import initial_module, load_module, read_checkpoint
from runtime.saved_run import build_data, checkpoint_of
from sslmodules import GPT

PARTS, AT_ONCE = 10, 256


# ---- features ----------------------------------------------------------------------------------------------


def part_of(smiles: str) -> int:
    """0 to 9: the first eight bytes of the BLAKE2b hash, modulo ten."""
    return int.from_bytes(hashlib.blake2b(smiles.encode(), digest_size=8).digest(), "big") % PARTS


def divisions(parts: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rows (bool) of train, val and test, with each part as test once."""
    for number in range(PARTS):
        test, val = parts == number, parts == (number + 1) % PARTS
        yield ~(test | val), val, test


def probe_scores(features: Tensor, labels: Tensor, parts: Tensor) -> tuple[list[float], list[float]]:
    """ROC AUC and accuracy in percent of a linear probe on each part.

    Args:
        features: (N, D).
        labels: (N,) int64, 0 or 1.
        parts: (N,) int64, 0 to 9.
    """
    areas, accuracies = [], []
    for train, val, test in divisions(parts):
        probe, _ = select_linear_probe(features[train], labels[train], features[val], labels[val], 2)
        logits = probe.logits(features[test])
        areas.append(100 * float(roc_auc_score(labels[test], logits[:, 1] - logits[:, 0])))
        accuracies.append(100 * top1(logits.argmax(1), labels[test]))
    return areas, accuracies


@torch.no_grad()
def embedded(module: Any, data: TextFiles, smiles: Sequence[str]) -> Tensor:
    """Features (N, D) of molecules, framed, cut and padded as in training."""
    rows = [torch.from_numpy(frame(ids[: data.length - 2])) for ids in data.tokenizer.encode(smiles)]
    tokens = torch.stack([F.pad(row, (0, data.length - len(row)), value=PAD) for row in rows])
    return torch.cat([module.embed(batch).float() for batch in tokens.split(AT_ONCE)])


def character_counts(smiles: Sequence[str]) -> Tensor:
    """(N, D): how often each run of one to three characters occurs, of those in five molecules or more."""
    counter = CountVectorizer(analyzer="char", ngram_range=(1, 3), lowercase=False, min_df=5)
    return torch.from_numpy(counter.fit_transform(smiles).toarray().astype(np.float32))


def labeled_molecules(table: Path, label: str) -> tuple[list[str], Tensor]:
    """SMILES and labels (N,) of the rows that have a label.

    Raises:
        DataFileError: labels other than 0 and 1.
    """
    rows = [
        (smiles, value.strip()) for smiles, value in table_rows(table, ["smiles", label]) if value.strip()
    ]
    if (found := {value for _, value in rows}) != {"0", "1"}:
        raise DataFileError(f"{table}: column {label} has {sorted(found)[:5]}, expected 0 and 1")
    return [smiles for smiles, _ in rows], torch.tensor([int(value) for _, value in rows])


def measure_features(
    checkpoint: dict[str, Any], module: Any, data: TextFiles, table: Path, label: str
) -> None:
    smiles, labels = labeled_molecules(table, label)
    parts = torch.tensor([part_of(each) for each in smiles])
    print(f"{len(smiles)} molecules of {table.name}, {int(labels.sum())} of them {label} 1; ten hashed parts")
    features = {
        "pretrained": embedded(module, data, smiles),
        "random_init": embedded(initial_module(checkpoint), data, smiles),
        "1 to 3 characters": character_counts(smiles),
    }
    print("| features | ROC AUC | accuracy |\n|---|---|---|")
    found = {name: probe_scores(values, labels, parts) for name, values in features.items()}
    for name, columns in found.items():
        print(f"| {name} | " + " | ".join(map(mean_and_deviation, columns)) + " |")
    common = [
        100 * float((labels[test] == labels[~test].mode().values).float().mean())
        for _, _, test in divisions(parts)
    ]
    print(f"| most common class | 50.0 | {mean_and_deviation(common)} |")
    gains = zip(found["pretrained"][0], found["random_init"][0], strict=True)
    print(f"gain in ROC AUC over random_init, part by part: {mean_and_deviation([a - b for a, b in gains])}")


# ---- samples -----------------------------------------------------------------------------------------------


def drawn(module: GPT, data: TextFiles, count: int, seed: int) -> list[str]:
    """SMILES between [CLS] and the first [SEP]; "" if there is no [SEP]."""
    torch.manual_seed(seed)
    found = []
    for start in range(0, count, AT_ONCE):
        first = torch.full((min(AT_ONCE, count - start), 1), CLS)
        for row in module.extend(first, data.length - 1):
            ends = (row == SEP).nonzero()
            found.append(data.to_text(row[: int(ends[0])]) if len(ends) else "")
    return found


def shares(smiles: Sequence[str], known: set[str], canonical: Callable[[str], str | None]) -> list[float]:
    """Percent of valid SMILES, of unique ones among these, and of new ones among these.

    Args:
        smiles: molecules, "" for one without an end.
        known: canonical SMILES that are not new.
        canonical: SMILES -> the canonical one; None if it is not a molecule.
    """
    valid = [name for each in smiles if each and (name := canonical(each)) is not None]
    unique = set(valid)
    counts = (len(valid), len(smiles)), (len(unique), len(valid)), (len(unique - known), len(unique))
    return [100 * part / max(1, whole) for part, whole in counts]


def reader() -> Callable[[str], str | None] | None:
    """A function that gives RDKit's canonical SMILES, None for no molecule. None if RDKit is missing."""
    try:
        from rdkit import Chem, RDLogger
    except ImportError:
        return None
    RDLogger.DisableLog("rdApp.*")

    def canonical(smiles: str) -> str | None:
        molecule = Chem.MolFromSmiles(smiles)
        return None if molecule is None else Chem.MolToSmiles(molecule)

    return canonical


def measure_samples(module: GPT, data: TextFiles, count: int, seed: int) -> int:
    canonical = reader()
    if canonical is None:
        return not_run("rdkit is not installed, no molecules are drawn: pip install -e '.[molecules]'")
    own = [document.text for document in data._documents()]
    known = {name for each in own if (name := canonical(each)) is not None}
    chosen = np.random.default_rng(seed).choice(len(own), min(count, len(own)), replace=False)
    print("| molecules | number | valid | unique | new |\n|---|---|---|---|---|")
    rows = {"drawn from GPT": drawn(module, data, count, seed), "training table": [own[i] for i in chosen]}
    for name, smiles in rows.items():
        cells = " | ".join(f"{share:.1f}" for share in shares(smiles, known, canonical))
        print(f"| {name} | {len(smiles)} | {cells} |")
    return 0


def measure(args: argparse.Namespace) -> int:
    path, _ = checkpoint_of(args.run)
    checkpoint, module = read_checkpoint(path), load_module(path)
    data = build_data(checkpoint["datamodule_hyper_parameters"], [])
    if not isinstance(data, TextFiles) or (args.samples > 0 and not isinstance(module, GPT)):
        kind = f"{type(module).__name__} on {type(data).__name__}"
        raise ConfigError(f"{args.run} is {kind}: --probe needs TextFiles, and --samples also GPT")
    if args.probe is not None:
        measure_features(checkpoint, module, data, args.probe, args.label)
    return measure_samples(module, data, args.samples, args.seed) if args.samples > 0 else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN_DIR_OR_CKPT", help="a run of configs/molecules/")
    parser.add_argument("--probe", type=Path, metavar="FILE", help="a table with smiles and labels")
    parser.add_argument("--label", default="BBBP", help="its column with 0 or 1 (default: BBBP)")
    parser.add_argument("--samples", type=int, default=0, help="molecules drawn from a GPT (default: none)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (default: 0)")
    args = parser.parse_args()
    if args.probe is None and args.samples < 1:
        parser.error("nothing to do: give --probe FILE, --samples N, or both")
    try:
        return measure(args)
    except (ConfigError, DataFileError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
