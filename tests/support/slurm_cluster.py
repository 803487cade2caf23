"""A real Slurm on this machine, two nodes on the loopback device: munge, slurmctld and two slurmd, as root.

All that it writes lies in one folder, nothing of the machine is changed (the nodes' names stand in an /etc/hosts of a
mount namespace), and the daemons end with the process that has started them.
"""

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

ADDRESSES = {"node1": "127.0.0.1", "node2": "127.0.0.2"}
NODES = tuple(ADDRESSES)
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare")
PORTS = (16817, 17001, 17002)
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

CONFIGURATION = """\
ClusterName=tiny
SlurmctldHost=localhost
SlurmctldAddr=127.0.0.1
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/ctld
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=5,bf_interval=5,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{more}
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobRequeue=1
ReturnToService=2
SlurmdTimeout=20
KillWait=10
PropagateResourceLimits=NONE
GresTypes=gpu
NodeName=node1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cores} RealMemory=1000 Gres=gpu:8
NodeName=node2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cores} RealMemory=1000 Gres=gpu:8
PartitionName=low Nodes=node[1-2] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=nograce Nodes=node[1-2] PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=high Nodes=node[1-2] PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str:
    """What stands in the way of a cluster here; "" for nothing."""
    lost = [name for name in PROGRAMS if not shutil.which(name)]
    if lost:
        return f"needs {', '.join(lost)}: Debian's packages slurm-wlm and munge"
    return "" if os.geteuid() == 0 else "needs root: the daemons run jobs as other users, and a mount namespace"


def end_with_parent() -> None:
    """In a child before exec: the kernel ends it with this process."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class Cluster:
    """A running cluster; `stop` ends it. `environment`: what Slurm's commands need to find it."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("munge", "ctld", "log", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir(parents=True)
        (folder / "munge").chmod(0o700)
        (folder / "munge/key").write_bytes(secrets.token_bytes(1024))
        (folder / "munge/key").chmod(0o400)
        names = [f"127.0.0.1 localhost {socket.gethostname()}", *(f"{ADDRESSES[node]} {node}" for node in NODES)]
        (folder / "hosts").write_text("".join(f"{line}\n" for line in names))
        # Devices that exist, for GPUs by pretence.
        (folder / "gres.conf").write_text("Name=gpu Count=8 File=/dev/tty[1-8]\n")
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: dict[str, subprocess.Popen] = {}
        self.configure()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def configure(self, more: str = "") -> None:
        """Write slurm.conf. more: a line of it."""
        values = {"folder": self.folder, "ports": PORTS, "cores": os.cpu_count(), "more": more}
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(**values))

    def _start(self) -> None:
        munge = self.folder / "munge"
        files = [f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")]
        self.daemon("munged", "munged", "--foreground", "--force", f"--socket={munge / 'socket'}", *files)
        until(lambda: (munge / "socket").exists(), "munged")
        self.daemon("slurmctld", "slurmctld", "-D", "-c")
        for node in NODES:
            self.start_node(node)
        until(lambda: self.command("sinfo", "-h", "-N", "-p", "low", "-o", "%T").split() == ["idle"] * 2, "the nodes")

    def daemon(self, name: str, *words: str) -> None:
        """Start a daemon in a mount namespace in which the nodes' names have an address."""
        script = f'mount --bind "{self.folder}/hosts" /etc/hosts && exec "$@"'
        with open(self.folder / "log" / f"{name}.out", "ab") as log:
            self.daemons[name] = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", script, name, *words],
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=end_with_parent,
                start_new_session=True,
            )

    def start_node(self, node: str) -> None:
        self.daemon(node, "slurmd", "-D", "-N", node)

    def command(self, *words: object, folder: Path | None = None, environment: dict[str, str] | None = None) -> str:
        """The output of one of Slurm's commands, called in this folder and environment or in another."""
        done = subprocess.run(
            [str(word) for word in words],
            cwd=folder,
            env=environment or (os.environ | self.environment),
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.stdout.strip()

    def show(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job."""
        words = self.command("scontrol", "show", "job", "-o", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, states: tuple[str, ...] = ENDED, seconds: int = 240) -> dict[str, str]:
        """Wait for a state; what Slurm knows then."""
        until(lambda: self.show(job).get("JobState") in states, f"job {job}: {states}", seconds)
        return self.show(job)

    def restarted(self, job: str, times: int = 1, seconds: int = 120) -> None:
        """Wait until a job runs again."""
        found = self.show
        until(lambda: (one := found(job))["Restarts"] == str(times) and one["JobState"] == "RUNNING", "again", seconds)

    def end_jobs(self) -> None:
        """Cancel what a test has left, and wait until both nodes are free."""
        if jobs := self.command("squeue", "--noheader", "--format=%A").split():
            self.command("scancel", *jobs)
        idle = ["idle"] * len(NODES)
        until(lambda: self.command("sinfo", "-h", "-N", "-p", "low", "-o", "%T").split() == idle, "free nodes", 90)

    def stop(self) -> None:
        """End the jobs, then the daemons."""
        if "slurmctld" in self.daemons:
            try:
                self.end_jobs()
            except AssertionError as error:
                print(error)
        for process in reversed(self.daemons.values()):
            process.terminate()
        for process in self.daemons.values():
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def until(holds, what: str, seconds: float = 60) -> None:
    """Wait until holds() does."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.2)
