"""kubernetes.yaml: every path, option and variable in it exists, and what has to agree does. No Kubernetes is
started.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from runtime.command_line import CheckedCommandLine
from runtime.messages import ROOT

FILE = ROOT / "cluster" / "kubernetes.yaml"
JOB, SEVERAL_NODES = yaml.safe_load_all(FILE.read_text(encoding="utf-8"))
REPLICAS = SEVERAL_NODES["spec"]["pytorchReplicaSpecs"]
PODS = {"Job": JOB["spec"]["template"]["spec"]} | {
    name: part["template"]["spec"] for name, part in REPLICAS.items()
}


@pytest.fixture(params=PODS)
def pod(request: pytest.FixtureRequest) -> dict[str, Any]:
    return PODS[request.param]


def container(pod: dict[str, Any]) -> dict[str, Any]:
    [only] = pod["containers"]
    return only


def option(pod: dict[str, Any], name: str) -> str | None:
    return dict(arg.removeprefix("--").split("=", 1) for arg in container(pod)["args"]).get(name)


def variables(pod: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container(pod).get("env", [])}


def read_by(script: Path) -> set[str]:
    """Variables that a shell script takes from the environment."""
    return set(re.findall(r"\$\{(\w+):-", script.read_text(encoding="utf-8")))


def test_kinds() -> None:
    assert (JOB["apiVersion"], JOB["kind"]) == ("batch/v1", "Job")
    assert (SEVERAL_NODES["apiVersion"], SEVERAL_NODES["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert set(REPLICAS) == {"Master", "Worker"} and REPLICAS["Master"]["replicas"] == 1
    assert JOB["metadata"]["name"] != SEVERAL_NODES["metadata"]["name"]


def test_the_command_is_there(pod: dict[str, Any]) -> None:
    """Without a shell in between, which would keep SIGTERM to itself."""
    *interpreter, script = container(pod)["command"]
    assert (ROOT / script).is_file()
    assert interpreter == ["python"] or (interpreter == [] and os.access(ROOT / script, os.X_OK))
    assert container(pod)["workingDir"] == "/workspace"


def test_its_options_are_those_of_train(pod: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    CheckedCommandLine(container(pod)["args"])
    assert option(pod, "run_dir"), "a new pod would begin a new run"


def test_its_variables_are_read(pod: dict[str, Any]) -> None:
    given = variables(pod)
    assert set(given) <= read_by(ROOT / container(pod)["command"][-1])
    assert all(isinstance(value, str) for value in given.values()), "Kubernetes takes strings only"


def test_devices_are_the_gpus_of_the_pod(pod: dict[str, Any]) -> None:
    devices = option(pod, "trainer.devices") or variables(pod)["DEVICES"]
    assert int(devices) == container(pod)["resources"]["limits"]["nvidia.com/gpu"]


def test_nodes_are_the_pods() -> None:
    pods = sum(part["replicas"] for part in REPLICAS.values())
    assert {variables(part["template"]["spec"])["NODES"] for part in REPLICAS.values()} == {str(pods)}


def test_there_is_time_to_save(pod: dict[str, Any]) -> None:
    """The operator's pods end through torchrun, which has to give up before Kubernetes does."""
    assert pod["terminationGracePeriodSeconds"] >= 120  # the default is 30
    assert int(variables(pod).get("SAVE_SECONDS", 0)) < pod["terminationGracePeriodSeconds"]


def test_what_is_read_and_written_outlives_the_pod(pod: dict[str, Any]) -> None:
    mounts = {mount["mountPath"]: mount for mount in container(pod)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    for name in ("data.root", "run_dir"):
        [mount] = [m for path, m in mounts.items() if str(option(pod, name)).startswith(path + "/")]
        assert "persistentVolumeClaim" in volumes[mount["name"]]
        assert mount.get("readOnly", False) == (name == "data.root")
    assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"]["medium"] == "Memory"


def test_who_starts_again() -> None:
    """143 starts a new pod of the Job, and does not count as a failure; 2 is final."""
    rules = JOB["spec"]["podFailurePolicy"]["rules"]
    assert rules[0] == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    assert rules[1] == {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}}
    assert JOB["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # a failure policy allows no other
    assert {part["restartPolicy"] for part in REPLICAS.values()} == {"OnFailure"}
    assert all(container(part["template"]["spec"])["name"] == "pytorch" for part in REPLICAS.values())


DOCKERFILE = (ROOT / "cluster" / "Dockerfile").read_text(encoding="utf-8")
SBATCH = (ROOT / "cluster" / "slurm.sbatch").read_text(encoding="utf-8")


def test_the_image_holds_what_the_pods_start(pod: dict[str, Any]) -> None:
    """The Dockerfile is parsed, not built."""
    copied = {
        name for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]
    }
    assert all((ROOT / name).exists() for name in copied)
    needed = {
        "train.py",
        "eval.py",
        "cluster",
        "configs",
        "sslmodules",
        "datamodules",
        "evaluation",
        "runtime",
    }
    assert needed <= copied
    assert f"WORKDIR {container(pod)['workingDir']}" in DOCKERFILE
    assert f"-t {container(pod)['image']}" in DOCKERFILE
    extras = set(re.search(r"\[(.*?)\]", DOCKERFILE)[1].split(","))  # type: ignore[index]
    known = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f"\n{extra} = [" in known for extra in extras)


def test_slurm_waits_for_the_process_that_evaluates() -> None:
    [srun] = [line for line in SBATCH.splitlines() if line.startswith("exec srun")]
    assert {"--kill-on-bad-exit=1", "--wait=0"} <= set(srun.split())


def workers(config: Path) -> int:
    return yaml.safe_load(config.read_text(encoding="utf-8"))["data"]["init_args"].get("num_workers", 0)


def test_there_is_a_cpu_for_each_worker(pod: dict[str, Any]) -> None:
    gpus = container(pod)["resources"]["limits"]["nvidia.com/gpu"]
    cpus = int(container(pod)["resources"]["requests"]["cpu"])
    assert gpus * workers(ROOT / str(option(pod, "config"))) <= cpus


def test_a_slurm_task_has_a_cpu_for_each_worker_of_every_config() -> None:
    cpus = int(re.findall(r"^#SBATCH --cpus-per-task=(\d+)$", SBATCH, re.MULTILINE)[0])
    most = max(
        workers(config)
        for folder in ("imagenet", "shards")
        for config in (ROOT / "configs" / folder).glob("*")
    )
    assert most == cpus


def test_the_nodes_differ_in_nothing_but_their_number() -> None:
    master, worker = (dict(REPLICAS[name]) for name in ("Master", "Worker"))
    assert master.pop("replicas") == 1 and worker.pop("replicas") >= 1
    assert master == worker
