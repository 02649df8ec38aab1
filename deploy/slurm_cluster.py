"""Start a real Slurm for tests: one node on loopback with four pretend GPUs, nothing installed.

    python -m deploy.fetch slurm

fetches Debian's packages into `.cache/`, unpacked and without root. What the programs need is told
them by a configuration of their own; every process is stopped by its id.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from deploy.broker import free_port
from deploy.fetch import CACHE
from pipeline.clock import Clock, SystemClock
from pipeline.errors import Unavailable

GPUS: Final = 4
PACKAGES: Final = (
    "slurm-wlm-basic-plugins", "slurm-client", "slurmctld", "slurmd", "munge", "libmunge2",
    "libhwloc15", "liblua5.1-0", "libhttp-parser2.9",
)  # fmt: skip
SCRIPTS: Final = Path(__file__).with_name("slurm")
_FETCH_S: Final = 300
_START_S: Final = 30.0
_STOP_S: Final = 10.0
_COMMAND_S: Final = 20.0
_PATIENCE_S: Final = 0.1
_CONF: Final = """\
ClusterName=pretend
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock,cred_expire=5
PluginDir={plugins}
SlurmctldPort={ctl_port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
PrologFlags=Alloc
Prolog={folder}/prolog.sh
Epilog={folder}/epilog.sh
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=500 Gres=gpu:h100:{gpus} State=UNKNOWN
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:8
"""


def unpacked(cache: Path = CACHE) -> Path:
    """The folder that stands for `/` of Debian's Slurm. Raises Unavailable where not fetched."""
    root = cache / "slurm"
    if not (root / "usr/sbin/slurmctld").exists():
        raise Unavailable("Slurm was not fetched: run `python -m deploy.slurm_cluster`")
    return root


def fetch_slurm(cache: Path = CACHE) -> Path:
    """Unpack Debian's Slurm, unless it is there. Raises Unavailable."""
    with contextlib.suppress(Unavailable):
        return unpacked(cache)
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise Unavailable(f"no {tool} in PATH: Slurm is taken from Debian's packages")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        _run(["apt-get", "download", *PACKAGES], Path(scratch), _FETCH_S)
        made = Path(scratch) / "root"
        for package in sorted(Path(scratch).glob("*.deb")):
            _run(["dpkg", "-x", str(package), str(made)], Path(scratch), _FETCH_S)
        for name in ("slurmctld", "slurmd", "slurmstepd"):
            # Under any other name a daemon does not load what Gres= names, and says nothing.
            (made / "usr/sbin" / name).unlink(missing_ok=True)
            (made / "usr/sbin" / name).symlink_to(f"{name}-wlm")
        with contextlib.suppress(OSError):  # somebody else was quicker
            made.rename(cache / "slurm")
    return unpacked(cache)


class SlurmCluster:
    """A controller and a node whose state lies in `folder`; as a context manager it is stopped.

    Raises Unavailable where Slurm was not fetched or does not come up.
    """

    def __init__(self, folder: Path, clock: Clock | None = None) -> None:
        self.folder = folder
        self.jobs = folder / "jobs"
        self.host = socket.gethostname().partition(".")[0]
        self._root = unpacked()
        self._clock: Clock = clock or SystemClock()
        libraries = next(iter(self._root.glob("usr/lib/*/slurm-wlm")), None)
        if libraries is None:
            raise Unavailable(f"Slurm's plugins are not in {self._root}: remove it and fetch again")
        self._plugins = libraries
        self.env: Final = {
            "PATH": f"{self._root}/usr/bin:{os.environ.get('PATH', '/usr/bin:/bin')}",
            "LD_LIBRARY_PATH": f"{libraries.parent}:{libraries}",
            "SLURM_CONF": str(folder / "slurm.conf"),
        }
        """What Slurm's commands need in their environment."""

    @classmethod
    def start(cls, folder: Path) -> Self:
        """A cluster whose node is idle."""
        cluster = cls(folder)
        try:
            cluster._start()
        except BaseException:
            cluster.stop()
            raise
        return cluster

    def run(self, *command: str) -> str:
        """One of Slurm's commands; what it printed. Raises Unavailable."""
        return _run(command, self.folder, _COMMAND_S, self.env)

    def submit(self, seconds: float, gpus: int, *options: str) -> str:
        """Queue a job that sleeps; its id."""
        return self.run(
            "sbatch", "--parsable", "--output=/dev/null", "--mem=1", f"--gres=gpu:h100:{gpus}",
            *options, f"--wrap=exec sleep {seconds}",
        ).strip()  # fmt: skip

    def stop(self) -> None:
        """End the daemons by the ids that they wrote down; jobs' shepherds end with them."""
        for name in ("slurmd", "slurmctld", "munged"):
            file = self.folder / "run" / f"{name}.pid"
            with contextlib.suppress(OSError, ValueError):
                self._end(int(file.read_text()))
            file.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _start(self) -> None:
        # With state and spool of different ages job ids come twice, and no prolog is run.
        for name in ("run", "spool", "state", "log", "dev"):
            (self.folder / name).mkdir(parents=True)
        self._configure()
        run, log, sbin = self.folder / "run", self.folder / "log", self._root / "usr/sbin"
        _run(
            [str(sbin / "munged"), "--force", f"--socket={run}/munge.sock",
             f"--key-file={self.folder}/munge.key", f"--pid-file={run}/munged.pid",
             f"--log-file={log}/munged.log", f"--seed-file={run}/munged.seed"],
            self.folder, _COMMAND_S, self.env,
        )  # fmt: skip
        conf = self.env["SLURM_CONF"]
        _run([str(sbin / "slurmctld"), "-f", conf], self.folder, _COMMAND_S, self.env)
        slurmd = [str(sbin / "slurmd"), "-f", conf, "-d", str(sbin / "slurmstepd")]
        _run(slurmd, self.folder, _COMMAND_S, self.env)
        self._wait_until_idle()

    def _configure(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        (self.folder / "slurm.conf").write_text(
            _CONF.format(
                host=self.host, user=_user(), folder=self.folder, plugins=self._plugins,
                ctl_port=free_port(), node_port=free_port(), cpus=os.cpu_count(), gpus=GPUS,
            )
        )  # fmt: skip
        (self.folder / "gres.conf").write_text(
            f"AutoDetect=off\nName=gpu Type=h100 File={self._devices()}\n"
        )
        for name in ("prolog.sh", "epilog.sh"):
            script = self.folder / name
            script.write_text(
                f"#!/bin/sh\nMEGAWATCH_SLURM_JOBS={self.jobs}\nexport MEGAWATCH_SLURM_JOBS\n"
                f"env >{self.folder}/log/{name}.env\nexec {SCRIPTS / name}\n"
            )
            script.chmod(0o755)

    def _devices(self) -> str:
        """Files that are devices, as Slurm insists: null devices of our own, else terminals."""
        folder = self.folder / "dev"
        try:
            for index in range(GPUS):
                os.mknod(folder / f"nvidia{index}", 0o20666, os.makedev(1, 3))
        except OSError:
            return f"/dev/tty[0-{GPUS - 1}]"
        return f"{folder}/nvidia[0-{GPUS - 1}]"

    def _wait_until_idle(self) -> None:
        deadline_s = self._clock.monotonic_s() + _START_S
        never = threading.Event()
        said = ""
        while self._clock.monotonic_s() < deadline_s:
            with contextlib.suppress(Unavailable):
                said = self.run("sinfo", "-h", "-o", "%t %G").strip()
                if said.startswith("idle gpu"):
                    return
            self._clock.wait(never, _PATIENCE_S)
        raise Unavailable(f"Slurm's node is not idle with GPUs after {_START_S:.0f} s: {said!r}")

    def _end(self, pid: int) -> None:
        os.kill(pid, signal.SIGTERM)
        deadline_s = self._clock.monotonic_s() + _STOP_S
        never = threading.Event()
        while _is_alive(pid):
            if self._clock.monotonic_s() > deadline_s:
                os.kill(pid, signal.SIGKILL)
                return
            self._clock.wait(never, _PATIENCE_S)


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError, IndexError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    return False


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _run(
    command: Sequence[str], folder: Path, timeout_s: float, env: dict[str, str] | None = None
) -> str:
    # Output to a file: a daemon keeps what it inherits, and a pipe would never end.
    with tempfile.TemporaryFile() as out:
        try:
            done = subprocess.run(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                check=False, timeout=timeout_s, env=os.environ | env if env else None,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"{command[0]}: {error}") from error
        out.seek(0)
        said = out.read().decode(errors="replace")
    if done.returncode:
        lines = said.strip().splitlines() or ["no output"]
        raise Unavailable(f"{command[0]} failed ({done.returncode}): {lines[-1].strip()}")
    return said
