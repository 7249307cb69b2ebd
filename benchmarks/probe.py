"""Linear probe and weighted kNN beside scikit-learn and lightly: time ratio and accuracy difference, in one
run.

    pip install -e '.[bench]'
    python benchmarks/probe.py --threads 1 --rounds 3

Features are synthetic Gaussian classes without a common offset: the accuracies compare solvers with each
other and say nothing about self-supervised learning. Contestants take turns within each round, so that a busy
machine slows them alike; medians and ranges over the rounds are printed. The CPU time of this process is
printed beside the wall time: on a busy machine with one thread it is the steadier of the two.

- Linear probe: ``fit_linear_probe`` beside ``LogisticRegression`` (CPU, L-BFGS) on the same float32 features,
  with the same standardization (timed in both) and l2 (C = 1 / (l2 N)), once with scikit-learn's default
  tolerance on the gradient, 1e-4, and once with 1e-6, which is this project's.
- kNN: ``knn_predict`` beside ``lightly.utils.benchmarking.knn_predict``, same k, T and queries at once, for
  DINO's k = 20 and lightly's default k = 200. lightly wants unit-length queries (Q, D) and bank (D, N); its
  caller prepares them, so that work is timed with it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import sklearn
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing

from benchmarks.parts.rounds import interleave, not_run, synchronize
from evaluation.accuracy import top1
from evaluation.probes.knn import knn_predict
from evaluation.probes.linear import fit_linear_probe

NUM_CLASSES = 10
L2 = 1e-5
KS, TEMPERATURE, QUERIES, CHUNK = (20, 200), 0.07, 2000, 1024


def gaussian_classes(n: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features (n, dim) of ten overlapping Gaussian classes whose means sum to zero, and their labels
    (n,).
    """
    means = torch.randn(NUM_CLASSES, dim, generator=torch.Generator().manual_seed(0))
    means = (means - means.mean(dim=0)) * (
        3.0 / dim**0.5
    )  # about 4 deviations between two classes, at any width
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(NUM_CLASSES, (n,), generator=generator)
    return means[labels] + torch.randn(n, dim, generator=generator), labels


def compare(
    contestants: dict[str, Callable[[], float]], rounds: int, device: torch.device
) -> dict[str, dict]:
    """Run every contestant once per round after one untimed round. Each returns its accuracy.

    Returns:
        Per name: ``seconds`` and ``cpu_seconds`` (one per round), their ``median`` and ``cpu_median``, and
        the ``accuracy`` of the last round.
    """

    def timed(contestant: Callable[[], float]) -> tuple[float, float, float]:
        synchronize(device)
        start, cpu_start = time.perf_counter(), time.process_time()
        accuracy = contestant()
        synchronize(device)
        return time.perf_counter() - start, time.process_time() - cpu_start, accuracy

    runs = {name: partial(timed, contestant) for name, contestant in contestants.items()}
    results = {}
    for name, measured in interleave(runs, rounds, warm_up=1).items():
        seconds, cpu_seconds, accuracies = (list(values) for values in zip(*measured, strict=True))
        results[name] = {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "accuracy": accuracies[-1],
            "median": statistics.median(seconds),
            "cpu_median": statistics.median(cpu_seconds),
        }
    return results


def report(title: str, results: dict[str, dict]) -> None:
    """Print one table; the first contestant is this project's, the others are given relative to it."""
    ours = next(iter(results.values()))
    columns = f"{'median':>9}{'min .. max':>18}{'time ratio':>12}{'CPU time':>10}"
    columns += f"{'ratio':>8}{'top-1':>9}{'ours - it':>12}"
    print(f"\n{title}\n{'':34}{columns}")
    for name, result in results.items():
        spread = f"{min(result['seconds']):.2f} .. {max(result['seconds']):.2f} s"
        ratio = "" if result is ours else f"{result['median'] / ours['median']:.2f}x"
        cpu_ratio = "" if result is ours else f"{result['cpu_median'] / ours['cpu_median']:.2f}x"
        difference = "" if result is ours else f"{100 * (ours['accuracy'] - result['accuracy']):+.2f} pts"
        line = f"{name:34}{result['median']:7.2f} s{spread:>18}{ratio:>12}"
        line += f"{result['cpu_median']:8.2f} s{cpu_ratio:>8}{100 * result['accuracy']:8.2f}%{difference:>12}"
        print(line)


