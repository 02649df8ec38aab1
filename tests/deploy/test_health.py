"""The health check of containers, against the server that agents and pipelines answer with."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import health
from pipeline.web import Page, Web


@pytest.fixture
def web() -> Iterator[Web]:
    """A service that asks for a token."""
    pages = {
        "/healthz": lambda: Page(200, "text/plain", b"ok\n"),
        "/stuck": lambda: Page(503, "text/plain", b"stuck for 31 s\n"),
    }
    served = Web("127.0.0.1:0", pages, token="s3cret")
    yield served
    served.close()


def test_a_healthy_service_is_zero(web: Web, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    assert health.main([f"http://127.0.0.1:{web.port}/healthz", str(tmp_path / "token")]) == 0


def test_a_wrong_token_is_not_healthy(
    web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text("other")
    assert health.main([f"http://127.0.0.1:{web.port}/healthz", str(tmp_path / "token")]) == 1
    assert "401" in capsys.readouterr().err


def test_a_stuck_service_says_why(
    web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text("s3cret")
    assert health.main([f"http://127.0.0.1:{web.port}/stuck", str(tmp_path / "token")]) == 1
    assert "503: stuck for 31 s" in capsys.readouterr().err


def test_nobody_there_or_no_token_file_is_not_healthy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/healthz"
        assert health.main([url]) == 1
        assert health.main([url, str(tmp_path / "missing")]) == 1
    assert "missing" in capsys.readouterr().err


def test_a_wrong_call_is_two() -> None:
    assert health.main([]) == 2
