"""Folders of audio files: formats, rates, labels, splits, and unusable files."""

from __future__ import annotations

import wave
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.audio import reading, wav_folder
from datamodules.audio.mel import PADDING
from datamodules.audio.reading import clip_length, read_clip
from datamodules.audio.wav_folder import WavFolder, name_pattern
from datamodules.errors import DataFileError, MissingDataError

FSDD: dict[str, Any] = {
    "pattern": "{label}_{speaker}_{index}",
    "split_field": "index",
    "test_values": [0, 1],
    "sample_rate": 8000,
}


def write(path: Path, samples: np.ndarray, rate: int = 8000) -> None:
    """(S,) or (S, channels) int16 as wav."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1 if samples.ndim == 1 else samples.shape[1], 2, rate, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())


def noise(size: int = 4000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-3000, 3000, size).astype(np.int16)


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    for label in "012":
        for speaker in ("ann", "bob"):
            for index in range(12):
                write(tmp_path / f"{label}_{speaker}_{index}.wav", noise(3000 + 100 * index, index))
    return tmp_path


@pytest.fixture(params=["soundfile", "wave"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "wave":
        monkeypatch.setattr(reading, "soundfile", None)
    else:
        pytest.importorskip("soundfile")
    return request.param


def test_read_clip_is_exact(reader: str, tmp_path: Path) -> None:
    samples = noise()
    write(tmp_path / "a.wav", samples)
    assert np.array_equal(read_clip(str(tmp_path / "a.wav"), 8000), samples)


def test_channels_are_averaged(reader: str, tmp_path: Path) -> None:
    left = noise()
    write(tmp_path / "a.wav", np.stack([left, 3 * left], 1))
    got = read_clip(str(tmp_path / "a.wav"), 8000)
    assert got.shape == left.shape and np.abs(got.astype(int) - 2 * left.astype(int)).max() <= 1


def test_other_rates_are_resampled(reader: str, tmp_path: Path) -> None:
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(11025) / 11025)).astype(np.int16)
    write(tmp_path / "a.wav", tone, 11025)
    got = read_clip(str(tmp_path / "a.wav"), 8000)
    assert len(got) == 8000
    assert np.abs(got - 8000 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000))[200:-200].max() < 100


def test_flac_and_24_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile = pytest.importorskip("soundfile")
    samples = noise()
    soundfile.write(tmp_path / "a.flac", samples, 8000)
    soundfile.write(tmp_path / "b.wav", samples / 32768, 8000, subtype="PCM_24")
    for name in ("a.flac", "b.wav"):
        assert np.array_equal(read_clip(str(tmp_path / name), 8000), samples)
    monkeypatch.setattr(reading, "soundfile", None)
    for name in ("a.flac", "b.wav"):
        with pytest.raises(DataFileError, match=rf"{name}.*soundfile"):
            read_clip(str(tmp_path / name), 8000)


@pytest.mark.parametrize("content", [b"", b"no sound at all", b"RIFF\x00\x00\x00\x00WAVEfmt "])
def test_a_file_that_is_no_sound_is_named(reader: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.wav"
    path.write_bytes(content)
    with pytest.raises(DataFileError, match=r"broken\.wav") as error:
        read_clip(str(path), 8000)
    assert len(str(error.value).splitlines()) == 1


def test_samples_that_are_not_finite(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.wav", np.array([0.0, np.nan, 0.5]), 8000, subtype="FLOAT")
    with pytest.raises(DataFileError, match="non-finite samples"):
        read_clip(str(tmp_path / "a.wav"), 8000)


def test_labels_and_split_from_names(digits: Path) -> None:
    data = WavFolder(str(digits), **FSDD)
    assert data.class_names == ("0", "1", "2") and data.num_classes == 3
    for split in ("train", "val", "test"):
        names = [Path(f).stem.split("_") for f in data.files(split)]
        assert [int(name[0]) for name in names] == data.dataset(split).labels.tolist()
        assert {int(name[2]) in (0, 1) for name in names} == {split == "test"}
    sizes = [len(data.dataset(s)) for s in ("train", "val", "test")]
    assert sizes == [54, 6, 12]
    assert not set(data.files("train")) & set(data.files("val"))
    speakers = WavFolder(str(digits), label="speaker", **FSDD)
    assert speakers.class_names == ("ann", "bob")
    assert speakers.files("test") == data.files("test")


def test_labels_from_folders_or_none(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        for i in range(10):
            write(tmp_path / "a" / label / "deep" / f"{i}.WAV", noise(seed=i))
            write(tmp_path / "b" / f"{label}{i}.wav", noise(seed=i))
    (tmp_path / "a" / ".hidden").mkdir()
    write(tmp_path / "a" / ".hidden" / "x.wav", noise())
    data = WavFolder(str(tmp_path / "a"))
    assert data.class_names == ("cat", "dog")
    assert sum(len(data.dataset(s)) for s in ("train", "val", "test")) == 20
    assert WavFolder(str(tmp_path / "b")).num_classes is None
    assert WavFolder(str(tmp_path / "a"), labeled=False).num_classes is None
    write(tmp_path / "a" / "stray.wav", noise())
    with pytest.raises(DataFileError, match=r"stray\.wav"):
        WavFolder(str(tmp_path / "a")).dataset("train")


@pytest.mark.parametrize("rates", [(8000, 8000), (44100, 16000), (8000, 16000), (48000, 16000)])
def test_a_part_is_that_of_the_whole_file(rates: tuple[int, int], tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    noise = 0.1 * np.random.default_rng(0).standard_normal(3 * rates[0])
    soundfile.write(tmp_path / "a.wav", noise, rates[0])
    path = str(tmp_path / "a.wav")
    whole = read_clip(path, rates[1])
    assert len(whole) == clip_length(path, rates[1]) == 3 * rates[1]
    for start, size in ((0, 500), (1, 1000), (7777, 5000), (len(whole) - 300, 1000), (len(whole), 10)):
        assert np.array_equal(read_clip(path, rates[1], start, size), whole[start : start + size])


def test_deep_files_keep_their_sound(tmp_path: Path) -> None:
    """Floats in int16's range are no clipped noise; very quiet 24 bits and canceling channels no silence."""
    soundfile = pytest.importorskip("soundfile")
    tone = np.sin(np.arange(8000) / 5)
    expected = np.rint(0.5 * tone * 32768)
    for name, samples, subtype in (
        ("a", 0.5 * tone, "FLOAT"),
        ("b", 0.5 * tone * 32768, "FLOAT"),
        ("c", np.stack([0.5 * tone, -0.5 * tone], 1), "PCM_24"),
    ):
        soundfile.write(tmp_path / f"{name}.wav", samples, 8000, subtype=subtype)
        got = read_clip(str(tmp_path / f"{name}.wav"), 8000)
        assert np.abs(got - expected).max() <= 1, name
    soundfile.write(tmp_path / "d.wav", tone * 2.0**-16, 8000, subtype="PCM_24")
    quiet = read_clip(str(tmp_path / "d.wav"), 8000)
    assert np.corrcoef(quiet, tone)[0, 1] > 0.999 and 0.1 < np.abs(quiet).max() / 32768 <= 0.25
    assert np.array_equal(read_clip(str(tmp_path / "d.wav"), 8000, 4000, 100), quiet[4000:4100])
    soundfile.write(tmp_path / "e.wav", np.stack([0.5 * tone, np.zeros(8000)], 1), 8000)
    assert np.abs(read_clip(str(tmp_path / "e.wav"), 8000) - expected / 2).max() <= 1  # the mean, as ever


