"""Jobs on a real SLURM of two nodes, through the project's own cluster/slurm.sbatch: run with ``pytest -m
slurm``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from runtime.checkpoints import read_checkpoint
from runtime.messages import ROOT
from tests.cluster.slurm import Slurm, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

ONE_TASK = ["--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", "--output=%j.log"]
DIGITS = [
    "--config=configs/digits/simclr.yaml",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
]
EPOCHS, STEPS_PER_EPOCH = 30, 16  # 1,077 samples in batches of 64
STEPS = EPOCHS * STEPS_PER_EPOCH
TRAIN = [*DIGITS, f"--trainer.max_epochs={EPOCHS}", "--evaluate=false", "--trainer.log_every_n_steps=1"]
NO_VALIDATION = "--trainer.limit_val_batches=0"


class Project:
    """A working folder with the project in it, where runs and logs are the test's own."""

    def __init__(self, cluster: Slurm, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        for name in ("train.py", "cluster", "configs"):
            (folder / name).symlink_to(ROOT / name)

    def submit(self, *command: str) -> str:
        """``sbatch ... cluster/slurm.sbatch ...``; options of sbatch come first."""
        options = [word for word in command if word.startswith(SBATCH)]
        rest = [word for word in command if not word.startswith(SBATCH)]
        return self.cluster.submit(
            self.folder,
            *ONE_TASK,
            *options,
            "cluster/slurm.sbatch",
            *rest,
            PYTHON=sys.executable,
            PYTHONPATH=str(ROOT),
        )

    def run(self, job: str) -> Path:
        return self.folder / "runs" / "digits-simclr" / f"slurm-{job}"

    def log(self, job: str) -> str:
        """What the job has written, in all its starts; an array's task is written to a job number of its
        own.
        """
        file = self.folder / f"{self.cluster.job(job).get('JobId', job)}.log"
        return file.read_text() if file.is_file() else ""

    def end(self, job: str, *states: str, seconds: float = 300) -> dict[str, str]:
        return self.cluster.wait(job, *states, seconds=seconds, details=self.told(job))

    def told(self, job: str) -> Callable[[], str]:
        return lambda: f"--- log of {job}\n{self.log(job)[-3000:]}"

    def until_trained(self, job: str) -> None:
        """Until the first epoch has been saved: the run is between its imports and its end."""
        self.end(job, "RUNNING")
        last = self.run(job) / "checkpoints" / "last.ckpt"
        wait_for(
            "the first epoch", lambda: last.is_file() or self.cluster.job(job)["JobState"] != "RUNNING", 300
        )
        self.end(job, "RUNNING", seconds=0)

    def preempt(self, job: str, signal: str = "USR1") -> None:
        """Signal the tasks, wait until the job is in the queue again, and start it without the two minutes of
        waiting.
        """
        self.cluster.run("scancel", f"--signal={signal}", job)
        self.end(job, "PENDING")
        self.cluster.start_again(job, details=self.told(job))


SBATCH = ("--nodes=", "--array=", "--time=", "--signal=")


@pytest.fixture(scope="module")
def project(slurm_cluster: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(slurm_cluster, tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def preempted(project: Project) -> str:
    """A run over two nodes that is told to stop, requeued, and comes to its end; its workers get the signal,
    too.
    """
    job = project.submit("--nodes=2", *TRAIN, NO_VALIDATION, "--data.batch_size=32", "--data.num_workers=1")
    project.until_trained(job)
    project.preempt(job)
    project.end(job, "COMPLETED", "FAILED")
    return job


@pytest.fixture(scope="module")
def undisturbed(project: Project, preempted: str) -> str:
    """The same run once more in the same folder, after the preempted one: there are checkpoints of a stranger
    about.
    """
    job = project.submit("--nodes=2", *TRAIN, NO_VALIDATION, "--data.batch_size=32")
    project.end(job, "COMPLETED", "FAILED")
    return job


def curve(run: Path, tag: str = "train/loss") -> list[tuple[int, float]]:
    """(step, value) in the order of steps, from all event files of the run."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return sorted((event.step, event.value) for event in events.Scalars(tag))


def last_checkpoint(run: Path) -> dict:
    return read_checkpoint(run / "checkpoints" / "last.ckpt")


def test_two_nodes_train_to_the_end(project: Project, undisturbed: str) -> None:
    job, log = project.cluster.job(undisturbed), project.log(undisturbed)
    assert job["JobState"] == "COMPLETED" and job["ExitCode"] == "0:0" and job["NodeList"] == "n[0-1]", log
    assert "Starting with 2 processes" in log
    checkpoint = last_checkpoint(project.run(undisturbed))
    assert checkpoint["global_step"] == STEPS
    assert checkpoint["Digits"]["world_size"] == 2
    assert (project.run(undisturbed) / "slurm.log").read_text() == project.log(undisturbed)


def test_a_preempted_job_goes_on_where_it_was(project: Project, preempted: str, undisturbed: str) -> None:
    job, log = project.cluster.job(preempted), project.log(preempted)
    assert job["JobState"] == "COMPLETED" and job["Restarts"] == "1" and job["ExitCode"] == "0:0", log
    [step] = {int(n) for n in re.findall(r"resuming after epoch \d+, step (\d+)", log)}
    assert STEPS_PER_EPOCH <= step < STEPS
    same = [last_checkpoint(project.run(each)) for each in (preempted, undisturbed)]
    assert same[0]["global_step"] == same[1]["global_step"] == STEPS
    assert same[0]["state_dict"].keys() == same[1]["state_dict"].keys()
    for name, value in same[0]["state_dict"].items():
        assert torch.equal(value, same[1]["state_dict"][name]), name


def test_its_curve_is_that_of_an_undisturbed_run(project: Project, preempted: str, undisturbed: str) -> None:
    steps = [step for step, _ in curve(project.run(preempted))]
    assert len(list(project.run(preempted).glob("events.out.*"))) == 2
    assert steps == sorted(set(steps)) and len(steps) == STEPS  # each step once
    assert curve(project.run(preempted)) == curve(project.run(undisturbed))


def test_a_job_does_not_take_a_strangers_checkpoint(
    project: Project, preempted: str, undisturbed: str
) -> None:
    """The second job was given the same folder to work in, and the same configuration, after the first was
    requeued.
    """
    assert "resuming" not in project.log(undisturbed)
    assert curve(project.run(undisturbed))[0][0] == curve(project.run(preempted))[0][0]
    strays = [p for p in project.folder.rglob("*.ckpt") if p.parent.name != "checkpoints"]
    assert strays == []


def test_an_array_is_one_run_per_seed_and_a_preempted_task_stays_itself(project: Project) -> None:
    job = project.submit("--array=0-1", *TRAIN, NO_VALIDATION, "--data.batch_size=64")
    tasks = [f"{job}_{seed}" for seed in (0, 1)]
    project.until_trained(tasks[1])
    project.preempt(tasks[1])
    ends = [project.end(task, "COMPLETED", "FAILED") for task in tasks]
    assert [end["JobState"] for end in ends] == ["COMPLETED"] * 2, [project.log(task) for task in tasks]
    assert [end["Restarts"] for end in ends] == ["0", "1"]
    assert "resuming after" in project.log(tasks[1]) and "resuming" not in project.log(tasks[0])
    for seed, task in enumerate(tasks):
        config = yaml.safe_load((project.run(task) / "config.yaml").read_text())
        assert config["seed_everything"] == seed
    weights = [last_checkpoint(project.run(task)) for task in tasks]
    assert [w["global_step"] for w in weights] == [STEPS] * 2
    assert any(not torch.equal(v, weights[1]["state_dict"][k]) for k, v in weights[0]["state_dict"].items())


def test_the_time_limit_requeues_even_before_training_has_begun(project: Project) -> None:
    """SLURM's signal before the time limit reaches the tasks while they still import; by then one minute is
    all they have.
    """
    job = project.submit("--time=1", "--signal=USR1@60", *TRAIN, NO_VALIDATION, "--data.batch_size=64")
    project.end(job, "RUNNING")
    project.end(job, "PENDING", "FAILED", "TIMEOUT")
    project.cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    project.cluster.start_again(job, details=project.told(job))
    end = project.end(job, "COMPLETED", "FAILED")
    assert end["JobState"] == "COMPLETED" and end["Restarts"] == "1", project.log(job)
    assert last_checkpoint(project.run(job))["global_step"] == STEPS


def test_two_workers_share_a_sweep(project: Project) -> None:
    space = project.folder / "space.yaml"
    space.write_text("model.temperature: [0.1, 0.2, 0.5, 1.0]\n")
    options = [*DIGITS, "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"]
    sweep = ["cluster/sweep.py", "space.yaml", "--study=study", "--sampler=grid", *options]
    job = project.submit("--array=0-1", *sweep)
    tasks = [f"{job}_{worker}" for worker in (0, 1)]
    ends = [project.end(task, "COMPLETED", "FAILED") for task in tasks]
    logs = [project.log(task) for task in tasks]
    assert [end["JobState"] for end in ends] == ["COMPLETED"] * 2, logs
    done = [
        re.findall(r"^trial-\d+  val/linear_top1 0\.\d+  model\.temperature=([\d.]+)$", log, flags=re.M)
        for log in logs
    ]
    assert all(done), "one worker did everything"
    assert sorted(done[0] + done[1]) == ["0.1", "0.2", "0.5", "1.0"]
    assert "best so far: study/trial-" in logs[0] + logs[1]
    assert not list((project.folder / "study").rglob("results.json"))  # the test split was not touched


def test_several_tasks_without_srun_end_with_one_line(project: Project) -> None:
    script = f"{sys.executable} train.py {' '.join(TRAIN)}"
    job = project.cluster.submit(
        project.folder, *ONE_TASK, "--nodes=2", f"--wrap={script}", PYTHONPATH=str(ROOT)
    )
    end = project.end(job, "COMPLETED", "FAILED")
    assert end["JobState"] == "FAILED" and end["ExitCode"] == "2:0"
    assert re.fullmatch(r"error: .*srun.*\n", project.log(job)), project.log(job)


def test_nothing_of_a_cluster_stays_behind() -> None:
    """Also when the body fails while a job runs."""
    with pytest.raises(ZeroDivisionError), Slurm() as cluster:
        job = cluster.submit(cluster.folder, *ONE_TASK, "--wrap=srun sleep 600")
        cluster.wait(job, "RUNNING")
        wait_for("the task", lambda: len(cluster.processes()) > 6, 30)
        1 / 0  # noqa: B018
    assert cluster.processes() == [] and not cluster.folder.exists()
