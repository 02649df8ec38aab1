"""The Grafana client over real sockets: every answer that somebody between may give has one meaning."""

import socket
import time

import pytest

from pipeline import grafana as client
from pipeline.clock import ManualClock
from pipeline.errors import Refuse, Retry
from pipeline.grafana import Grafana
from tests.dashboards import fake_grafana
from tests.dashboards.fake_grafana import TOKEN, reset, says, slow


@pytest.fixture
def fake(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with fake_grafana.running() as server:
        yield server


@pytest.fixture
def clock():
    return ManualClock(0)


@pytest.fixture
def grafana(fake, clock):
    return Grafana(fake.url, TOKEN, clock)


def refusal(work, *parts: str) -> str:
    with pytest.raises(Refuse) as error:
        work()
    text = str(error.value)
    assert "\n" not in text
    assert TOKEN not in text
    for part in parts:
        assert part in text
    return text


def test_health_needs_no_right(grafana):
    assert grafana.health() == ("13.2.3", "ok")


def test_what_is_not_there_is_none(grafana):
    assert grafana.dashboard("megawatch-x") is None
    assert grafana.data_source("megawatch-x") is None
    assert grafana.folder_permissions("megawatch-x") == []
    assert not grafana.has_plugin("nobody-nothing-datasource")
    assert grafana.source_permissions("megawatch-x") is None


def test_every_request_has_the_token_and_none_has_it_in_its_address(fake, grafana):
    grafana.folders()
    assert fake.asked[-1].headers["Authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in fake.asked[-1].path


def test_folders_are_read_page_by_page(fake, grafana, monkeypatch):
    monkeypatch.setattr(client, "PAGE_FOLDERS", 3)
    for number in range(7):
        fake.folders[f"f{number}"] = {"uid": f"f{number}", "title": f"Folder {number}"}
    assert [f["uid"] for f in grafana.folders()] == [f"f{n}" for n in range(7)]
    assert len(fake.asked) == 3


def test_more_folders_than_pages_is_an_end(fake, grafana, monkeypatch):
    monkeypatch.setattr(client, "PAGE_FOLDERS", 1)
    monkeypatch.setattr(client, "MAX_PAGES", 2)
    fake.folders = {f"f{n}": {"uid": f"f{n}", "title": f"{n}"} for n in range(5)}
    refusal(grafana.folders, "more than 2 folders")


def test_a_wrong_token_is_said_with_the_address(fake):
    other = Grafana(fake.url, "glsa_wrong", ManualClock(0))
    refusal(other.folders, f"the token of Grafana at {fake.url} is refused", "expired")
    assert len(fake.asked) == 1


def test_a_missing_right_is_named_as_grafana_names_it(fake, grafana):
    fake.rights_missing = {"folders:create"}
    refusal(lambda: grafana.create_folder("u", "T"), "is refused to create folder 'T'",
            "it has not the right folders:create")  # fmt: skip
    assert len(fake.asked) == 1


def test_a_missing_right_is_named_by_us_where_grafana_does_not(fake, grafana):
    fake.faults = [("GET", says(403, b'{"message":"Access denied"}'))]
    refusal(grafana.data_sources, "it has not the right datasources:read")


def test_an_unknown_team_or_user_is_an_error_and_odd_names_are_found(grafana):
    assert grafana.team("lab a & co") == ("teams", 7)
    assert grafana.user("ada") == ("users", 3)
    refusal(lambda: grafana.team("lab"), "no team 'lab'")
    refusal(lambda: grafana.user("ad"), "no user 'ad'")


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_a_busy_grafana_is_asked_again_a_bounded_number_of_times(fake, grafana, clock, status):
    fake.faults = [("GET", says(status, b"null"))] * 10
    with pytest.raises(Retry, match=fake.url):
        grafana.folders()
    assert len(fake.asked) == client.TRIES
    assert clock.monotonic_s() == 1 + 2 + 4


def test_it_succeeds_when_grafana_comes_back(fake, grafana):
    fake.faults = [("GET", says(503, b"<html><h1>503</h1></html>"))] * (client.TRIES - 1)
    assert grafana.folders() == []


def test_the_wait_that_grafana_asks_for_is_waited_within_a_bound(fake, grafana, clock):
    fake.faults = [
        ("GET", says(429, b"{}", ("Retry-After", "9"))),
        ("GET", says(429, b"{}", ("Retry-After", "86400"))),
    ]
    grafana.folders()
    assert clock.monotonic_s() == 9 + client.MAX_WAIT_S


def test_a_write_that_may_have_arrived_is_not_sent_again(fake, grafana):
    for fault in (reset, says(502, b"")):
        fake.faults = [("POST", fault)]
        with pytest.raises(Retry):
            grafana.create_folder("u", "T")
    assert len(fake.asked) == 2


def test_a_write_that_was_turned_away_unread_is_sent_again(fake, grafana):
    fake.faults = [("POST", says(429, b"null"))]
    grafana.create_folder("u", "T")
    assert list(fake.folders) == ["u"]


def test_a_read_whose_connection_is_reset_is_repeated(fake, grafana):
    fake.faults = [("GET", reset), ("GET", reset)]
    assert grafana.folders() == []


def test_a_silent_grafana_is_given_up(fake, clock, monkeypatch):
    monkeypatch.setattr(client, "TIMEOUT_S", 0.1)
    fake.faults = [("GET", slow(0.5))] * client.TRIES
    began = time.monotonic()
    with pytest.raises(Retry, match=r"no answer within 0\.1 s"):
        Grafana(fake.url, TOKEN, clock).folders()
    assert time.monotonic() - began < 5


def test_a_slow_answer_within_the_time_is_an_answer(fake, clock, monkeypatch):
    def late(handler, asked):
        time.sleep(0.3)
        return says(200, b"[]")(handler, asked)

    fake.faults = [("GET", late)]
    assert Grafana(fake.url, TOKEN, clock).folders() == []


def test_nobody_listening_is_retry_and_also_a_write_is_repeated(clock):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(Retry, match=r"[Rr]efused") as error:
        Grafana(f"http://127.0.0.1:{port}", TOKEN, clock).create_folder("u", "T")
    assert "0x" not in str(error.value)
    assert clock.monotonic_s() == 7


def test_an_answer_of_a_web_page_is_not_grafana(fake, grafana):
    fake.faults = [("GET", says(200, b"<html>Sign in to\nthe portal</html>"))]
    refusal(grafana.health, "answers, but not as Grafana", "Sign in to the portal")


def test_a_redirect_is_not_followed(fake, grafana):
    """A POST would come out as a GET at the other end, and look like success."""
    fake.faults = [("POST", says(302, b"", ("Location", f"{fake.url}/api/folders")))]
    refusal(lambda: grafana.create_folder("u", "T"), "sends us on to")
    assert len(fake.asked) == 1


@pytest.mark.parametrize("body", [b"null", b"[]", b'"no"', b"17", b"", b"<p>no</p>", b"{}",
                                  b'{"message":null}'])  # fmt: skip
@pytest.mark.parametrize("status", [400, 404, 409, 422])
def test_a_refusal_is_a_sentence_whatever_its_body(fake, grafana, status, body):
    fake.faults = [("POST", says(status, body))]
    refusal(lambda: grafana.create_folder("u", "T"), f"refuses to create folder 'T': {status}")


@pytest.mark.parametrize("body", [b"null", b"[]", b"", b"{}"])
def test_a_token_is_refused_whatever_the_body(fake, grafana, body):
    fake.faults = [("GET", says(401, body))]
    refusal(grafana.folders, "the token of Grafana")


def test_a_change_in_between_is_said(fake, grafana):
    fake.faults = [("POST", says(412, b'{"message":"x","status":"version-mismatch"}'))]
    body = {"dashboard": {"uid": "megawatch-a", "title": "A"}}
    refusal(lambda: grafana.save_dashboard(body), "somebody changed it meanwhile")


@pytest.mark.parametrize("status", [200, 400, 401, 403, 409, 412])
def test_a_proxy_that_echoes_the_request_does_not_betray_the_token(fake, grafana, status):
    fake.faults = [("POST", says(status, f"Authorization: Bearer {TOKEN}".encode()))]
    refusal(lambda: grafana.create_folder("u", "T"))


def test_a_server_error_that_echoes_the_request_does_not_betray_the_token(fake, grafana):
    fake.faults = [("POST", says(500, f"Bearer {TOKEN}".encode()))]
    with pytest.raises(Retry) as error:
        grafana.create_folder("u", "T")
    assert TOKEN not in str(error.value)


def test_not_even_a_part_of_the_token_is_betrayed_where_a_text_is_cut(fake, grafana):
    fake.faults = [("POST", says(400, b"x" * 190 + TOKEN.encode()))]
    assert "glsa_" not in refusal(lambda: grafana.create_folder("u", "T"))


def test_a_raw_call_publishes_rules_that_stay_editable_and_an_empty_answer_is_success(
    fake, grafana
):
    path = "/v1/provisioning/folder/megawatch/rule-groups/power"
    group = {"title": "power", "folderUid": "megawatch", "interval": 60, "rules": [{"uid": "r"}]}
    assert grafana.call("PUT", path, group, headers={"X-Disable-Provenance": "true"}) == group
    assert fake.provenance == {("megawatch", "power"): ""}
    assert grafana.call("PUT", path, group) == group
    assert fake.provenance == {("megawatch", "power"): "api"}
    assert grafana.call("DELETE", path) is None
    assert fake.rule_groups == {}
    fake.faults = [("PUT", says(202, b""))]
    assert grafana.call("PUT", path, group) is None


def test_a_raw_call_repeats_what_is_safe_to_repeat_only(fake, grafana):
    path = "/v1/provisioning/folder/megawatch/rule-groups/power"
    fake.faults = [("PUT", reset)]
    grafana.call("PUT", path, {"interval": 60, "rules": [{}]})
    fake.faults = [("POST", reset)]
    with pytest.raises(Retry):
        grafana.call("POST", "/folders", {"uid": "u", "title": "T"})
    assert "u" not in fake.folders


def test_a_path_under_which_grafana_is_served_is_kept(fake, clock):
    fake.faults = [("GET /monitor/grafana/api/folders", says(200, b"[]"))]
    assert Grafana(f"{fake.url}/monitor/grafana/", TOKEN, clock).folders() == []
    assert not fake.faults


@pytest.mark.parametrize("url", ["", "grafana:3000", "ftp://g", "http://", "http://g:port",
                                 "http://g/?orgId=2", "http://g/#x", "http://[::1"])  # fmt: skip
def test_an_address_that_is_none_is_refused(url):
    refusal(lambda: Grafana(url, TOKEN, ManualClock()), "is not the address of a Grafana")


def test_a_password_in_the_address_is_refused_and_not_repeated():
    text = refusal(lambda: Grafana("http://admin:hunter2@g", TOKEN, ManualClock()), "only a token")
    assert "hunter2" not in text


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "gl\xe4sa"])
def test_what_can_be_no_token_is_refused(token):
    refusal(lambda: Grafana("http://g", token, ManualClock()), "token")


def test_a_missing_authority_is_refused():
    refusal(lambda: Grafana("https://g", TOKEN, ManualClock(), ca_file="/nowhere.pem"), "ca_file")
