"""`megawatch bench soak`: a real broker, pipeline and fleet, for seconds in place of an hour."""

from pathlib import Path

import pytest

from pipeline.bench.soak import soak
from tests.real.conftest import require_real

pytestmark = pytest.mark.real


def test_a_short_soak_finds_every_row_once(tmp_path: Path) -> None:
    """What the fleet says it sent is what the store is asked for; figures are those of a process."""
    found = require_real("Apache Kafka", lambda: soak(tmp_path, nodes=100, seconds=5))
    assert found["gpus"] == 800
    assert found["rows"] == 800 * 5
    assert (found["rows_lost"], found["rows_duplicated"]) == (0, 0)
    assert found["energy_conserved"] is True
    assert 4 <= float(str(found["freshness_p50_s"])) <= float(str(found["freshness_max_s"]))
    assert int(str(found["rss_mb_max"])) > 100
