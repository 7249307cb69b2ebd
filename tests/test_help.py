"""The help of a class: short, its own options first, at once, and no option left out."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from lightning import Trainer

import train
from datamodules.errors import ConfigError
from runtime.discovery import below, find_class
from runtime.help import class_help, layouts
from runtime.messages import ROOT, data_sets, methods
from runtime.options import options_of

GROUPS = [*(("model", name) for name in methods()), *(("data", name) for name in data_sets())]
GROUPS += [("model.encoder", name) for name in below(["Encoder"])]


def options_in(text: str, prefix: str) -> list[str]:
    return re.findall(rf"^  --{re.escape(prefix)}\.(\w+)  ", text, flags=re.MULTILINE)


@pytest.mark.parametrize(("prefix", "name"), GROUPS, ids=[name for _, name in GROUPS])
def test_every_option_of_a_class(prefix: str, name: str) -> None:
    text = class_help([f"--{prefix}.help", name])
    cls = find_class(name)
    assert text is not None and cls is not None
    assert len(text.splitlines()) < 100 and max(map(len, text.splitlines())) <= 110
    shown = options_in(text, prefix)
    assert set(shown) == set(options_of(cls)) and len(shown) == len(set(shown))


def test_a_methods_own_options_come_first() -> None:
    text = class_help(["--model.help", "SimCLR"])
    assert text is not None
    lines = text.splitlines()
    assert lines[:3] == [
        "--model SimCLR: contrast two views of an image with all other views of the global batch.",
        "",
        "its own options:",
    ]
    assert options_in(text, "model") == [
        "encoder",
        "temperature",
        "projector_hidden",
        "projector_out",
        "projector_layers",
        "optimizer",
        "warmup_epochs",
        "final_lr_factor",
    ]
    assert "  --model.temperature  float, default 0.1" in lines
    assert "options of every SSLModule:" in lines


FILES = "files, by --data.root DIR (splits: docs/data/splits.md):"
#: The help of a data set, up to its options.
HEADS = {
    "ImageFolder": f"""\
--data ImageFolder: A tree of image files: ImageNet, CIFAR as JPEGs, or photographs without labels.

{FILES}
  a folder per class; val and test are held out:
      DIR/cat/1.jpg  DIR/dog/2.jpg
  a folder per split, with the same classes in each:
      DIR/train/cat/1.jpg  DIR/val/cat/2.jpg  DIR/test/dog/3.jpg
  lists of the files of splits, with lines such as cat/1.jpg; other files are train:
      DIR/cat/1.jpg  DIR/dog/2.jpg  DIR/val.txt  DIR/test.txt
  a word for the split in every file name:
      DIR/cat/train_1.jpg  DIR/cat/val_2.jpg  DIR/dog/test_3.jpg
  no classes; below folders, --data.labeled false:
      DIR/1.jpg  DIR/2.jpg
""",
    "TextFiles": f"""\
--data TextFiles: Text files, plain or tables; by default the Python language reference that ships with
CPython.

{FILES}
  one text, its last tenth val and test; --data.root FILE reads a single file:
      DIR/book.txt
  a document per file; --data.document paragraph or line: many in each:
      DIR/1.txt  DIR/more/2.txt
  a word for the split in every file name:
      DIR/wiki.train.txt  DIR/wiki.valid.txt  DIR/wiki.test.txt
  a folder per class, here in folders of splits (--data.class_folders true):
      DIR/train/pos/1.txt  DIR/train/neg/2.txt  DIR/train/unsup/3.txt  DIR/test/pos/4.txt
  tables (--data.files '*.csv' --data.columns '[title,text]' --data.label_column class):
      DIR/news.csv
""",
    "Fasta": f"""\
--data Fasta: DNA or protein from FASTA files, plain or gzipped: windows of letters or k-mers, or whole
records.

{FILES}
  any number of files; long records are split by position, others by a hash of their name:
      DIR/genome.fna.gz  DIR/more/contigs.fa
  files named after splits:
      DIR/train.fa  DIR/valid.fa  DIR/test.fa
  classes by position, from GFF3, GTF or BED (--data.gff DIR/genome.gff.gz):
      DIR/genome.fna.gz  DIR/genome.gff.gz
  a file per class (--data.class_files true):
      DIR/nuclear.fasta  DIR/cytoplasm.fasta
  classes of records, in columns id and label (--data.labels DIR/table.csv):
      DIR/records.fa  DIR/table.csv
  proteins (--data.alphabet protein):
      DIR/proteome.faa.gz
""",
    "WavFolder": f"""\
