"""What is read of one GPU, and what is not asked again: ctypes against the fake, in this process."""

import ctypes
import math
import re
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy import fake_nvml
from pipeline.catalog import FAST, SLOW, Metric
from pipeline.errors import Unavailable

pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")

from agents import nvml
from agents.nvml_device import FIELDS, RETRY_S, Reader, getters, put
from agents.nvml_frame import NOT_REPORTED
from agents.nvml_gpm import GPM_METRICS, Activity

Driver = tuple[nvml.Library, Callable[..., None]]
"""The library, and how to steer it."""


@pytest.fixture(scope="module")
def shared_object(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    try:
        folder = fake_nvml.build(tmp_path_factory.mktemp("driver"))
    except Unavailable as error:
        pytest.skip(str(error))
    return ctypes.CDLL(str(folder / fake_nvml.SONAME))  # later loads find it by its soname


@pytest.fixture
def driver(
    shared_object: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Driver]:
    control = tmp_path / "control"
    monkeypatch.setenv("FAKE_NVML_CONTROL", str(control))

    def steer(**settings: object) -> None:
        fake_nvml.steer(control, {"gpus": 2, **settings})
        for _ in range(3):  # a look at most once a millisecond, and never at a stale file
            ctypes.CDLL(None).usleep(1500)

    steer()
    library = nvml.Library()
    yield library, steer
    library.shutdown()


def read(
    library: nvml.Library, reader: Reader, now_s: float = 0.0, *, mig: bool = False
) -> dict[str, int]:
    row = reader.read(library, library.device(0), now_s, mig=mig)
    return dict(zip(reader.columns, row, strict=True))


def test_every_metric_of_the_catalogue_has_an_origin() -> None:
    called = {metric for getter in getters() for metric in getter.values}
    origins = FIELDS.keys() | called | GPM_METRICS.keys() | {"energy_counter_j"}
    assert origins == {metric.name for metric in FAST + SLOW}


@pytest.mark.parametrize("metric", [m for m in FAST + SLOW if m.nvml.startswith("FI")])
def test_fields_are_those_that_the_catalogue_names(metric: Metric) -> None:
    if metric.name == "energy_counter_j":
        return
    numbers = [int(n) for n in re.findall(r"\b\d+\b", metric.nvml.partition("scope")[0])]
    assert [field for field, _ in FIELDS[metric.name]] == numbers


def test_what_is_not_supported_is_asked_again_after_a_while(driver: Driver) -> None:
    library, steer = driver
    reader = Reader(["power_instant_w", "temp_mem_c", "temp_margin_c", "util_gpu_pct"])
    steer(unsupported="186,nvmlDeviceGetMarginTemperature")
    first = read(library, reader)
    assert first["power_instant_w"] == first["temp_margin_c"] == NOT_REPORTED
    steer()
    calls = library.costs["nvmlDeviceGetMarginTemperature"][0]
    soon = read(library, reader, RETRY_S - 1)
    assert soon["power_instant_w"] == soon["temp_margin_c"] == NOT_REPORTED
    assert library.costs["nvmlDeviceGetMarginTemperature"][0] == calls
    late = read(library, reader, RETRY_S)
    assert late["power_instant_w"] > 300_000
    assert late["temp_margin_c"] == 37
    assert late["temp_mem_c"] == soon["temp_mem_c"] == 61


def test_forgetting_asks_at_once(driver: Driver) -> None:
    library, steer = driver
    reader = Reader(["temp_mem_c"])
    steer(unsupported="82")
    assert read(library, reader) == {"temp_mem_c": NOT_REPORTED}
    steer()
    reader.forget()
    assert read(library, reader) == {"temp_mem_c": 61}


def test_a_partitioned_gpu_has_no_utilisation_whatever_the_driver_says(driver: Driver) -> None:
    library, _ = driver
    row = read(library, Reader(["util_gpu_pct", "temp_gpu_c"]), mig=True)
    assert row == {"util_gpu_pct": NOT_REPORTED, "temp_gpu_c": 50}


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (15, nvml.GpuLost), (16, nvml.GpuLost), (28, nvml.GpuLost),
        (1, nvml.DriverLost), (9, nvml.DriverLost), (18, nvml.DriverLost),
    ],
)  # fmt: skip
def test_errors_are_sorted_by_what_they_concern(
    driver: Driver, code: int, error: type[nvml.Lost]
) -> None:
    library, steer = driver
    handle = library.device(0)
    steer(fail=code)
    with pytest.raises(error) as caught:
        Reader(["temp_gpu_c"]).read(library, handle, 0.0, mig=False)
    assert caught.value.code == code
    assert isinstance(caught.value, Unavailable)


@pytest.mark.parametrize("code", [2, 3, 4, 6, 7, 10, 19, 21, 23, 25, 999])
def test_every_other_error_concerns_this_value_alone(driver: Driver, code: int) -> None:
    library, steer = driver
    handle = library.device(0)
    steer(fail=code)
    row = Reader(["temp_gpu_c", "power_w"]).read(library, handle, 0.0, mig=False)
    assert list(row) == [NOT_REPORTED] * 2


def test_a_library_that_refuses_to_start_says_why(driver: Driver) -> None:
    _, steer = driver
    steer(init=17)
    with pytest.raises(nvml.DriverLost, match="operating system refuses"):
        nvml.Library()


def test_a_symbol_that_the_driver_lacks_is_just_not_supported(driver: Driver) -> None:
    library, _ = driver
    assert library.call("nvmlDeviceGetNextYearsMetric", library.device(0)) == 13
    assert "nvmlDeviceGetNextYearsMetric" not in library.costs


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, 1 << 63, (1 << 64) - 1])
def test_what_is_no_number_is_not_reported(value: float | None) -> None:
    row = array("q", [NOT_REPORTED])
    put(row, 0, value)
    assert list(row) == [NOT_REPORTED]


def test_fields_of_one_metric_add_up() -> None:
    row = array("q", [NOT_REPORTED])
    put(row, 0, 4, add=True)
    put(row, 0, 5, add=True)
    assert list(row) == [9]


def test_activity_needs_two_looks_not_too_far_apart(driver: Driver) -> None:
    library, _ = driver
    activity = Activity(library, library.device(1), 1000)
    columns = {"sm_active_pct": 0}

    def at(tick_ms: int) -> int:
        row = array("q", [NOT_REPORTED])
        ctypes.CDLL(None).usleep(50)
        activity.read(tick_ms, 0.0, row, columns)
        return row[0]

    assert [at(0), at(1000), at(2000), at(5000), at(6000)] == [
        NOT_REPORTED, 201, 201, NOT_REPORTED, 201,
    ]  # fmt: skip
    activity.close()
    assert at(7000) == NOT_REPORTED
