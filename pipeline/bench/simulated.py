"""A simulated site through the real pipeline, in simulated time: for tests and benchmarks of rules.

The simulator's readings go by the wire into a spool and from there through ingest, rollups and
ledger into an embedded store, as in `megawatch up`, but as fast as the machine can. Simulated time
always begins on the same day, so that each run is the same, and one far ahead: some queries compare
with the machine's clock, and what lies in the past would be no live pipeline to them.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

import msgspec

from agents.agent import open_spool
from agents.fleet import TENANTS
from agents.sampler import Sampler
from agents.simulator import SimulatorSource
from pipeline.clock import ManualClock, SystemClock
from pipeline.errors import Retry
from pipeline.ledger import contract_store, contracts
from pipeline.service import GRACE_MS, Service
from pipeline.settings import ClickHouse, Settings
from pipeline.spool_log import SpoolLog
from pipeline.store import open_store

BEGIN_MS: Final = round(datetime(2090, 1, 2, tzinfo=UTC).timestamp() * 1000)
DRAIN_S: Final = 60.0
_LEASE: Final = """
[[contract]]
tenant = "{tenant}"
select = [{{node = [{nodes}]}}]
from = {since}
timezone = "UTC"
contracted_gpus = {gpus}
contracted_kw = {kw}
price_per_gpu_hour = "2.00"
price_per_kwh = "0.10"
currency = "EUR"
availability_pct = 99.9
"""


class _Beside(SystemClock):
    """The simulation's time of day, and real waiting."""

    def __init__(self, shown: ManualClock) -> None:
        self._shown = shown

    def now_ms(self) -> int:
        return self._shown.ms


class Simulated:
    """A site of `nodes` nodes of eight GPUs over a store in `folder`; close it at the end.

    `clock` shows simulated time. Faults come only by `source.inject`. A larger `period_ms` is a
    coarser simulation. Raises Refuse.
    """

    def __init__(
        self,
        folder: Path,
        nodes: int,
        *,
        period_ms: int = 1000,
        flush_ms: int = 4000,
        seed: int = 1,
    ) -> None:
        default = Settings()
        self.settings = msgspec.structs.replace(
            default,
            clickhouse=ClickHouse(data=str(folder)),
            agent=msgspec.structs.replace(
                default.agent, spool=str(folder / "spool"), period_ms=period_ms, flush_ms=flush_ms
            ),
        )
        self.clock = ManualClock(BEGIN_MS)
        self.source = SimulatorSource(
            nodes, site=default.site.name, seed=seed, period_ms=period_ms, random_faults=False,
            start_ms=self.clock.ms,
        )  # fmt: skip
        self.store = open_store(self.settings.clickhouse)
        beside = _Beside(self.clock)
        self._spool = open_spool(self.settings, self.clock)
        self._sampler = Sampler(self.source, self._spool, self.settings, self.clock)
        self.service = Service(
            self.settings, self.store, lambda who: SpoolLog(self._spool, who, beside), beside
        )
        self._filled_ms = self._closed_ms = self.clock.ms

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def lease(self, nodes: int, kw_per_gpu: float = 0.8) -> None:
        """A contract of the first tenant over the site's first nodes, since yesterday."""
        since = datetime.fromtimestamp(self.clock.ms // 1000 - 86_400, UTC).isoformat()
        leased = self.source.inventory()[:nodes]
        gpus = sum(len(node.gpus) for node in leased)
        select = ", ".join(f'"{node.node}"' for node in leased)
        text = _LEASE.format(
            tenant=TENANTS[0], nodes=select, since=since, gpus=gpus, kw=gpus * kw_per_gpu
        )
        site = self.settings.site.name
        contract_store.write(self.store, contracts.parse(text, "lease", site, self.clock.ms))

    def go(self, until_ms: int, every_ms: int = 15_000) -> None:
        """Let time pass; what was sampled is ingested at multiples of `every_ms`, at most 15 s late.

        The pipeline itself ingests every second or two: that is what delays are measured with.
        """
        while self.clock.ms < until_ms:
            next_ms = min(until_ms, (self.clock.ms // every_ms + 1) * every_ms)
            while self.clock.ms < next_ms:
                self.clock.ms = min(next_ms, max(self._sampler.step(), self.clock.ms + 1))
            self._sampler.step()
            self._ingest()

    def _ingest(self) -> None:
        """What the service's two threads do, once."""
        if not self.service.ingest.drain(DRAIN_S):
            raise Retry(f"the pipeline did not keep up within {DRAIN_S:.0f} s")
        pipeline, ledger = self.settings.pipeline, self.settings.ledger
        if self.clock.ms - self._filled_ms >= pipeline.fill_minutes_every_s * 1000:
            self._filled_ms = self.clock.ms
            self.service.minutes.fill(self.clock.ms, self.service.ingest.watermark_ms - GRACE_MS)
        if self.clock.ms - self._closed_ms >= ledger.close_every_s * 1000:
            self._closed_ms = self.clock.ms
            self.service.keeper.step(self.clock.ms)

    def close(self) -> None:
        """Release the store."""
        # Its threads were never started: what they do is done in `go`.
        self.service.close()
        self._spool.close()
        self.store.close()
