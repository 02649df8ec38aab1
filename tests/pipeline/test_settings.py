"""One file, overridden by the environment; what is wrong is said with the nearest right name."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Refuse
from pipeline.settings import Settings, load, secret


@pytest.fixture
def written(tmp_path):
    def write(text: str | bytes):
        path = tmp_path / "megawatch.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refusal(path, env=None) -> str:
    with pytest.raises(Refuse) as error:
        load(path, env or {})
    text = str(error.value)
    assert "\n" not in text
    return text


def test_without_anything_the_defaults_hold():
    """No file is needed."""
    assert load(None, {}) == Settings()


def test_a_file_sets_what_it_names(written):
    """The rest stays as it was."""
    path = written('[site]\nname = "north"\ntimezone = "Europe/Berlin"\n[agent]\nperiod_ms = 500\n')
    found = load(path, {})
    assert (found.site.name, found.site.timezone, found.agent.period_ms) == (
        "north", "Europe/Berlin", 500,
    )  # fmt: skip
    assert found.kafka == Settings().kafka


def test_the_environment_overrides_the_file_with_the_right_type(written):
    """Numbers, text and fractions alike."""
    path = written("[agent]\nperiod_ms = 500\n")
    found = load(
        path,
        {
            "MEGAWATCH_AGENT__PERIOD_MS": "250", "MEGAWATCH_SITE__NAME": "12",
            "MEGAWATCH_CLICKHOUSE__MAX_DISK_GIB": "2.5", "PATH": "/bin", "MEGAWATCH_TEST_DATA": "x",
        },
    )  # fmt: skip
    assert found.agent.period_ms == 250
    assert found.site.name == "12"
    assert found.clickhouse.max_disk_gib == 2.5


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[agnet]\nperiod_ms = 1\n", ("[agnet]", "did you mean 'agent'?")),
        ("[agent]\nperiod = 1\n", ("[agent] period", "did you mean 'period_ms'?")),
        ("[agent]\nzzz = 1\n", ("[agent] zzz", "valid are ")),
        ("period_ms = 5\n", ("period_ms",)),
        ("agent = 5\n", ("'agent' stands outside a section, write [agent]",)),
        ('[agent]\nperiod_ms = "fast"\n', ("Expected `int`", "period_ms")),
        ("[agent]\nperiod_ms = 50\n", ("period_ms=50", "at least 100 ms")),
        ("[agent]\nflush_ms = 500\n", ("flush_ms=500", "at least one period")),
        ('[site]\ntimezone = "Mars/Olympus"\n', ("no such time zone 'Mars/Olympus'",)),
        ('[site]\ntimezone = "../etc/passwd"\n', ("no such time zone",)),
        ("[agent\n", ("is not TOML",)),
        (b"\xff\xfe", ("is not TOML",)),
    ],
)
def test_a_mistake_is_one_sentence_with_the_file_the_name_and_the_fix(written, text, parts):
    """Never a traceback, never a guess."""
    found = refusal(written(text))
    assert all(part in found for part in parts), found


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("MEGAWATCH_AGENT__PERIOD", "5", "did you mean 'period_ms'?"),
        ("MEGAWATCH_KAFKAA__GROUP", "5", "did you mean 'kafka'?"),
        ("MEGAWATCH_AGENT__PERIOD_MS", "fast", "MEGAWATCH_AGENT__PERIOD_MS='fast'"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(name, value, part):
    """So that it is found among forty others."""
    found = refusal(None, {name: value})
    assert name in found
    assert part in found


def test_a_bad_secret_in_the_environment_is_not_printed():
    """A password is text, and so cannot be wrong."""
    assert load(None, {"MEGAWATCH_KAFKA__SASL_PASSWORD": "5"}).kafka.sasl_password == "5"


def test_a_file_that_is_not_there_is_a_sentence(tmp_path):
    """With the path and the reason."""
    found = refusal(tmp_path / "nowhere.toml")
    assert "nowhere.toml: No such file" in found
    assert "cannot read configuration" in refusal(tmp_path)


def test_secrets_come_from_the_environment_or_their_file(tmp_path):
    """The file without its line's end; the value wins; a missing file is a sentence."""
    path = tmp_path / "password"
    path.write_text("s3cret\n")
    assert secret("", str(path)) == "s3cret"
    assert secret("given", str(path)) == "given"
    assert secret("", "") == ""
    with pytest.raises(Refuse, match=r"cannot read the secret in .*: No such file"):
        secret("", str(tmp_path / "none"))


@given(st.dictionaries(st.text("AGENT_SIKF", max_size=12), st.text(max_size=5), max_size=3))
def test_any_environment_is_understood_or_refused(names):
    """Never another exception."""
    with contextlib.suppress(Refuse):
        load(None, {f"MEGAWATCH_{name}": value for name, value in names.items()})


def test_lists_and_tables_from_the_environment_are_json():
    """And what is no JSON is said by name."""
    env = {
        "MEGAWATCH_ALERTS__ALERTMANAGERS": '["http://a:9093"]',
        "MEGAWATCH_ALERTS__CAP_KW": '{"site": 1500}',
    }
    found = load(None, env).alerts
    assert (found.alertmanagers, found.cap_kw) == (("http://a:9093",), {"site": 1500.0})
    with pytest.raises(Refuse, match=r"MEGAWATCH_ALERTS__CAP_KW='\{'"):
        load(None, {"MEGAWATCH_ALERTS__CAP_KW": "{"})
