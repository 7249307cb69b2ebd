"""Makes docs/images/overview.png, the picture of the demo run: python docs/screenshots.py RUN

RUN is a finished run of configs/digits/simclr.yaml. Left its views as TensorBoard shows them, in the middle
the curves of the probes beside the baselines, right the features of the test split in two dimensions. An
installed Chromium draws them.
"""

from __future__ import annotations

import argparse
import base64
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from playwright.sync_api import sync_playwright
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules import Digits
from evaluation import extract_features
from sslmodules import load_module

IMAGES = Path(__file__).resolve().parent / "images"
COLORS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951")
COLORS += ("#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0")
CURVES = {"val/linear_top1": ("linear probe", "#3f51b5"), "val/knn_top1": ("kNN", "#e8710a")}
WIDTH, HEIGHT = 340, 300


def events(run: Path) -> EventAccumulator:
    found = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    return found


def point(x: float, y: float) -> str:
    """A place in [0, 1] x [0, 1], y upwards, in pixels of a part."""
    return f"{40 + x * (WIDTH - 60):.1f},{HEIGHT - 40 - y * (HEIGHT - 60):.1f}"


def text(x: float, y: float, content: str, color: str = "#555", anchor: str = "start") -> str:
    left, top = point(x, y).split(",")
    return f'<text x="{left}" y="{top}" fill="{color}" text-anchor="{anchor}">{content}</text>'


def curves(found: EventAccumulator, baselines: dict[str, float]) -> str:
    """Accuracy on val from 0.9 to 1 over the steps; dashed, the linear probe of the baselines on test."""
    drawn = [text(-0.01, 10 * (value - 0.9), f"{value:.2f}", anchor="end") for value in (0.9, 0.95, 1.0)]
    last = max(event.step for event in found.Scalars("val/linear_top1"))
    for row, (tag, (name, color)) in enumerate(CURVES.items()):
        line = " ".join(point(e.step / last, 10 * (e.value - 0.9)) for e in found.Scalars(tag))
        drawn.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2.5"/>')
        drawn.append(text(0.55, 0.3 - 0.09 * row, f"{name} on val", color))
    heights = {name: 10 * (value - 0.9) for name, value in baselines.items()}
    for height in heights.values():
        path = f"M{point(0, height)} L{point(1, height)}"
        drawn.append(f'<path d="{path}" stroke="#999" stroke-dasharray="5 4"/>')
    names = ", ".join(f"{name} {value:.3f}" for name, value in baselines.items())
    drawn.append(text(0.02, min(heights.values()) - 0.06, f"on test: {names}"))
    drawn += [text(0, -0.1, "step 0"), text(1, -0.1, f"{last}", anchor="end")]
    return f'<svg width="{WIDTH}" height="{HEIGHT}">{"".join(drawn)}</svg>'


def embedding(run: Path) -> str:
    """The first two principal directions of the normalized features of the test split, by class."""
    module = load_module(run / "checkpoints" / "last.ckpt")
    features, labels = extract_features({"it": module.embed}, Digits(), "test", torch.device("cpu"))["it"]
    h = torch.nn.functional.normalize(features.float(), dim=1)
    h = h - h.mean(0)
    places = (h @ torch.linalg.svd(h, full_matrices=False).Vh[:2].T).numpy()  # (N, 2)
    places = (places - places.min(0)) / np.ptp(places, axis=0)
    drawn = []
    for (x, y), label in zip(places, labels.tolist(), strict=True):
        drawn.append(text(float(x), float(y), str(label), COLORS[label], "middle"))
    return f'<svg width="{WIDTH}" height="{HEIGHT}" font-weight="bold">{"".join(drawn)}</svg>'


def page(run: Path) -> str:
    """The three parts side by side, as HTML."""
    found = events(run)
    views = base64.b64encode(found.Images("views")[-1].encoded_image_string).decode()
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))["results"]
    baselines = {name: results[name]["linear_top1"] for name in ("raw_input", "random_init")}
    picture = (
        f'<img src="data:image/png;base64,{views}" height="{HEIGHT}" style="image-rendering: pixelated">'
    )
    parts = {
        "Image, two views": picture,
        "Probes during training": curves(found, baselines),
        "Features of the test split, by class": embedding(run),
    }
    cells = "".join(f"<div><h3>{title}</h3>{part}</div>" for title, part in parts.items())
    style = "body {display: flex; gap: 24px; margin: 0; padding: 8px 16px; font: 13px sans-serif}"
    return f"<style>{style}</style>{cells}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a finished run of configs/digits/simclr.yaml")
    content = page(parser.parse_args().run)
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as started:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 960, "height": 400})
        shown.set_content(content)
        shown.locator("body").screenshot(path=IMAGES / "overview.png")
        browser.close()


if __name__ == "__main__":
    main()
