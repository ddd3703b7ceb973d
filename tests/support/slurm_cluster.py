"""A real Slurm of one node, on this machine alone, with folders and ports of its own.

Debian's slurm-wlm and munge, started by hand as root and ended by their numbers.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")

CONFIGURATION = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthInfo=socket={folder}/munge.socket
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PropagateResourceLimits=NONE
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=100000 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no cluster here; empty where there can. Installs it where root may."""
    if os.geteuid() != 0:
        return "a Slurm of one's own needs root"
    if all(map(shutil.which, PROGRAMS)):
        return ""
    install = "apt-get update -qq; apt-get install -y -qq --no-install-recommends slurm-wlm munge"
    done = subprocess.run(
        ["sh", "-c", install],
        env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
        capture_output=True,
        text=True,
    )
    if all(map(shutil.which, PROGRAMS)):
        return ""
    return f"Slurm cannot be installed: {(done.stderr.strip().splitlines() or ['?'])[-1]}"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running(folder: Path, cpus: int) -> Iterator[dict[str, str]]:
    """The cluster at work; yields what the environment of its users needs."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().split(".")[0]
    settings = folder / "slurm.conf"
    settings.write_text(
        CONFIGURATION.format(
            folder=folder,
            host=host,
            cpus=cpus,
            controller_port=_free_port(),
            node_port=_free_port(),
        )
    )
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    environment = {"SLURM_CONF": str(settings)}
    commands = [
        [
            *("munged", "--foreground", "--force", f"--key-file={key}"),
            *(f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid"),
            *(f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"),
        ],
        ["slurmctld", "-D", "-c", "-f", str(settings)],
        ["slurmd", "-D", "-c", "-f", str(settings), "-N", host],
    ]
    with ExitStack() as stack:
        for number, command in enumerate(commands):
            log = stack.enter_context((folder / f"daemon-{number}.log").open("w"))
            daemon = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | environment
            )
            stack.callback(_end, daemon)
            if number == 0:
                _until(lambda: (folder / "munge.socket").exists())
        _until(lambda: "idle" in _output(["sinfo", "--noheader", "--format=%T"], environment))
        yield environment
        subprocess.run(["scancel", "--me"], env=os.environ | environment, check=False)
        _until(lambda: not _output(["squeue", "--noheader"], environment).strip())


def _output(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    return done.stdout


def _until(condition: object) -> None:
    end = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        if time.monotonic() > end:
            raise TimeoutError("Slurm did not start within half a minute")
        time.sleep(0.1)


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(timeout=20)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