def test_a_file_that_ends_before_its_header_says(reader: str, tmp_path: Path) -> None:
    write(tmp_path / "a.wav", np.arange(4000, dtype=np.int16))
    content = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(content[:-1000])
    with pytest.raises(
        DataFileError, match=r"a\.wav is truncated, with 7000 of the 8000 bytes of sound in its header"
    ):
        read_clip(str(tmp_path / "a.wav"), 8000)
    streamed = (
        content[:40] + b"\xff\xff\xff\xff" + content[44:]
    )  # as programs write that do not know the size
    (tmp_path / "b.wav").write_bytes(streamed)
    if reader == "soundfile":
        assert len(read_clip(str(tmp_path / "b.wav"), 8000)) == 4000


def test_every_format_of_soundfile(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    for i, (ending, kind) in enumerate(
        (("ogg", "OGG"), ("mp3", "MP3"), ("aiff", "AIFF"), ("opus", "OGG"), ("FLAC", "FLAC"), ("au", "AU"))
    ):
        subtype = "OPUS" if ending == "opus" else None
        for word in "ab":
            path = tmp_path / word / f"{i}.{ending}"
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, np.sin(np.arange(8000) / 9), 8000, format=kind, subtype=subtype)
    data = WavFolder(str(tmp_path), sample_rate=8000, val_fraction=0.25)
    clips = np.concatenate([data.dataset(split).clips for split in ("bank", "val", "test")])  # type: ignore[attr-defined, arg-type]
    assert len(clips) == 12 and data.class_names == ("a", "b")
    assert (np.abs(clips.astype(float)).max(1) > 20000).all()


