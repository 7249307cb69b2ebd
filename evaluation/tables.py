"""The report as tables on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from evaluation.report import FEWSHOT_SHOTS


def print_report(report: dict[str, Any], console: Console) -> None:
    """The report as tables on the terminal."""
    names = {"linear_top1": "linear", "knn_top1": "kNN", "fewshot_top1": f"{FEWSHOT_SHOTS}-shot"}
    results = report["results"]
    if results:
        shown = [key for key in names if any(key in row for row in results.values())]
        table = Table(title=f"{report['method']} on {report['data']}: accuracy on the test split")
        table.add_column("encoder")
        for key in shown:
            table.add_column(names[key], justify="right")
        for encoder, row in results.items():
            table.add_row(encoder, *(f"{row[key]:.3f}" for key in shown))
        console.print(table)
    else:
        console.print(f"{report['data']} has no labels: no probes.")
    if "language" in report:
        table = Table(
            title="test split: nats per token or pixel value, beside frequency tables of the training split"
        )
        language = report["language"]
        numbers = {**language["nats_per_token"], "perplexity": language["test"]["perplexity"]}
        terms = {**language["test"], **language}
        more = ("bits_per_character", "bits_per_dimension", "masked_word_accuracy", "next_sentence_accuracy")
        numbers |= {key: terms[key] for key in more if key in terms}
        for key in numbers:
            table.add_column(key.replace("_", " "), justify="right")
        table.add_row(
            *(f"{value:.2f}" if key == "perplexity" else f"{value:.3f}" for key, value in numbers.items())
        )
        console.print(table)
    for section, values_key, title in (
        ("reconstruction", "psnr_hidden", "hidden region of the test images: PSNR in dB"),
        ("denoising", "psnr", "test images without their noise: PSNR in dB"),
    ):
        if section not in report:
            continue
        table = Table(title=title)
        values = report[section][values_key]
        for key in values:
            table.add_column(key, justify="right")
        table.add_row(*(f"{value:.2f}" for value in values.values()))
        console.print(table)
