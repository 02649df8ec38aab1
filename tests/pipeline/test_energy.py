"""dt, trapezoid and counters of recorded rows, by example."""

import numpy as np

from pipeline import energy


def of(times: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(len(times), np.int64), np.array(times, np.int64)


def test_the_period_is_the_median_distance() -> None:
    """A log at 3.5 Hz with a gap: rows stand for their distance, after the gap for a period."""
    gpu, ts = of([0, 280, 570, 860, 60_000, 60_290])
    rows = energy.rhythm(gpu, ts)
    assert rows.period_ms.tolist() == [290] * 6
    assert energy.row_ms(rows).tolist() == [290, 280, 290, 290, 290, 290]


def test_a_slow_exporter_stands_for_its_own_period() -> None:
    """Rows 15 s apart stand for 15 s, and one that came 16 s later for 16 s."""
    gpu, ts = of([0, 15_000, 30_000, 46_000])
    assert energy.row_ms(energy.rhythm(gpu, ts)).tolist() == [15_000, 15_000, 15_000, 16_000]


def test_a_gpu_alone_stands_for_a_second() -> None:
    """One row tells no period, nor do two a day apart."""
    gpu, ts = np.array([0, 1, 1]), np.array([0, 0, 86_400_000], np.int64)
    assert energy.row_ms(energy.rhythm(gpu, ts)).tolist() == [1000, 1000, 1000]


def test_no_rows_are_no_error() -> None:
    """An empty import has no rhythm."""
    gpu, ts = of([])
    rows = energy.rhythm(gpu, ts)
    assert len(energy.row_ms(rows)) == 0
    assert len(energy.trapezoid(gpu, ts, gpu, gpu.astype(np.bool_))) == 0
    assert len(energy.counted(gpu, ts, gpu, rows)) == 0
    assert len(energy.resets(gpu, gpu)) == 0


def test_zeros_count_and_ten_seconds_are_near() -> None:
    """100 W falling to 0 within 10 s is 500 J; 10.001 s later nothing is known."""
    gpu, ts = of([0, 10_000, 20_001])
    found = energy.trapezoid(gpu, ts, np.array([1000, 0, 1000]), np.ones(3, np.bool_))
    assert found.tolist() == [energy.UNKNOWN, 500_000, energy.UNKNOWN]


def test_a_reset_is_counted_per_gpu() -> None:
    """Two GPUs; the second falls twice; missing values between do not matter."""
    gpu = np.array([0, 0, 1, 1, 1, 1])
    counter = np.array([5, 6, 9, 1, -1, 0])
    assert energy.resets(gpu, counter).tolist() == [0, 0, 0, 1, 1, 2]
