"""GPUs behind an existing dcgm-exporter: its page scraped beside the tick, in either dialect.

The exporter looks at the GPUs every 30 s unless told otherwise, whatever the pace of the scrapes.
Between two looks a GPU's values are held and say so. Energy and the other counters come as what
they grew between two looks; that is paid out over a stretch of the same length, so that no row
holds a lump of half a minute: exact in sum, late by at most one look. A GPU whose values have not
changed for HELD_MAX_MS is not read at all: its exporter has frozen.

XIDs come from a gauge that keeps the last one: the same XID twice in a row is seen once. The
node's kernel log tells them all.
"""

import http.client
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from agents import dcgm_page, prometheus_text
from agents.continuity import GAP_PERIODS, Power, Trace, advance, flags, row_ms, trapezoid
from agents.dcgm_page import COUNTED, Device, Page
from agents.gathered import ABSENT, GpuRow, fits, reading
from agents.source import Reading
from pipeline.catalog import FAST_BY_NAME
from pipeline.clock import Clock, SystemClock
from pipeline.errors import Refuse, Reject, Retry, Unavailable
from pipeline.records import (
    ENERGY_COUNTER,
    ENERGY_NONE,
    ENERGY_TRAPEZOID,
    FLAG_HELD,
    Event,
    Gpu,
    Inventory,
    Record,
)
from pipeline.settings import Site
from pipeline.wire import LAYOUT

PAGE_MAX_BYTES: Final = 16 << 20
HELD_MAX_MS: Final = 60_000
STALE_SCRAPES: Final = 3
MAX_RECORDS: Final = 10_000
SOURCE: Final = "dcgm"

_UNITS: Final = (1,) * len(COUNTED)


