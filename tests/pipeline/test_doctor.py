"""`megawatch doctor`: what is configured and cannot work well is named, with what to do."""

import json
from pathlib import Path

import msgspec
import pytest

from pipeline.doctor import examine
from pipeline.settings import Settings


def findings(settings: Settings, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, str]]:
    """By what was looked at."""
    examine(settings, as_json=True, probes={})
    return {found["what"]: found for found in json.loads(capsys.readouterr().out)}


@pytest.mark.parametrize(("flush_ms", "state"), [(1000, "ok"), (4000, "ok"), (10_000, "warn")])
def test_a_slow_pace_is_told(
    flush_ms: int, state: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Completeness and silence are reckoned with flushes every 4 s."""
    settings = Settings()
    agent = msgspec.structs.replace(settings.agent, spool=str(tmp_path), flush_ms=flush_ms)
    found = findings(msgspec.structs.replace(settings, agent=agent), capsys)["pace"]
    assert (found["state"], found["found"]) == (state, f"[agent] flush_ms={flush_ms}")
    assert ("at most 4000" in found["fix"]) == (state == "warn")


def test_a_spool_that_cannot_grow_to_its_bound_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both figures, and the key."""
    settings = Settings()
    agent = msgspec.structs.replace(settings.agent, spool=str(tmp_path), spool_max_mib=10**9)
    found = findings(msgspec.structs.replace(settings, agent=agent), capsys)["spool"]
    assert found["state"] == "warn"
    assert "the spool may grow to 1000000000" in found["found"]
    assert "[agent] spool_max_mib" in found["fix"]
