"""Peak memory and time of reading large text and DNA files.

    python benchmarks/text_memory.py
    python benchmarks/text_memory.py --mib 300 --tokenizers characters

Text: one file of ``--mib`` MiB of made-up words, encoded to memory-mapped token files by each of
``--tokenizers``; the target is less than 1 GiB beyond these. DNA: one record of ``--bases`` million bases,
without labels and with those of a GFF; the target is at most 2 bytes of memory per base. Each is prepared in
a new process, and its peak memory above that before is printed, in which pages of the token files count.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing

from benchmarks.parts.memory import peak
from datamodules import Fasta, TextFiles

LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", np.uint8)
BASES = np.frombuffer(b"ACGT", np.uint8)


def write_text_file(path: Path, size: int) -> None:
    """At least ``size`` bytes: paragraphs of 60 words, of 5,000 different ones."""
    rng = np.random.default_rng(0)
    words = [rng.choice(LETTERS, rng.integers(2, 10)).tobytes().decode() for _ in range(5000)]
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < size:
            file.write(" ".join(words[i] for i in rng.integers(0, 5000, 60)) + ".\n\n")


def write_genome(folder: Path, size: int) -> None:
    """``g.fa``: one record of ``size`` random bases; ``g.gff``: a gene of 1,000 in every 20,000."""
    rng = np.random.default_rng(0)
    with (folder / "g.fa").open("wb") as file:
        file.write(b">chr1\n")
        for start in range(0, size, 80):
            file.write(BASES[rng.integers(0, 4, min(80, size - start))].tobytes() + b"\n")
    genes = range(1, size - 1000, 20_000)
    lines = [f"chr1\tx\tCDS\t{start}\t{start + 999}\t.\t+\t0\tID=c{start}\n" for start in genes]
    (folder / "g.gff").write_text("".join(lines), encoding="utf-8")


def prepare(kind: type, options: dict[str, Any]) -> tuple[int, float]:
    """Bytes of peak memory above that before, and seconds, of building the samples."""
    data, before, start = kind(**options), peak(), time.perf_counter()
    data.dataset("train")
    return peak() - before, time.perf_counter() - start


def in_new_process(kind: type, options: dict[str, Any]) -> tuple[int, float]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(prepare, kind, options).result()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=30, help="size of the text (default: 30)")
    parser.add_argument("--bases", type=float, default=20, help="of the DNA, in millions (default: 20)")
    kinds = ["characters", "bpe", "wordpiece"]
    parser.add_argument("--tokenizers", nargs="*", default=kinds, help="of the text (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text_file(folder / "text.txt", args.mib * 2**20)
        for tokenizer in args.tokenizers:
            cache = folder / tokenizer
            options = {"root": str(folder / "text.txt"), "tokenizer": tokenizer, "cache": str(cache)}
            memory, seconds = in_new_process(TextFiles, options)
            mapped = sum(file.stat().st_size for file in cache.iterdir())
            print(
                f"text of {args.mib} MiB, {tokenizer}: {memory / 2**20:.0f} MiB, token files of "
                f"{mapped / 2**20:.0f} MiB, {seconds:.0f} s",
                flush=True,
            )
        size = int(args.bases * 1e6)
        write_genome(folder, size)
        for what, gff in (("", None), (" with a GFF", str(folder / "g.gff"))):
            memory, seconds = in_new_process(Fasta, {"root": str(folder / "g.fa"), "gff": gff, "stride": 64})
            each = f"{memory / size:.2f} bytes a base, {seconds:.0f} s"
            print(f"DNA of {args.bases:g} million bases{what}: {each}", flush=True)


if __name__ == "__main__":
    main()
