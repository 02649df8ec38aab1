"""A rack is lost, and a real Alertmanager with our configuration tells once: whole, and in time."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from alerts import evaluator as evaluating
from alerts import notify
from alerts.rule import Rule
from alerts.run import Running
from deploy.fetch import CACHE, prometheus_programs
from pipeline.clock import SystemClock
from pipeline.errors import Reject, Retry, Unavailable
from pipeline.settings import Alerts, Settings
from pipeline.store import Store
from tests.alerts.faults import SILENT, break_, fill
from tests.alerts.receiver import Receiver, receiver
from tests.deploy.files import DEPLOY
from tests.real.conftest import require_real

pytestmark = pytest.mark.real

CONFIG = DEPLOY / "compose/alertmanager.yml"
TEMPLATES = Path("/usr/share/prometheus/alertmanager/default.tmpl")
"""Debian's program reads this very file, also when it was only unpacked."""
IN_TIME_S = 15.0
RACK = [f"r2-n{n}" for n in range(1, 10)]


class Alertmanager:
    """A process that can be stopped and started again over the same folder."""

    def __init__(self, folder: Path, config: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._folder, self._config = folder, config
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Raises Unavailable where it cannot run."""
        program = prometheus_programs() / "prometheus-alertmanager"
        command = [
            str(program), f"--config.file={self._config}", f"--storage.path={self._folder}",
            f"--web.listen-address=127.0.0.1:{self._port}", "--cluster.listen-address=",
        ]  # fmt: skip
        if not TEMPLATES.exists():
            command = [*_with_templates(), *command]
        log = (self._folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        if not until(self._answers, 20):
            self.stop()
            said = (self._folder / "log").read_text().splitlines()
            raise Unavailable(said[-1] if said else "it does not answer")

    def _answers(self) -> bool:
        try:
            notify.post(f"{self.url}/api/v2/alerts", [])
        except (Retry, Reject):
            return False
        return True

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None


def _with_templates() -> list[str]:
    """Runs a command where the unpacked package's files lie at their places, for it alone."""
    if shutil.which("unshare") is None:
        raise Unavailable(f"no {TEMPLATES}, and no unshare to show it one")
    script = 'mount --bind "$0" /usr/share && exec "$@"'
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", script,
            str(CACHE / "debian/usr/share")]  # fmt: skip


def until(true: Callable[[], object], seconds: float) -> bool:
    """Whether it becomes true in so many seconds."""
    end_s = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture
def pager() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


@pytest.fixture
def alertmanager(tmp_path: Path, pager: Receiver) -> Iterator[Alertmanager]:
    """With the shipped configuration, whose receivers have an address, and a shorter interval."""
    config = yaml.safe_load(CONFIG.read_text())
    for one in config["receivers"]:
        if one["name"] in ("on-call", "tickets"):
            one["webhook_configs"] = [{"url": f"{pager.url}/{one['name']}"}]
    for route in config["route"]["routes"]:
        route["group_interval"] = "3s"
    folder = tmp_path / "alertmanager"
    folder.mkdir()
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    made = Alertmanager(folder, folder / "config.yml")
    require_real("Alertmanager", made.start)
    yield made
    made.stop()


def told(pager: Receiver) -> list[tuple[str, list[dict[str, Any]]]]:
    return [(post["status"], post["alerts"]) for post in list(pager.posts)]


def evaluator(store: Store, alertmanager: Alertmanager, *rules: Rule) -> Running:
    alerts = Alerts(alertmanagers=(alertmanager.url,), interval_s=1)
    made = Running(Settings(alerts=alerts), store, rules or (SILENT,), SystemClock())
    made.start()
    return made


def test_our_configuration_is_valid() -> None:
    amtool = require_real("amtool", prometheus_programs) / "amtool"
    subprocess.run([amtool, "check-config", CONFIG], check=True, capture_output=True)


@pytest.mark.slow
def test_a_lost_rack_is_one_page_that_survives_restarts_and_is_resolved(
    store: Store, alertmanager: Alertmanager, pager: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluating, "RESEND_MS", 5000)  # a minute, cut short
    fill(store, SystemClock().now_ms())
    running = evaluator(store, alertmanager)
    try:
        begun_s = time.monotonic()
        break_(store, RACK)
        assert until(lambda: pager.posts, IN_TIME_S)
        assert time.monotonic() - begun_s < IN_TIME_S
        ((status, (page,)),) = told(pager)
        assert status == "firing"
        assert page["labels"]["rack"] == "r2"
        assert page["labels"]["alertname"] == "Incident"
        assert page["annotations"]["summary"].startswith(
            "rack r2: 72 of 72 GPUs, 0.050 MW lost, tenants lab-a, lab-b; first NodeSilent r2 r2-n"
        )
        running.stop()
        alertmanager.stop()
        alertmanager.start()
        running = evaluator(store, alertmanager)
        assert until(lambda: running.evaluator.totals.rounds >= 3, 20)
        # Alertmanager has forgotten the alert, and is told again within the minute.
        assert until(lambda: _known(alertmanager), 20)
        time.sleep(5)
        assert len(pager.posts) == 1
        store.command("TRUNCATE TABLE faults")
        assert until(lambda: len(pager.posts) > 1, 30)
        time.sleep(4)
        assert [status for status, _ in told(pager)] == ["firing", "resolved"]
        assert told(pager)[1][1][0]["labels"] == page["labels"]
    finally:
        running.stop()


def _known(alertmanager: Alertmanager) -> list[Any]:
    with urllib.request.urlopen(f"{alertmanager.url}/api/v2/alerts") as answer:
        return list(json.load(answer))


@pytest.mark.slow
def test_an_incident_that_grows_is_told_under_its_first_name(
    store: Store, alertmanager: Alertmanager, pager: Receiver
) -> None:
    fill(store, SystemClock().now_ms())
    running = evaluator(store, alertmanager)
    try:
        break_(store, RACK)
        assert until(lambda: pager.posts, IN_TIME_S)
        break_(store, [f"{rack}-n{n}" for rack in ("r1", "r3") for n in range(1, 10)])
        assert until(lambda: len(pager.posts) > 1, 30)
        time.sleep(6)
        groups = {post["groupLabels"]["incident"] for post in pager.posts}
        assert groups == {"s rack r2"}
        last = pager.posts[-1]
        assert last["status"] == "firing"
        assert [one["labels"]["scope"] for one in last["alerts"]] == ["hall"]
        # The rack's page never ends before its hall's does: nobody is told that it is well.
        assert all(one["status"] == "firing" for post in pager.posts for one in post["alerts"])
        store.command("TRUNCATE TABLE faults")
        assert until(lambda: pager.posts[-1]["status"] == "resolved", 30)
    finally:
        running.stop()


def test_a_bad_alert_in_a_batch_is_refused_alone(alertmanager: Alertmanager) -> None:
    good = {"labels": {"alertname": "Good"}}
    bad = {"labels": {"alertname": "Bad", "no-name": "x"}}
    with pytest.raises(Reject):
        notify.post(f"{alertmanager.url}/api/v2/alerts", [good, bad])
    assert [one["labels"]["alertname"] for one in _known(alertmanager)] == ["Good"]
    notifier = notify.Notifier([alertmanager.url], "")
    try:
        assert notifier.send({1: good, 2: bad | {"annotations": {}, "startsAt": "", "endsAt": ""}},
                             set(), 1) == {1}  # fmt: skip
    finally:
        notifier.close()
