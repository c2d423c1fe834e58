"""A real one-node Slurm on the loopback, of this process's own: its daemons, sockets and files lie in one folder.

Needs Debian's slurm-wlm and munge, and root. `GENTK_SLURM_INSTALL=1` in the environment lets it install them.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "sinfo")
_CONF = """\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmdPort={d}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/d.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/d.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=60
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=120
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=9 PreemptMode=OFF
"""


def absent() -> str:
    """Why there can be no Slurm here, or the empty string."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    if os.environ.get("GENTK_SLURM_INSTALL") == "1" and not _found():
        quiet = {"capture_output": True, "env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"}}
        subprocess.run(["apt-get", "install", "-y", "-qq", "slurm-wlm", "munge"], **quiet)  # type: ignore[call-overload]
    missing = [name for name in PROGRAMS if not _where(name)]
    return f"no {', '.join(missing)}: install slurm-wlm and munge, or set GENTK_SLURM_INSTALL=1" if missing else ""


def _found() -> bool:
    return all(_where(name) for name in PROGRAMS)


def _where(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin")


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(what: Callable[[], object], seconds: float = 240.0, every: float = 0.25) -> None:
    """Waits for something to become true. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(every)


@dataclass(frozen=True)
class Cluster:
    """A running Slurm: its folder, and commands in its environment."""

    folder: Path

    def __call__(self, *words: object, stdin: str | None = None, cwd: Path | None = None) -> str:
        """Standard output of a Slurm command. Raises AssertionError with what it said."""
        program = _where(str(words[0]))
        assert program is not None
        environment = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        done = subprocess.run(
            [program, *(str(word) for word in words[1:])],
            input=stdin, capture_output=True, text=True, env=environment, cwd=cwd,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def submit(self, script: str, *words: str, cwd: Path) -> str:
        """The id of the job that a batch file makes."""
        return self("sbatch", "--parsable", *words, stdin=script, cwd=cwd).strip()

    def job(self, ref: str) -> dict[str, str]:
        """What Slurm knows of a job; a requeued one is let go soon, without Slurm's pause of two minutes.

        Not in the same second: Slurm has just revoked what the job was started with, by time, and would fail it.
        """
        line = self("scontrol", "show", "job", "-o", ref).splitlines()[0]
        facts = dict(word.partition("=")[::2] for word in line.split() if "=" in word)
        paused = facts["JobState"] == "PENDING" and facts.get("Reason") == "BeginTime"
        paused = paused and facts["StartTime"] != "Unknown"  # it has just been queued again
        if paused and datetime.fromisoformat(facts["StartTime"]) > datetime.now() + timedelta(seconds=5):
            self("scontrol", "update", f"JobId={facts['JobId']}", "StartTime=now+3")
        return facts

    def state(self, ref: str) -> str:
        """The job's state."""
        return self.job(ref)["JobState"]


@contextmanager
def started(folder: Path) -> Iterator[Cluster]:
    """A Slurm in `folder`, ended with the block."""
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(_CONF.format(host=host, folder=folder, ctld=_port(), d=_port()))
    commands = [
        ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
         f"--pid-file={folder}/munge.pid", f"--seed-file={folder}/munge.seed", f"--log-file={folder}/munge.log"],
        ["slurmctld", "-D", "-f", str(folder / "slurm.conf")],
        ["slurmd", "-D", "-N", host, "-f", str(folder / "slurm.conf")],
    ]  # fmt: skip
    running: list[subprocess.Popen[bytes]] = []
    cluster = Cluster(folder)
    try:
        for words in commands:
            program = _where(words[0])
            assert program is not None
            with (folder / f"{words[0]}.out").open("wb") as out:
                running.append(subprocess.Popen([program, *words[1:]], stdout=out, stderr=out))
            if words[0] == "munged":
                until((folder / "munge.socket").exists, 30)
            time.sleep(1)
        until(lambda: "idle" in cluster("sinfo", "-h", "-o", "%T"), 60)
        yield cluster
    finally:
        if len(running) == len(commands):
            subprocess.run(
                [_where("scancel") or "scancel", "--full", "-u", "root", "-s", "KILL"],
                env=os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}, capture_output=True,
            )  # fmt: skip
            time.sleep(1)
        for process in reversed(running):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