--data WavFolder: A folder tree of audio files, such as speech commands or bird calls.

{FILES}
  a folder per class; val and test are held out:
      DIR/yes/1.wav  DIR/no/2.flac
  a folder per split, with the same classes in each:
      DIR/train/yes/1.wav  DIR/validation/yes/2.wav  DIR/test/no/3.wav
  lists of the files of splits, with lines such as yes/1.wav; other files are train:
      DIR/yes/1.wav  DIR/no/2.wav  DIR/validation_list.txt  DIR/testing_list.txt
  classes in the names (--data.pattern '{{label}}_{{speaker}}_{{index}}'):
      DIR/7_jackson_32.wav  DIR/3_theo_1.wav
  test by a field of the names (also --data.split_field speaker --data.test_values '[theo]'):
      DIR/7_jackson_32.wav  DIR/3_theo_1.wav
  no classes; below folders, --data.labeled false:
      DIR/1.wav  DIR/2.mp3
""",
}
#: The page that has the layouts of a data set, in the words of its docstring.
PAGES = {
    "ImageFolder": "splits",
    "Shards": "shards",
    "TextFiles": "text",
    "Fasta": "sequences",
    "WavFolder": "audio",
}


@pytest.mark.parametrize("name", HEADS)
def test_the_layouts_of_a_data_set(name: str) -> None:
    text = class_help(["--data.help", name])
    assert text is not None and text.partition("\nits own options:")[0] == HEADS[name]


@pytest.mark.parametrize("name", PAGES)
def test_the_page_of_a_data_set_has_its_layouts(name: str) -> None:
    page = (ROOT / f"docs/data/{PAGES[name]}.md").read_text(encoding="utf-8")
    assert "\n".join(["```", *layouts(name), "```"]) in page


@pytest.mark.parametrize("name", data_sets())
def test_every_data_set_that_reads_files_has_layouts(name: str) -> None:
    cls, lines = find_class(name), layouts(name)
    assert cls is not None and bool(lines) == (name not in ("Digits", "Tones"))
    named = re.findall(r"--data\.(\w+)", " ".join(lines))
    assert set(named) <= set(options_of(cls))
    originals = [f"DIR/{file}" for file in getattr(cls, "source_files", ())]
    assert not originals or sorted(" ".join(lines[1:]).split()) == sorted(originals)


def test_the_trainer() -> None:
    text = class_help(["--trainer.help"])
    assert text is not None and len(text.splitlines()) < 100
    assert set(options_in(text, "trainer")) == set(options_of(Trainer))
    assert "  --trainer.strategy  str | Strategy, default 'auto'" in text.splitlines()


def test_without_a_name_the_classes_are_listed() -> None:
    assert class_help(["--model.help"]) == "\n".join(f"--model.help {n}  {t}" for n, t in methods().items())
    text = class_help(["--data.help"])
    assert text is not None and "--data.help Digits  " in text


def test_a_name_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        ConfigError, match=r"^--model.help: unknown method 'SimCRL' \(did you mean 'SimCLR'\?\)"
    ):
        class_help(["--model.help=SimCRL"])
    assert train.main(["--data.help", "Digit"]) == 2
    assert "unknown data set 'Digit' (did you mean 'Digits'?)" in capsys.readouterr().err


def test_a_class_that_is_not_found_without_importing_is_left_to_the_parser() -> None:
    assert class_help(["--model.optimizer.help", "AdamW"]) is None
    assert class_help(["--config", "x.yaml"]) is None


def test_torch_is_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys, train\n"
        "for words in (['--model.help', 'GAN'], ['--data.help', 'MNIST'], ['--trainer.help']):\n"
        "    assert train.main(words) == 0\n"
        "assert not {'torch', 'lightning', 'jsonargparse'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_imported_objects_are_left_out_of_collections() -> None:
    code = (
        "import gc\n"
        "from runtime.paused_collector import collector_paused\n"
        "with collector_paused():\n"
        "    assert not gc.isenabled()\n"
        "    made = [[] for _ in range(1000)]\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 1000\n"
        "frozen = gc.get_freeze_count()\n"
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "with collector_paused():\n"
        "    assert gc.isenabled()\n"
        "    made = [[] for _ in range(1000)]\n"
        "assert gc.get_freeze_count() <= frozen\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", [["--help"], ["--trainer.help"]])
def test_a_reader_that_stops_reading(words: list[str]) -> None:
    """``train.py --help | head -1``."""
    command = f"{sys.executable} {ROOT / 'train.py'} {' '.join(words)} | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (len(done.stdout), done.stderr) == (1, "")