def test_long_recordings_give_all_their_clips(tmp_path: Path) -> None:
    """In order for evaluation; in training at places that are a function of (seed, epoch, index)."""
    sizes = {f"{i}.wav": 8000 + 4000 * (i % 4) for i in range(20)}  # 1, 1.5, 2 and 2.5 seconds
    for name, size in sizes.items():
        write(tmp_path / name, np.arange(1, size + 1, dtype=np.int16))
    data = WavFolder(str(tmp_path), sample_rate=8000, clips="all", labeled=False)
    for split in ("bank", "val", "test"):
        dataset: Any = data.dataset(split)  # type: ignore[arg-type]
        files = [Path(path).name for path in data.files(split)]  # type: ignore[arg-type]
        clips = dataset.__getitems__(list(range(len(dataset))))["input"].numpy()
        assert len(files) == sum({8000: 1, 12000: 2, 16000: 2, 20000: 3}[sizes[name]] for name in set(files))
        seen: Counter[str] = Counter()
        for name, clip in zip(files, clips, strict=True):
            first, stop = 8000 * seen[name] + 1, min(8000 * (seen[name] + 1), sizes[name])
            assert clip[clip != PADDING].tolist() == list(range(first, stop + 1))
            seen[name] += 1
    train: Any = data.dataset("train")
    starts = []
    for epoch in (0, 1, 0):
        train.set_epoch(epoch)
        clips = train.__getitems__(list(range(len(train))))["input"].numpy()
        assert np.array_equal(train.__getitems__([3])["input"][0].numpy(), clips[3])
        assert (np.diff(clips, axis=1) == 1).all()  # a whole clip each, without padding
        starts.append(clips[:, 0].tolist())
    assert starts[0] == starts[2] != starts[1] and len(set(starts[0])) > 10


