"""Nothing is lost or made between the rows and the rollups: in integers, for any rows."""

import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.minutes import fill_statement
from pipeline.records import BAD_POWER
from pipeline.settings import ClickHouse
from pipeline.store import Store
from tests.messages import T0_MS

HOUR_MS = 3_600_000
BEGIN_MS = T0_MS // HOUR_MS * HOUR_MS
NULL_POWER, NULL_ENERGY = -(2**31), 2**32 - 1


@pytest.fixture(scope="module")
def store(tmp_path_factory, migrated):
    folder = tmp_path_factory.mktemp("conserved") / "data"
    shutil.copytree(migrated, folder, symlinks=True)
    opened = Store(ClickHouse(data=str(folder)))
    yield opened
    opened.close()


row = st.tuples(
    st.integers(0, 2),  # gpu
    st.one_of(st.integers(0, 200).map(lambda s: s * 1000), st.integers(0, 200_000)),  # ts
    st.one_of(st.sampled_from((1, 285, 1000, 2000, 15_000)), st.integers(1, 40_000)),  # dt
    st.one_of(st.just(NULL_POWER), st.integers(-500, 14_000)),
    st.one_of(st.just(NULL_ENERGY), st.integers(0, 2**32 - 2)),
    st.sampled_from((0, 0, 0, 1, 2, 4, 8, 16, 7)),  # flags
    st.integers(0, 2),  # tenant
)
sites = iter(range(5000, 10**9))


def insert(store, site, some):
    columns = [np.array(c) for c in zip(*some, strict=True)]
    gpu, ts, dt, power, energy, flags, tenant = columns
    block = {
        "gpu": (site * 10 + gpu).astype(np.uint64), "ts": (BEGIN_MS + ts).astype(np.int64),
        "node": np.zeros(len(gpu), np.uint64), "site": np.full(len(gpu), site, np.uint64),
        "tenant": tenant.astype(np.uint64), "workload": np.zeros(len(gpu), np.uint64),
        "stream": np.ones(len(gpu), np.uint64), "seq": np.arange(len(gpu), dtype=np.uint64),
        "dt_ms": dt.astype(np.uint32), "flags": flags.astype(np.uint16),
        "energy_kind": np.ones(len(gpu), np.uint8),
        "ingested_at": np.full(len(gpu), BEGIN_MS // 1000, np.uint32),
        "power_w": power.astype(np.int32), "energy_j": energy.astype(np.uint32),
    }  # fmt: skip
    store.insert("gpu_samples", block)


def sums(store: Store, table: str, site: int, by: str) -> dict[int, tuple[int, ...]]:
    """(mJ, 0.1 W x ms, ms with good power, ms, ms held, rows) by tenant or GPU."""
    found = store.query(
        f"SELECT {by}, toInt64(sum(energy_j) * 1000), toInt64(sum(power_w_ms) * 10),"
        f" sum(power_w_dt_ms), sum(dt_ms), sum(held_ms), sum(rows) FROM {table}"
        f" WHERE site = {{site:UInt64}} GROUP BY {by}",
        {"site": site},
    ).rows
    return {row[0]: tuple(int(v) for v in row[1:]) for row in found}


def extremes(store: Store, table: str, site: int, by: str) -> dict[int, tuple[int | None, ...]]:
    """(least, most power in 0.1 W) by tenant or GPU."""
    found = store.query(
        f"SELECT {by}, toInt64(min(power_w_min) * 10), toInt64(max(power_w_max) * 10),"
        f" countIf(isNull(power_w_min) != isNull(power_w_max)), count(temp_gpu_c_min),"
        f" max(temp_gpu_c_max) FROM {table} WHERE site = {{site:UInt64}} GROUP BY {by}",
        {"site": site},
    ).rows
    # No row reports a temperature: neither has any minute one.
    assert all(row[3:] == (0, 0, None) for row in found)
    return {row[0]: tuple(row[1:3]) for row in found}


def expected_extremes(some, by: int, site: int) -> dict[int, tuple[int | None, ...]]:
    out: dict[int, list[int]] = {}
    for r in some:
        _, _, _, power, _, flags, _ = r
        of = out.setdefault(site * 10 + r[0] if by == 0 else r[by], [])
        if power != NULL_POWER and not flags & BAD_POWER:
            of.append(power)
    return {key: (min(of), max(of)) if of else (None, None) for key, of in out.items()}


def expected(some, by: int, site: int) -> dict[int, tuple[int, ...]]:
    out: dict[int, list[int]] = {}
    for r in some:
        _, _, dt, power, energy, flags, _ = r
        good = power != NULL_POWER and not flags & BAD_POWER
        one = (
            0 if energy == NULL_ENERGY else energy, power * dt if good else 0, dt if good else 0,
            dt, dt if flags & 1 else 0, 1,
        )  # fmt: skip
        total = out.setdefault(site * 10 + r[0] if by == 0 else r[by], [0] * len(one))
        for i, value in enumerate(one):
            total[i] += value
    return {key: tuple(total) for key, total in out.items()}


@given(st.lists(row, min_size=1, max_size=30, unique_by=lambda r: (r[0], r[1])))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_rollup_has_the_sums_of_the_rows(store, some):
    """Energy, power x time, time, held time, number and extremes, exactly, per tenant and GPU."""
    site = next(sites)
    insert(store, site, some)
    by_tenant = expected(some, 6, site)
    assert sums(store, "power_seconds", site, "tenant") == by_tenant
    assert sums(store, "tenant_minutes", site, "tenant") == by_tenant
    assert extremes(store, "tenant_minutes", site, "tenant") == expected_extremes(some, 6, site)
    store.command(fill_statement(BEGIN_MS, BEGIN_MS + HOUR_MS, 10 * site, 10 * site + 10, 1))
    assert sums(store, "gpu_minutes FINAL", site, "gpu") == expected(some, 0, site)
    assert extremes(store, "gpu_minutes FINAL", site, "gpu") == expected_extremes(some, 0, site)


@given(st.lists(row, min_size=1, max_size=12, unique_by=lambda r: (r[0], r[1])))
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_second_has_more_time_than_its_rows_overlap_it(store, some):
    """Power and time stand in the seconds that the row stands for, and in no other."""
    site = next(sites)
    insert(store, site, some)
    seconds: dict[int, int] = {}
    for _, ts, dt, *_ in some:
        stop = BEGIN_MS + ts + min(dt, 1000)
        for second in range((stop - dt) // 1000, (stop - 1) // 1000 + 1):
            part = min(stop, (second + 1) * 1000) - max(stop - dt, second * 1000)
            seconds[second] = seconds.get(second, 0) + part
    found = store.query(
        "SELECT toUnixTimestamp(ts), sum(dt_ms) FROM power_seconds WHERE site = {site:UInt64}"
        " GROUP BY ts",
        {"site": site},
    ).rows
    assert dict(found) == seconds


def test_the_widest_values_do_not_overflow(store):
    """A row of the longest dt with the largest energy and power that pass."""
    site = next(sites)
    some = [(0, i * 1000, 1_200_000, 99_999, 2**32 - 2, 0, 0) for i in range(50)]
    insert(store, site, some)
    assert sums(store, "power_seconds", site, "tenant") == expected(some, 6, site)