def linear_contestants(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
) -> dict[str, Callable[[], float]]:
    """Fit and score; the features of this project's contestant may lie on a GPU, scikit-learn's on the
    CPU.
    """
    x, y, test_x, test_y = (t.cpu().numpy() for t in (*train, *test))

    def ours() -> float:
        return top1(fit_linear_probe(*train, NUM_CLASSES, l2=L2).predict(test[0]), test[1])

    def scikit_learn(tolerance: float) -> float:
        scaler = StandardScaler().fit(x)
        model = LogisticRegression(C=1 / (L2 * len(x)), tol=tolerance, max_iter=1000).fit(
            scaler.transform(x), y
        )
        return float(model.score(scaler.transform(test_x), test_y))

    return {
        "fit_linear_probe": ours,
        "scikit-learn, tol 1e-4 (default)": lambda: scikit_learn(1e-4),
        "scikit-learn, tol 1e-6": lambda: scikit_learn(1e-6),
    }


def knn_contestants(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], k: int
) -> dict[str, Callable[[], float]]:
    """Classify the test features by their neighbors among the training features."""
    (bank, labels), (query, query_labels) = train, test

    def ours() -> float:
        predictions = knn_predict(
            query, bank, labels, NUM_CLASSES, k=k, temperature=TEMPERATURE, chunk_size=CHUNK
        )
        return top1(predictions, query_labels)

    contestants = {"knn_predict": ours}
    try:
        from lightly.utils.benchmarking import knn_predict as lightly_knn_predict
    except ImportError:
        print("lightly is not installed, its kNN is left out: pip install -e '.[bench]'")
        return contestants

    def lightly() -> float:
        bank_t = F.normalize(bank, dim=1).t().contiguous()  # (D, N)
        chunks = F.normalize(query, dim=1).split(CHUNK)
        ranked = [
            lightly_knn_predict(c, bank_t, labels, NUM_CLASSES, knn_k=k, knn_t=TEMPERATURE) for c in chunks
        ]
        return top1(torch.cat(ranked)[:, 0], query_labels)

    return contestants | {"lightly knn_predict": lightly}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds (default: 3)")
    parser.add_argument("--n", type=int, default=50_000, help="training features (default: 50000)")
    parser.add_argument("--dim", type=int, default=512, help="width of the features (default: 512)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of every contestant (default: 1)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="of the torch contestants")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write every time and accuracy to FILE"
    )
    arguments = parser.parse_args()
    for name, least in (("rounds", 1), ("n", max(KS)), ("dim", 1), ("threads", 1)):
        if getattr(arguments, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(arguments, name)}")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        return not_run("not run: no GPU")
    torch.set_num_threads(arguments.threads)
    versions = {m: sys.modules[m].__version__ for m in ("torch", "sklearn")}
    hardware = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{platform.machine()} CPU"
    load_before = os.getloadavg()
    print(
        f"{arguments.n} x {arguments.dim} features, {NUM_CLASSES} classes, {hardware}, {arguments.threads} "
        "thread(s), "
        f"{arguments.rounds} interleaved rounds\ntorch {torch.__version__}, scikit-learn "
        f"{sklearn.__version__}, "
        f"load average before {load_before[0]:.2f}"
    )

    def on_device(n: int, seed: int) -> tuple[Tensor, Tensor]:
        features, labels = gaussian_classes(n, arguments.dim, seed)
        return features.to(arguments.device), labels.to(arguments.device)

    train, test = on_device(arguments.n, 1), on_device(10_000, 2)
    query = (test[0][:QUERIES], test[1][:QUERIES])
    device = torch.device(arguments.device)
    linear = compare(linear_contestants(train, test), arguments.rounds, device)
    report(f"Linear probe, l2 {L2:g}, standardized, scored on {len(test[1])}", linear)
    knn = {}
    for k in KS:
        knn[k] = compare(knn_contestants(train, query, k), arguments.rounds, device)
        report(f"kNN, k {k}, T {TEMPERATURE}, {QUERIES} queries, {CHUNK} at once", knn[k])
    load_after = os.getloadavg()
    print(f"\ntime ratio > 1: this project is faster. Load average after {load_after[0]:.2f}")
    if arguments.json:
        settings = {name: value for name, value in vars(arguments).items() if name != "json"}
        record = {
            "settings": settings | {"l2": L2, "temperature": TEMPERATURE, "queries": QUERIES, "chunk": CHUNK},
            "versions": versions,
            "hardware": hardware,
            "load_average": {"before": load_before, "after": load_after},
            "linear_probe": linear,
            "knn": knn,  # by k
        }
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