def test_silent_and_empty_clips_are_counted(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(wav_folder, "rank_zero_info", said.append)
    write(digits / "0_ann_5.wav", np.zeros(0, np.int16))
    write(digits / "0_ann_6.wav", np.zeros(4000, np.int16))
    write(digits / "0_ann_7.wav", noise(9000))
    data = WavFolder(str(digits), **FSDD)
    splits = [
        s for s in ("train", "val") if any(Path(f).stem in ("0_ann_5", "0_ann_6") for f in data._find()[s][0])
    ]
    assert len(data.dataset("train")) + len(data.dataset("val")) == 58
    assert splits and sum("left out" in line for line in said) == len(splits)
    assert all(any(f"1 {reason}" in line for line in said) for reason in ("shorter than a frame", "silent"))
    assert any("cut to their first 1 s" in line for line in said)


def test_a_large_folder_is_read_when_asked(
    digits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = WavFolder(str(digits), **FSDD).dataset("train").__getitems__([3, 1])
    monkeypatch.setattr(wav_folder, "MEMORY_LIMIT", 0)
    write(digits / "0_ann_0.wav", np.zeros(0, np.int16))
    write(digits / "0_ann_1.wav", np.zeros(4000, np.int16))
    data = WavFolder(str(digits), **FSDD)
    read = data.dataset("train").__getitems__([3, 1])
    assert all((read[key] == kept[key]).all() for key in ("input", "label"))
    assert not capsys.readouterr().err
    rows = [data.files("test").index(str(digits / f"0_ann_{i}.wav")) for i in (0, 1)]
    for _ in range(2):  # named once, however often they are read
        assert (data.dataset("test").__getitems__(rows)["input"] == PADDING).all()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "0_ann_0.wav is shorter than a frame: skipped, 1 so far" in said[0]
    assert "0_ann_1.wav is silent: skipped, 2 so far" in said[1]


def test_pattern() -> None:
    match = name_pattern("{label}_{speaker}_{index}").fullmatch("7_van_der_3")
    assert match and match.groupdict() == {"label": "7", "speaker": "van", "index": "der_3"}
    assert name_pattern("a.{x}").fullmatch("ab1") is None  # a dot is a dot
    for bad in ("name", "{a}{a}", "{1}", "{}"):
        with pytest.raises(ValueError, match="pattern"):
            name_pattern(bad)


def test_bad_options_and_folders(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"color.*label, speaker, index"):
        WavFolder(str(digits), label="color", **FSDD)
    with pytest.raises(ValueError, match="both or neither"):
        WavFolder(str(digits), pattern="{label}_{x}", split_field="x")
    with pytest.raises(ValueError, match=r"select 0 of 72 files.*values of index: 0, 1, 10"):
        WavFolder(str(digits), **{**FSDD, "test_values": [99]}).dataset("test")
    with pytest.raises(MissingDataError, match="nowhere"):
        WavFolder(str(tmp_path / "nowhere")).dataset("train")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "readme.txt").write_text("x")
    with pytest.raises(MissingDataError, match=r"readme\.txt"):
        WavFolder(str(tmp_path / "other")).dataset("train")
    write(digits / "nofields.wav", noise())
    with pytest.raises(ValueError, match=r"pattern .* does not match the name of nofields\.wav"):
        WavFolder(str(digits), **FSDD).dataset("train")


# ---- given splits ------------------------------------------------------------------------------------------


def test_split_folders(tmp_path: Path) -> None:
    for split in ("Train", "validation", "testing"):
        for word in ("cat", "dog"):
            for i in range(4):
                write(tmp_path / "a" / split / word / f"{i}.wav", noise(seed=i))
    data = WavFolder(str(tmp_path / "a"), sample_rate=8000)
    assert data.class_names == ("cat", "dog")
    for split, folder in (("train", "Train"), ("val", "validation"), ("test", "testing")):
        assert {Path(f).parts[-3] for f in data.files(split)} == {folder} and len(data.files(split)) == 8
    names = WavFolder(str(tmp_path / "a"), sample_rate=8000, pattern="{label}")  # likewise with other labels
    assert {Path(f).parts[-3] for f in names.files("test")} == {"testing"}
    assert names.class_names == ("0", "1", "2", "3")


def test_speech_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(wav_folder, "rank_zero_info", said.append)
    for word in ("yes", "no"):
        for i in range(10):
            write(tmp_path / word / f"{'ab'[i % 2]}_nohash_{i}.wav", noise(seed=i))
    write(tmp_path / "_background_noise_" / "rain.wav", noise(9000))
    (tmp_path / "validation_list.txt").write_text("yes/a_nohash_0.wav\nno/a_nohash_0.wav\n")
    (tmp_path / "testing_list.txt").write_text("yes/b_nohash_1.wav\nno/b_nohash_1.wav\n")
    data = WavFolder(str(tmp_path), sample_rate=8000)
    assert data.class_names == ("no", "yes")
    assert [Path(f).name for f in data.files("val")] == ["a_nohash_0.wav"] * 2
    assert [Path(f).name for f in data.files("test")] == ["b_nohash_1.wav"] * 2
    assert len(data.files("train")) == 16
    assert said[0] == f"{tmp_path}: ignored files that are not audio files: 2 .txt, 1 in _background_noise_"
    speakers = WavFolder(
        str(tmp_path),
        sample_rate=8000,
        pattern="{speaker}_nohash_{index}",
        split_field="speaker",
        test_values=["b"],
    )
    assert speakers.class_names == ("no", "yes")
    assert {Path(f).name[0] for f in speakers.files("test")} == {"b"}
    assert {Path(f).name[0] for f in speakers.files("train")} == {"a"}
    labels = speakers.dataset("test").labels
    assert [Path(f).parent.name for f in speakers.files("test")] == [("no", "yes")[i] for i in labels]