def fetch(url: str, timeout_s: float) -> bytes:
    """The page at an http or https address. Raises Retry; never takes longer than 2 x timeout_s."""
    deadline_s = time.perf_counter() + timeout_s
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:  # noqa: S310 - checked
            parts: list[bytes] = []
            size = 0
            while part := answer.read1(1 << 16):
                parts.append(part)
                size += len(part)
                if size > PAGE_MAX_BYTES:
                    raise Retry(f"{url}: the page is larger than {PAGE_MAX_BYTES >> 20} MiB")
                if time.perf_counter() > deadline_s:
                    raise Retry(f"{url}: the page did not come within {timeout_s:g} s")
            return b"".join(parts)
    except urllib.error.HTTPError as error:
        error.close()
        raise Retry(f"{url}: answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Retry(f"{url}: {getattr(error, 'reason', error) or type(error).__name__}") from error


@dataclass(slots=True)
class Account:
    """What a counter grew and is still to be paid out, in stored units, evenly until a time."""

    owed: int = 0
    paid_ms: int = 0
    until_ms: int = 0

    def earn(self, grown: int, from_ms: int, over_ms: int) -> None:
        """Owe more, all of it payable over the `over_ms` from `from_ms` on."""
        self.owed += grown
        self.paid_ms, self.until_ms = from_ms, from_ms + over_ms

    def pay(self, tick_ms: int, dt_ms: int) -> int | None:
        """The share of the dt_ms before the tick, None after the end; missed time is forgone."""
        begin_ms = tick_ms - dt_ms
        if begin_ms >= self.until_ms:
            self.owed = 0
            return None
        if begin_ms > self.paid_ms:
            self.owed -= self._share(self.paid_ms, begin_ms)
            self.paid_ms = begin_ms
        share = self._share(begin_ms, tick_ms)
        self.owed -= share
        self.paid_ms = tick_ms
        return share

    def _share(self, begin_ms: int, end_ms: int) -> int:
        left_ms = self.until_ms - begin_ms
        return self.owed if end_ms >= self.until_ms else self.owed * (end_ms - begin_ms) // left_ms


@dataclass(slots=True)
class _Seen:
    """What is remembered of a GPU from tick to tick."""

    device: Device
    row_ms: int | None = None
    changed_ms: int = 0
    trace: Trace | None = None
    accounts: dict[str, Account] = field(default_factory=dict)
    power: Power | None = None
    xid: int | None = None


class DcgmSource:
    """A dcgm-exporter behind agents.source.Source.

    The node is called as configured, else as the page says, else as this machine. With `background` a thread scrapes every
    `scrape_ms`, and a tick only looks at the newest page; without it each tick scrapes. Raises
    Refuse on an address that is not http or https.
    """

    name = SOURCE

    def __init__(
        self,
        url: str,
        site: Site,
        *,
        period_ms: int = 1000,
        scrape_ms: int | None = None,
        timeout_s: float = 5.0,
        background: bool = True,
        clock: Clock | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Refuse(f"[agent] dcgm_url={url!r} is no http:// or https:// address")
        self._url, self._site = url, site
        self._period_ms, self._scrape_ms = period_ms, scrape_ms or period_ms
        self._timeout_s, self._clock = timeout_s, clock or SystemClock()
        self._from_ms = self._clock.now_ms()
        self._epoch = self._from_ms // 1000
        self._page: Page | None = None
        self._page_s = 0.0
        self._problem = "no page yet"
        self.scrapes = self.scrapes_failed = self.records_dropped = 0
        self._seen: dict[str, _Seen] = {}
        self._gpus: dict[str, Gpu] = {}
        self._known: tuple[object, ...] = ()
        self._inventory: tuple[Inventory, ...] = ()
        self._instances: tuple[tuple[int, int, int], ...] = ()
        self._generation = 0
        self._records: deque[Record] = deque()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._background = background

    def scrape(self) -> None:
        """Fetch and read a page; a failure is counted and leaves the last page."""
        self.scrapes += 1
        try:
            samples = prometheus_text.parse(fetch(self._url, self._timeout_s))
            page = dcgm_page.read(samples, self._page is not None and self._page.percent)
        except (Retry, Reject) as error:
            self.scrapes_failed += 1
            self._problem = str(error)
            return
        self._page_s = self._clock.monotonic_s()
        self._page = page

    def _loop(self) -> None:
        while not self._clock.wait(self._stop, self._scrape_ms / 1000):
            self.scrape()

    @property
    def generation(self) -> int:
        """Grows when GPUs or MIG instances come or go, or a counter begins again."""
        return self._generation

    @property
    def boot_epoch(self) -> int:
        """Always 0: an exporter does not say when its node booted."""
        return 0

    @property
    def driver_epoch(self) -> int:
        """Changes with every reset, and every start of the agent, behind which one may hide."""
        return self._epoch & 0xFFFFFFFF

    def inventory(self) -> tuple[Inventory, ...]:
        """The node and its GPUs, as the labels say; none before the first page was read.

        A GPU that the page does not name any more is still expected.
        """
        return self._inventory

    def records(self) -> list[Record]:
        """XIDs since the last call."""
        found = list(self._records)
        self._records.clear()
        return found

    def close(self) -> None:
        """Stop scraping; idempotent."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2 * self._timeout_s)
            self._thread = None

    def read(self, tick_ms: int) -> Reading:
        """The newest page at a tick. Raises Unavailable when the exporter has gone silent."""
        self._begin()
        page = self._page
        if self._stop.is_set() or page is None:
            raise Unavailable(f"dcgm-exporter: {self._problem}")
        age_s = self._clock.monotonic_s() - self._page_s
        if age_s > STALE_SCRAPES * self._scrape_ms / 1000:
            raise Unavailable(f"dcgm-exporter: its last page is old: {self._problem}")
        self._learn(page)
        gpus = self._inventory[0].gpus
        rows = [self._row(gpu.uuid, page.devices.get(gpu.uuid), tick_ms) for gpu in gpus]
        self._learn(page)  # a counter may have begun again
        slices = [
            page.devices[gpus[at].uuid].instances[gi] if rows[at].dt_ms else {}
            for at, gi, _ in self._instances
        ]
        return reading(rows, self._instances, slices)

    def _begin(self) -> None:
        """The first tick scrapes for itself, so that it has a page; then a thread does."""
        if self._stop.is_set() or self._thread is not None:
            return
        self.scrape()
        if self._background:
            self._thread = threading.Thread(target=self._loop, name="dcgm-scrape", daemon=True)
            self._thread.start()

    def _learn(self, page: Page) -> None:
        """Take over the page's GPUs and instances."""
        self._gpus |= {uuid: device.gpu for uuid, device in page.devices.items()}
        gpus = tuple(sorted(self._gpus.values(), key=lambda gpu: (gpu.index, gpu.uuid)))
        instances = tuple(
            (at, gi, 0)
            for at, gpu in enumerate(gpus)
            if gpu.uuid in page.devices
            for gi in sorted(page.devices[gpu.uuid].instances)
        )
        node = self._site.node or page.host or self._site.hostname
        known = (node, gpus, instances, page.driver_version, self._epoch)
        if known == self._known:
            return
        if self._known and (node, gpus) != self._known[:2]:
            self._from_ms = self._clock.now_ms()
        self._known, self._instances = known, instances
        self._generation += 1
        site = self._site
        self._inventory = (
            Inventory(
                site=site.name, node=node, from_ms=self._from_ms, hall=site.hall, row=site.row,
                rack=site.rack, pdu=site.pdu, gpus=gpus, layout=LAYOUT.describe(), source=SOURCE,
                driver_version=page.driver_version,
            ),
        )  # fmt: skip

    def _row(self, uuid: str, device: Device | None, tick_ms: int) -> GpuRow:
        if device is None:
            self._seen.pop(uuid, None)
            return ABSENT
        seen = self._seen.get(uuid)
        dt_ms = row_ms(seen.row_ms if seen else None, tick_ms, self._period_ms)
        if seen is None:
            seen = self._seen[uuid] = _Seen(device, changed_ms=tick_ms, xid=device.xid)
            held = False
        else:
            held = seen.device.same_as(device)
            if not held:
                self._look(seen, device, tick_ms, dt_ms)
            elif tick_ms - seen.changed_ms > HELD_MAX_MS:
                return ABSENT
        self._note_xid(uuid, seen, device, tick_ms)
        seen.row_ms = tick_ms
        metrics = dict(device.values)
        for name, account in seen.accounts.items():
            paid = account.pay(tick_ms, dt_ms)
            if paid is not None and fits(FAST_BY_NAME[name].storage, paid):
                metrics[name] = paid
        kind = ENERGY_COUNTER
        if "energy_j" not in device.counters and "power_w" in metrics:
            kind = ENERGY_TRAPEZOID
            seen.power, millijoules = trapezoid(
                seen.power, tick_ms, metrics["power_w"], self._period_ms
            )
            if millijoules is not None and millijoules >= 0:
                metrics["energy_j"] = millijoules
        energy = metrics.get("energy_j")
        bits = flags(metrics.get("power_w"), energy, dt_ms) | (FLAG_HELD if held else 0)
        return GpuRow(dt_ms, bits, ENERGY_NONE if energy is None else kind, metrics)

    def _look(self, seen: _Seen, device: Device, tick_ms: int, dt_ms: int) -> None:
        """The exporter has looked again: what its counters grew is owed from now on.

        Only from the second look on: when it looked before the first page is not known.
        """
        raw = [device.counters.get(name) for name in COUNTED]
        before = seen.trace
        fell = seen.device.counters.get("energy_j", 0) > device.counters.get("energy_j", 1 << 64)
        self._epoch += fell
        seen.trace, step = advance(before, tick_ms, 0, raw, _UNITS, HELD_MAX_MS // GAP_PERIODS)
        for name, grown in zip(COUNTED, step.deltas, strict=True):
            if grown is None or before is None:
                seen.accounts.pop(name, None)
            else:
                account = seen.accounts.setdefault(name, Account())
                account.earn(grown, tick_ms - dt_ms, max(dt_ms, tick_ms - before.tick_ms))
        seen.device, seen.changed_ms = device, tick_ms

    def _note_xid(self, uuid: str, seen: _Seen, device: Device, tick_ms: int) -> None:
        if device.xid is None or device.xid == seen.xid:
            return
        if device.xid and seen.xid is not None:
            if len(self._records) == MAX_RECORDS:
                self._records.popleft()
                self.records_dropped += 1
            where = self._inventory[0]
            self._records.append(
                Event(site=where.site, node=where.node, ts_ms=tick_ms, kind="xid", uuid=uuid,
                      code=device.xid, detail="dcgm-exporter")
            )  # fmt: skip
        seen.xid = device.xid
