"""Fetch real servers and tools for tests and benches, once, into `.cache/`, without root.

    python -m deploy.fetch kafka|prometheus|grafana-schema|all

What cannot be fetched is named, and the rest goes on: tests of a missing part are skipped by name.
"""

import argparse
import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from pipeline.errors import Unavailable

CACHE: Final = Path(__file__).resolve().parents[1] / ".cache"
KAFKA_VERSION: Final = "4.1.1"
JAVA_NEEDED: Final = 17
"""A broker of Apache Kafka 4 runs on Java 17 or newer."""

_FETCH_TIMEOUT_S: Final = 600
_POM: Final = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>megawatch</groupId>
  <artifactId>broker</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId>
      <artifactId>slf4j-simple</artifactId>
      <version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
"""
_DEBIAN: Final = ("prometheus", "prometheus-alertmanager")
GRAFANA_SCHEMA_VERSION: Final = "13.2.3"
TYPESCRIPT_VERSION: Final = "7.0.2"
NODE_NEEDED: Final = 20


def java() -> str:
    """Path of a Java that can run the broker. Raises Unavailable."""
    path = shutil.which("java")
    if path is None:
        raise Unavailable(f"no java in PATH: Apache Kafka needs Java {JAVA_NEEDED} or newer")
    said = subprocess.run([path, "-version"], capture_output=True, text=True, check=False).stderr
    match = re.search(r'version "(\d+)', said)
    if match is None or int(match[1]) < JAVA_NEEDED:
        found = match[1] if match else "unknown"
        raise Unavailable(f"{path} is Java {found}: Kafka needs {JAVA_NEEDED} or newer")
    return path


def kafka_jars(cache: Path = CACHE) -> Path:
    """The folder of Apache Kafka's jars. Raises Unavailable where they were not fetched."""
    jars = cache / "kafka" / KAFKA_VERSION
    if not jars.is_dir():
        raise Unavailable("Apache Kafka was not fetched: run `python -m deploy.fetch kafka`")
    return jars


def fetch_kafka(cache: Path = CACHE) -> Path:
    """Have Maven fetch Apache Kafka's jars, unless they are there. Raises Unavailable."""
    jars = cache / "kafka" / KAFKA_VERSION
    java()
    if jars.is_dir():
        return jars
    if shutil.which("mvn") is None:
        raise Unavailable(f"no mvn in PATH: Maven fetches Apache Kafka {KAFKA_VERSION}")
    jars.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=jars.parent) as scratch:
        (Path(scratch) / "pom.xml").write_text(_POM)
        target = Path(scratch) / "jars"
        _run(
            ["mvn", "-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime",
             f"-DoutputDirectory={target}"],
            Path(scratch),
        )  # fmt: skip
        _publish(target, jars)
    return jars


def prometheus_programs(cache: Path = CACHE) -> Path:
    """The folder of prometheus, promtool and amtool. Raises Unavailable where not fetched."""
    programs = cache / "debian" / "usr" / "bin"
    if not all((programs / name).exists() for name in ("prometheus", "promtool", "amtool")):
        raise Unavailable("Prometheus was not fetched: run `python -m deploy.fetch prometheus`")
    return programs


def fetch_prometheus(cache: Path = CACHE) -> Path:
    """Unpack Debian's Prometheus and Alertmanager, unless they are there. Raises Unavailable."""
    with contextlib.suppress(Unavailable):
        return prometheus_programs(cache)
    root = cache / "debian"
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise Unavailable(f"no {tool} in PATH: Prometheus is taken from Debian's packages")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        _run(["apt-get", "download", *_DEBIAN], Path(scratch))
        unpacked = Path(scratch) / "root"
        for package in sorted(Path(scratch).glob("*.deb")):
            _run(["dpkg", "-x", str(package), str(unpacked)], Path(scratch))
        _publish(unpacked, root)
    return prometheus_programs(cache)


def grafana_schema(cache: Path = CACHE) -> Path:
    """A folder whose node_modules hold Grafana's types and the compiler. Raises Unavailable."""
    folder = cache / "npm" / f"{GRAFANA_SCHEMA_VERSION}-{TYPESCRIPT_VERSION}"
    if not folder.is_dir():
        raise Unavailable(
            "Grafana's schema was not fetched: run `python -m deploy.fetch grafana-schema`"
        )
    return folder


def fetch_grafana_schema(cache: Path = CACHE) -> Path:
    """Have npm install Grafana's types and TypeScript, unless they are there. Raises Unavailable."""
    _node()
    with contextlib.suppress(Unavailable):
        return grafana_schema(cache)
    if shutil.which("npm") is None:
        raise Unavailable("no npm in PATH: it fetches Grafana's schema and TypeScript")
    folder = cache / "npm" / f"{GRAFANA_SCHEMA_VERSION}-{TYPESCRIPT_VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        # Without a manifest of its own npm would install into the first folder above that has one.
        (made / "package.json").write_text('{"private": true, "type": "module"}\n')
        _run(
            ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--save-exact",
             f"@grafana/schema@{GRAFANA_SCHEMA_VERSION}", f"typescript@{TYPESCRIPT_VERSION}"],
            made,
        )  # fmt: skip
        _publish(made, folder)
    return folder


def _node() -> None:
    path = shutil.which("node")
    if path is None:
        raise Unavailable(f"no node in PATH: TypeScript needs Node {NODE_NEEDED} or newer")
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.match(r"v(\d+)", said)
    if match is None or int(match[1]) < NODE_NEEDED:
        found = match[1] if match else "unknown"
        raise Unavailable(f"{path} is Node {found}: TypeScript needs {NODE_NEEDED} or newer")


def _publish(made: Path, final: Path) -> None:
    # A rename, so that two sessions that fetch at once never see half a folder.
    try:
        made.rename(final)
    except OSError:
        if not final.is_dir():
            raise


def _run(command: Sequence[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False,
            timeout=_FETCH_TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{command[0]} took longer than {_FETCH_TIMEOUT_S} s") from error
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines() or ["no output"]
        raise Unavailable(f"{command[0]} failed ({done.returncode}): {lines[-1].strip()}")


def fetch_slurm() -> Path:
    """Debian's Slurm, unpacked. Raises Unavailable."""
    from deploy import slurm_cluster  # which needs this module's cache

    return slurm_cluster.fetch_slurm()


PARTS: Final[dict[str, Callable[[], Path]]] = {
    "kafka": fetch_kafka,
    "prometheus": fetch_prometheus,
    "grafana-schema": fetch_grafana_schema,
    "slurm": fetch_slurm,
}


def main(arguments: Sequence[str]) -> int:
    """Fetch the named parts, saying where each lies or why it is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.fetch", description="Fetch real parts for tests into .cache/."
    )
    parser.add_argument("part", choices=[*PARTS, "all"])
    part = parser.parse_args(arguments).part
    for name in PARTS if part == "all" else [part]:
        try:
            print(f"{name}: {PARTS[name]()}")
        except Unavailable as error:
            print(f"{name}: missing: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
