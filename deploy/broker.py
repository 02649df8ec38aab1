"""Start a real Apache Kafka for tests and benches: one KRaft broker on loopback, data kept."""

import base64
import os
import shutil
import signal
import socket
import subprocess
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Self

from deploy import fetch
from pipeline.clock import Clock, SystemClock
from pipeline.errors import Unavailable

_START_TIMEOUT_S: Final = 60.0
_STOP_TIMEOUT_S: Final = 20.0
_PATIENCE_S: Final = 0.05
_JAVA: Final = (
    "-Xmx384m", "-Xms64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)  # fmt: skip
"""Light and quick to start rather than quick for hours."""
BENCH_JAVA: Final = (
    "-Xmx1g", "-Xms256m", "-XX:+UseG1GC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)  # fmt: skip
"""For measurements: with the optimising compiler, as in production."""

NO_PROPERTIES: Final[Mapping[str, str]] = MappingProxyType({})


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Broker:
    """A broker whose data lies in `folder`; as a context manager it is stopped at the end.

    Raises Unavailable where Java or Maven is missing, or the broker does not come up.
    """

    def __init__(
        self,
        folder: Path,
        port: int = 0,
        properties: Mapping[str, str] = NO_PROPERTIES,
        java_options: tuple[str, ...] = _JAVA,
    ) -> None:
        self._folder = folder
        self._port = port or free_port()
        self._java_options = java_options
        self._properties = _properties(folder / "data", self._port, free_port()) | dict(properties)
        self._process: subprocess.Popen[bytes] | None = None
        self._clock: Clock = SystemClock()

    @classmethod
    def start(
        cls,
        folder: Path,
        port: int = 0,
        properties: Mapping[str, str] = NO_PROPERTIES,
        java_options: tuple[str, ...] = _JAVA,
    ) -> Self:
        """A running broker on `port` (0: any free one), with more server properties if given."""
        broker = cls(folder, port, properties, java_options)
        broker.restart()
        return broker

    @property
    def bootstrap(self) -> str:
        """host:port for clients."""
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process else None

    def restart(self) -> None:
        """Stop it if it runs, and start it on the same port with the same data."""
        self.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "server.properties"
        config.write_text("".join(f"{k}={v}\n" for k, v in self._properties.items()))
        if not (self._folder / "data" / "meta.properties").exists():
            self._format(config)
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command(), "kafka.Kafka", str(config)],
                cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            self._wait_until_it_listens(self._process)
        except Unavailable:
            self.stop()
            raise

    def stop(self, *, kill: bool = False) -> None:
        """SIGTERM, after a while SIGKILL; `kill`: SIGKILL at once, as a power cut would."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_TIMEOUT_S)

    def cpu_s(self) -> float:
        """CPU seconds that the running broker has used so far."""
        assert self._process is not None, "the broker does not run"
        text = Path(f"/proc/{self._process.pid}/stat").read_text()
        user, system = text.rsplit(")", 1)[1].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def _command(self) -> list[str]:
        return [fetch.java(), *self._java_options, "-cp", f"{fetch.kafka_jars()}/*"]

    def _format(self, config: Path) -> None:
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        shutil.rmtree(self._folder / "data", ignore_errors=True)
        done = subprocess.run(
            [*self._command(), "kafka.tools.StorageTool", "format", f"--cluster-id={cluster}",
             "-c", str(config)],
            capture_output=True, text=True, check=False, timeout=_START_TIMEOUT_S,
        )  # fmt: skip
        if done.returncode:
            raise Unavailable(f"Kafka cannot format its storage: {done.stderr.strip()[-500:]}")

    def _wait_until_it_listens(self, process: subprocess.Popen[bytes]) -> None:
        deadline_s = self._clock.monotonic_s() + _START_TIMEOUT_S
        never = threading.Event()
        while self._clock.monotonic_s() < deadline_s:
            if process.poll() is not None:
                tail = (self._folder / "server.log").read_text(errors="replace")[-500:].strip()
                raise Unavailable(f"Kafka ended with {process.returncode}: {tail}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            self._clock.wait(never, _PATIENCE_S)
        raise Unavailable(f"Kafka does not listen on port {self._port} after {_START_TIMEOUT_S} s")

    def __enter__(self) -> Self:
        if self._process is None:
            self.restart()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _properties(data: Path, port: int, controller: int) -> dict[str, str]:
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "log.dirs": str(data),
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "3",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "group.initial.rebalance.delay.ms": "0",
        "num.network.threads": "2",
        "num.io.threads": "4",
        "num.recovery.threads.per.data.dir": "1",
    }
