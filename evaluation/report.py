"""Frozen features of a trained encoder beside two baselines: what ``train.py`` prints at the end and
``eval.py`` writes.

The same clean samples are seen by the pre-trained encoder, by the same network with its initial random
weights, and by the baselines of the data (the input itself, a bag of words). Everything chosen is chosen on
``val``, a piece of the training data; ``test`` is only counted.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from datamodules.base import SSLDataModule
from datamodules.checks import check_one_of
from evaluation.features import extract_features
from evaluation.measures.language import language_report
from evaluation.measures.reconstruction import denoising_psnr, reconstruction_psnr
from evaluation.probes.few_shot import few_shot_accuracy
from evaluation.probes.knn import knn_predict
from evaluation.probes.linear import select_linear_probe, top1
from runtime.discovery import first_paragraph
from sslmodules.base import SSLModule

PROBES = ("linear", "knn", "fewshot")
KNN_K, KNN_TEMPERATURE = 20, 0.07
FEWSHOT_SHOTS, FEWSHOT_DRAWS, FEWSHOT_L2 = 5, 10, 1e-2
L2_GRID = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)


def probe_features(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    num_classes: int,
    probes: Sequence[str] = PROBES,
    seed: int = 0,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Accuracies on ``test`` of the asked probes, and what was chosen on ``val`` on the way."""
    results: dict[str, float] = {}
    chosen: dict[str, Any] = {}
    if "linear" in probes:
        probe, chosen["linear_l2"] = select_linear_probe(*train, *val, num_classes, l2_grid=L2_GRID)
        results["linear_top1"] = top1(probe.predict(test[0]), test[1])
    if "knn" in probes:
        chosen["knn_k"] = min(KNN_K, len(train[0]))
        predictions = knn_predict(
            test[0], *train, num_classes, k=chosen["knn_k"], temperature=KNN_TEMPERATURE
        )
        results["knn_top1"] = top1(predictions, test[1])
    if "fewshot" in probes:
        draws = few_shot_accuracy(
            *train, *test, num_classes, shots=FEWSHOT_SHOTS, draws=FEWSHOT_DRAWS, seed=seed, l2=FEWSHOT_L2
        )
        results["fewshot_top1"], results["fewshot_top1_std"] = mean(draws), stdev(draws)
    return results, chosen


def evaluate(
    module: SSLModule,
    random_init: SSLModule,
    data: SSLDataModule,
    checkpoint: str,
    probes: Sequence[str] = PROBES,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """The whole report of a trained method on a data set.

    Args:
        module: with trained weights.
        random_init: the same method as it was built, not trained.
        data: a DataModule with labels; ``prepare_data`` and ``setup`` are called here.
        checkpoint: where the weights come from, for the report.
        probes: which of ``PROBES``.
        device: where features are computed and probes fitted.
        seed: of the few-shot draws: the run's.

    Returns:
        What ``results.json`` holds: method, data, checkpoint, protocol, results by encoder, and for methods
        that fill holes or remove noise the PSNR beside its baselines.

    Raises:
        ValueError: an unknown probe.
    """
    for probe in probes:
        check_one_of(tuple(PROBES), probes=probe)
    device = torch.device(device)
    data.prepare_data()
    data.setup("test")
    was_training = module.training
    trained, untrained = (m.to(device).eval() for m in (module, random_init))
    report: dict[str, Any] = {
        "method": type(module).__name__,
        "data": type(data).__name__,
        "checkpoint": checkpoint,
        "protocol": {
            "features": f"{type(module).__name__}.embed of the clean input, eval mode, frozen",
            "random_init": "the same network with its initial weights",
            "standardize": True,
            "knn_k": KNN_K,
            "knn_temperature": KNN_TEMPERATURE,
            "linear_l2": 1e-5,
            "linear_l2_grid": list(L2_GRID),
            "fewshot_shots": FEWSHOT_SHOTS,
            "fewshot_draws": FEWSHOT_DRAWS,
            "fewshot_l2": FEWSHOT_L2,
            "selection_split": "val",
            "reported_split": "test",
            "seed": seed,
        },
        "results": {},
    }
    if data.num_classes is not None:
        baselines = data.baselines()
        encoders: dict[str, Callable[[Tensor], Tensor]] = {
            "pretrained": trained.embed,
            "random_init": untrained.embed,
            **baselines,
        }
        report["protocol"] |= {name: first_paragraph(inspect.getdoc(f)) for name, f in baselines.items()}
        splits = {split: extract_features(encoders, data, split, device) for split in ("bank", "val", "test")}
        selected = {}
        for name in encoders:
            report["results"][name], chosen = probe_features(
                splits["bank"][name],
                splits["val"][name],
                splits["test"][name],
                data.num_classes,
                probes,
                seed,
            )
            selected[name] = chosen.pop("linear_l2", None)
            report["protocol"].update(chosen)
        report["protocol"]["linear_l2"] = selected["pretrained"]
        report["protocol"]["linear_l2_by_encoder"] = selected
        report["protocol"]["samples"] = {split: len(f["pretrained"][1]) for split, f in splits.items()}
    if hasattr(trained, "reconstruct"):
        raw = data.dataset("test").__getitems__([0])  # type: ignore[attr-defined]
        added = data.transform(raw, torch.Generator(raw["input"].device).manual_seed(0))
        if "mask" in added:
            report["reconstruction"] = reconstruction_psnr(trained, data, device)
        elif "corrupted" in added:
            report["denoising"] = denoising_psnr(trained, data, device)
    if hasattr(data, "vocab_size") or getattr(trained, "pixels", None) is not None:
        report["language"] = language_report(trained, data, device)
    module.train(was_training)
    return report
