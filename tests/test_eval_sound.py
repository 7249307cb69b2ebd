"""A run on audio from end to end: training, probes, features, and a continued clip as a wav file."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import eval as script
import train
from runtime.messages import ROOT

pytestmark = pytest.mark.slow


def write(path: Path, samples: np.ndarray, rate: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """APC on a folder of 60 clips whose label is their name's first part: noise that fades slowly or fast."""
    folder, clips = tmp_path_factory.mktemp("runs") / "apc", tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for i in range(60):
        fade = np.exp(-np.linspace(0, (1, 8)[i % 2], 6000 + 50 * i))
        write(
            clips / f"{('slow', 'fast')[i % 2]}_{i}.wav", 8000 * fade * rng.standard_normal(len(fade)), 11025
        )
    write(clips / "slow_60.wav", np.zeros(0), 11025)
    command = [
        "--config",
        str(ROOT / "configs" / "fsdd" / "apc.yaml"),
        "--data.root",
        str(clips),
        "--run_dir",
        str(folder),
    ]
    command += ["--data.pattern", "{label}_{index}", "--data.test_values", "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    command += [
        "--model.encoder.init_args.width",
        "16",
        "--data.batch_size",
        "8",
        "--trainer.max_epochs",
        "2",
    ]
    assert (
        train.main([*command, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]) == 0
    )
    return folder


def evaluate(*arguments: object) -> int:
    return script.main([*map(str, arguments), "--device", "cpu"])


def test_probes_and_baselines(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())["results"]
    assert list(results) == ["pretrained", "random_init", "raw_input", "mean_log_mel"]
    for row in results.values():
        assert {"linear_top1", "knn_top1", "fewshot_top1"} <= row.keys() and all(
            np.isfinite(v) for v in row.values()
        )
    assert results["mean_log_mel"]["linear_top1"] >= 0.9


def test_the_audio_tab_has_both_clips(run: Path) -> None:
    events = EventAccumulator(str(run))
    events.Reload()
    assert set(events.Tags()["audio"]) == {"clip", "continued"}
    sounds = [events.Audio(tag)[-1] for tag in ("clip", "continued")]
    assert all(s.sample_rate == 8000 and s.encoded_audio_string[:4] == b"RIFF" for s in sounds)
    assert sounds[0].length_frames == sounds[1].length_frames > 4000


def test_features(run: Path, tmp_path: Path) -> None:
    assert evaluate("features", run, tmp_path / "f.npz") == 0
    arrays = np.load(tmp_path / "f.npz")
    assert (
        arrays["features"].shape == (60, 16) and np.isfinite(arrays["features"]).all()
    )  # the empty clip is left out
    assert (arrays["split"] == "test").sum() == 10 and arrays["class_names"].tolist() == ["fast", "slow"]


def test_a_clip_goes_on(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt, out = tmp_path / "prompt.wav", tmp_path / "out.wav"
    write(
        prompt, np.random.default_rng(1).integers(-3000, 3000, 22050), 44100
    )  # half a second at another rate
    assert evaluate("generate", run, 40, "--prompt", prompt, "--output", out) == 0
    assert "0.5 s given, 0.4 s predicted" in capsys.readouterr().out
    rate, samples = wavfile.read(out)
    assert (rate, samples.dtype, len(samples)) == (8000, np.int16, 7200) and samples[4000:].std() > 1
    prompt.write_bytes(b"no sound")
    assert evaluate("generate", run, 40, "--prompt", prompt, "--output", tmp_path / "no.wav") == 2
    error = capsys.readouterr().err
    assert "prompt.wav" in error and error.startswith("error: ") and not (tmp_path / "no.wav").exists()
