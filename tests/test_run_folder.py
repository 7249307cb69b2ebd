"""The run folder that a process chooses under a scheduler."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only

from datamodules.errors import ConfigError
from runtime.folder import RunFolder, link_log

TASK = {"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "ssl", "SLURM_JOB_ID": "7"}


@pytest.fixture
def in_slurm(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in TASK.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")  # Lightning looks for srun
    return monkeypatch


def test_a_job_is_named_after_its_number(in_slurm: pytest.MonkeyPatch) -> None:
    assert RunFolder.choose(None, "Digits", "SimCLR").path == Path("runs/digits-simclr/slurm-7")
    in_slurm.setenv("SLURM_PROCID", "1")
    assert RunFolder.choose(None, "Digits", "SimCLR").path == Path("runs/digits-simclr/slurm-7")


def test_a_task_of_an_array_is_named_as_slurms_commands_take_it(in_slurm: pytest.MonkeyPatch) -> None:
    in_slurm.setenv("SLURM_ARRAY_JOB_ID", "5")
    in_slurm.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert RunFolder.choose(None, "Digits", "SimCLR").path == Path("runs/digits-simclr/slurm-5_2")


def test_torchrun_needs_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(ConfigError, match="give --run_dir"):
        RunFolder.choose(None, "Digits", "SimCLR")
    assert RunFolder.choose("here", "Digits", "SimCLR").path == Path("here")


def test_a_process_that_starts_late_may_see_half_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 makes the folder before it waits for the others, who start when their node is ready."""
    (tmp_path / "events").mkdir()
    with pytest.raises(ConfigError, match="it is not a run folder"):
        RunFolder(tmp_path).inspect({}, "SimCLR")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert RunFolder(tmp_path).inspect({}, "SimCLR") is None
    (tmp_path / "config.yaml").write_text("mod")  # not yet written to its end
    assert RunFolder(tmp_path).inspect({}, "SimCLR") is None


def test_a_run_that_was_killed_while_it_made_its_folder_starts_again(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in (".lock", ".config.yaml.host.1f.tmp", ".probe.host.1f.tmp"):
        (tmp_path / name).write_text("mod")
    assert RunFolder(tmp_path).inspect({}, "SimCLR") is None
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"of somebody")
    with pytest.raises(ConfigError, match="it is not a run folder"):
        RunFolder(tmp_path).inspect({}, "SimCLR")


def test_a_process_that_is_early_does_not_make_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under torchrun and SLURM all start at once; a folder made by another rank would not be new to rank
    0.
    """
    monkeypatch.setenv("SSL_RUN_DIR", "")  # so that it is undone
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    RunFolder(tmp_path / "run").create({}, resumed=False)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    assert RunFolder(tmp_path / "run").inspect({}, "SimCLR") is None
    RunFolder(tmp_path / "run").create({}, resumed=False)
    assert (tmp_path / "run" / "config.yaml").is_file()


@pytest.mark.parametrize("same_disk", [True, False])
def test_the_log_of_a_job_is_also_in_the_run_folder(
    same_disk: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, log = tmp_path / "run", tmp_path / "7.log"
    folder.mkdir()
    link_log(folder)
    monkeypatch.setenv("SSL_LOG", "/dev/null")
    link_log(folder)
    assert list(folder.iterdir()) == []

    def refuse(*names: object) -> None:
        raise OSError("Invalid cross-device link")

    if not same_disk:
        monkeypatch.setattr("os.link", refuse)
    monkeypatch.setenv("SSL_LOG", str(log))
    for line in ("one", "two"):  # a requeued job writes behind what is there
        with log.open("a") as file:
            file.write(f"{line}\n")
        link_log(folder)
    assert (folder / "slurm.log").read_text() == "one\ntwo\n"
    assert (folder / "slurm.log").is_symlink() is not same_disk
