"""A SLURM cluster of two virtual nodes on this host: real daemons in one temporary folder, as root or as a
user.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

SBIN = ("/usr/sbin", "/usr/local/sbin", "/sbin")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobRequeue=1
KillWait=5
SchedulerParameters=sched_interval=1
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=4000
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=4000
PartitionName=all Nodes=n0,n1 Default=YES MaxTime=INFINITE State=UP
"""


def search_path() -> str:
    """``PATH`` with the daemons' folders, which an ordinary user's lacks."""
    return os.pathsep.join([os.environ.get("PATH", ""), *SBIN])


def missing_programs() -> list[str]:
    """Programs that a cluster needs and this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]


def free_ports(n: int) -> list[int]:
    """Ports that nobody listens on, held together so that they differ."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_for(what: str, reached: Callable[[], Any], seconds: float, details: Callable[[], str] = str) -> Any:
    """What ``reached`` returns once it is true.

    Raises:
        TimeoutError: it did not become true in time; the message ends with ``details``.
    """
    end = time.monotonic() + seconds
    while not (value := reached()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}\n{details()}")
        time.sleep(0.2)
    return value


class Slurm:
    """The cluster, as a context manager: started on entry, and nothing of it runs after exit.

    The daemons are children in the foreground, which the kernel ends when this process dies by whatever
    means.
    """

    def __init__(self) -> None:
        self.folder = Path(
            tempfile.mkdtemp(prefix="slurm-", dir="/tmp")
        )  # short: a socket's path has 107 characters
        foreign = ("SLURM_", "SBATCH_", "PL_", "SSL_", "MASTER_")
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(foreign)} | {
            "PATH": search_path(),
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "OMP_NUM_THREADS": "1",
        }
        self.daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Slurm:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        folder, munge = self.folder, self.folder / "munge"
        for name in ("state", "spool-n0", "spool-n1"):
            (folder / name).mkdir(mode=0o700)
        folder.chmod(0o711)  # munged wants its socket within everybody's reach
        munge.mkdir(mode=0o711)
        (munge / "key").touch(mode=0o600)
        (munge / "key").write_bytes(os.urandom(1024))
        host = socket.gethostname().partition(".")[0]
        text = CONFIG.format(host=host, user=getpass.getuser(), folder=folder, ports=free_ports(3))
        (folder / "slurm.conf").write_text(text)
        major = int(self.run("sinfo", "--version").stdout.split()[1].partition(".")[0])
        if (
            major >= 23
        ):  # needs no rights to the machine's control groups; earlier versions do not know the word
            (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        paths = {
            "key-file": "key",
            "socket": "socket",
            "pid-file": "pid",
            "log-file": "log",
            "seed-file": "seed",
        }
        self._daemon(
            "munged",
            "--foreground",
            "--force",
            *(f"--{option}={munge / file}" for option, file in paths.items()),
        )
        wait_for("munged", (munge / "socket").exists, 20, self.log)
        self._daemon("slurmctld", "-D", "-i")
        for node in ("n0", "n1"):
            self._daemon("slurmd", "-D", "-N", node)
        wait_for("two idle nodes", self._idle, 60, self.log)

    def _idle(self) -> bool:
        if dead := [d.args[3] for d in self.daemons if d.poll() is not None]:  # type: ignore[index]
            raise RuntimeError(f"{', '.join(dead)} ended at once\n{self.log()}")
        return self.ask("sinfo", "-h", "-o", "%D %t") == "2 idle"

    def _daemon(self, *command: str) -> None:
        log = (self.folder / f"{len(self.daemons)}-{command[0]}.log").open("wb")
        with log:
            full = ["setpriv", "--pdeathsig", "TERM", *command]
            self.daemons.append(
                subprocess.Popen(full, env=self.environment, stdout=log, stderr=log, start_new_session=True)
            )

    def __exit__(self, *_: object) -> None:
        try:
            if len(self.daemons) > 2 and all(d.poll() is None for d in self.daemons):
                self.run("scancel", f"--user={getpass.getuser()}", "--full", "--signal=KILL", check=False)
                self.run("scancel", f"--user={getpass.getuser()}", check=False)
                wait_for("an empty queue", lambda: not self.ask("squeue", "-h"), 30)
        except TimeoutError:
            pass  # the processes are ended below, one by one
        finally:
            for sign in (signal.SIGTERM, signal.SIGKILL):
                for daemon in reversed(self.daemons):
                    if daemon.poll() is None:
                        daemon.send_signal(sign)
                for daemon in self.daemons:
                    try:
                        daemon.wait(10)
                    except subprocess.TimeoutExpired:
                        continue
            for pid in self.processes():
                os.kill(pid, signal.SIGKILL)
            shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self) -> list[int]:
        """Every process whose environment or command names the cluster's folder: daemons, job steps and
        tasks.
        """
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                text = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(self.folder) in text:
                found.append(int(process.name))
        return [pid for pid in found if pid != os.getpid()]

    def _steps(self, number: str) -> list[str]:
        """What watches over the job's tasks on the nodes, such as ``slurmstepd: [3.batch]``."""
        return re.findall(rf"slurmstepd: \[{number}\.\w+\]", self.ask("ps", "-e", "-o", "args="))

    def log(self) -> str:
        """The last lines of every daemon's log."""
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(
            f"--- {f.name}\n" + "\n".join(f.read_text(errors="replace").splitlines()[-15:]) for f in files
        )

    # ---- what a user does ----------------------------------------------------------------------------------

    def run(self, *command: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, **options
        )
        if check and done.returncode:
            raise RuntimeError(
                f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}{self.log()}"
            )
        return done

    def ask(self, *command: str) -> str:
        return self.run(*command, check=False).stdout.strip()

    def submit(self, folder: Path, *command: str, **environment: str) -> str:
        """``sbatch`` in ``folder``; returns the job's number. n0 and n1 have no name in the DNS, hence
        MASTER_ADDR.
        """
        exported = ",".join(["ALL", "MASTER_ADDR=127.0.0.1", *(f"{k}={v}" for k, v in environment.items())])
        return self.run("sbatch", "--parsable", f"--export={exported}", *command, cwd=folder).stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """``scontrol show job`` as a dict; ``1_0`` names a task of an array."""
        return dict(re.findall(r"(\w+)=(\S*)", self.ask("scontrol", "--oneliner", "show", "job", job)))

    def wait(
        self, job: str, *states: str, seconds: float = 120, details: Callable[[], str] = str
    ) -> dict[str, str]:
        """The job once it is in one of ``states``, or ``TimeoutError`` with what it is doing."""
        last: dict[str, str] = {}

        def reached() -> bool:
            last.update(self.job(job))
            return last.get("JobState") in states

        wait_for(f"job {job} {' or '.join(states)}", reached, seconds, lambda: f"{last}\n{details()}")
        return last

    def start_again(self, job: str, restarts: int = 1, details: Callable[[], str] = str) -> None:
        """Spare a requeued job its two minutes of waiting, but for what is left of its last start: SLURM
        would take the end of that for the end of this one, and a node refuses credentials of the second in
        which it revoked the job's.
        """
        number = self.job(job)["JobId"]
        wait_for(f"the end of job {job}'s first start", lambda: not self._steps(number), 60)
        time.sleep(2)

        def running() -> bool:
            self.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)
            now = self.job(job)
            return now.get("Restarts") == str(restarts) and now["JobState"] in ("RUNNING", "COMPLETED")

        wait_for(
            f"job {job} started again", running, 60, lambda: f"{self.job(job)}\n{details()}\n{self.log()}"
        )
