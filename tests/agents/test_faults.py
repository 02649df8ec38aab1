"""Faults as they are written on the command line, and when they happen."""

import numpy as np
import pytest

from agents.fleet import Fault
from agents.simulator import SimulatorSource
from agents.sources import Wanted, open_source
from pipeline.errors import Refuse
from pipeline.settings import Settings
from pipeline.wire import LAYOUT

START_MS = 1_763_640_000_000
DT_AT = [column.name for column in LAYOUT.fast].index("dt_ms")


def test_a_planned_fault_waits_for_its_time() -> None:
    """As on the command line: after so many seconds, for so many more."""
    source = SimulatorSource(4, random_faults=False, start_ms=START_MS)
    source.inject(Fault.parse("gpu_lost:1@5+4"))
    readings = (source.read(START_MS + 1000 * second) for second in range(1, 12))
    gone = [bool(np.asarray(reading.fast[DT_AT])[1] == 0) for reading in readings]
    assert gone == [False] * 4 + [True] * 4 + [False] * 3


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("rack_loss", Fault("rack_loss")),
        ("rack_loss:16@60+300", Fault("rack_loss", 16, for_s=300, after_s=60)),
        ("xid=79:12@30", Fault("xid", 12, 79, after_s=30)),
        ("hot_gpu+10", Fault("hot_gpu", for_s=10)),
    ],
)
def test_a_fault_can_be_written(text: str, fault: Fault) -> None:
    assert Fault.parse(text) == fault


@pytest.mark.parametrize(
    "text",
    ["", "fire", "ecc=3", "xid=", "xid:-1", "xid@x", "xid+1@2", "xid 1", "xid@1e9", "xid:\u0663"],
)
def test_a_fault_that_is_none_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(Refuse, match=r"--fault .* is not KIND.*rack_loss@60\+300"):
        Fault.parse(text)


def test_faults_happen_to_simulated_sites_only() -> None:
    with pytest.raises(Refuse, match="not to dcgm: add --simulate"):
        open_source(Wanted("dcgm", faults=("ecc",)), Settings())
