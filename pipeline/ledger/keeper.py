"""Closes quarters by itself, behind the watermark: one thread's work, a step at a time."""

import logging
from dataclasses import dataclass, field
from typing import Final

from pipeline.ledger import close as closing
from pipeline.ledger.cells import QUARTER_MS
from pipeline.settings import Settings
from pipeline.store import Store

_log: Final = logging.getLogger("megawatch.ledger")

WIDE_EVERY_MS: Final = 3_600_000
WIDE_MS: Final = 48 * 3_600_000
"""So often, so far back: corrections and late rows. What is older, `megawatch ledger close` finds."""


@dataclass(slots=True)
class Keeper:
    """Looks at the quarters whose minutes were filled since the last look, now and then further."""

    store: Store
    settings: Settings
    closed: int = 0
    not_closed: int = 0
    _looked_ms: int = 0
    _wide_ms: int = 0
    _refused: dict[tuple[str, int], str] = field(default_factory=dict)

    def step(self, now_ms: int) -> None:
        """Close what is complete. Raises Retry when the store is away."""
        ledger = self.settings.ledger
        until_ms = closing.closable_until(self.store, ledger.grace_s * 1000)
        from_ms = self._since(now_ms, until_ms)
        for site in self._sites() if from_ms < until_ms else ():
            quarters = closing.open_quarters(self.store, site, from_ms, until_ms, untried=True)
            for outcome in closing.close(self.store, site, ledger.precedence, quarters, now_ms):
                self._count(site, outcome)
        self._looked_ms = now_ms

    def _since(self, now_ms: int, until_ms: int) -> int:
        """From where on something may have changed since the last look."""
        if now_ms - self._wide_ms >= WIDE_EVERY_MS:
            self._wide_ms = now_ms
            return max(0, until_ms - WIDE_MS) // QUARTER_MS * QUARTER_MS
        found = self.store.query(
            "SELECT toUnixTimestamp64Milli(min(from_ts)) FROM ingest_log WHERE kind = 'fill'"
            " AND at >= fromUnixTimestamp64Milli({since:Int64}, 'UTC') HAVING count() > 0",
            {"since": self._looked_ms - QUARTER_MS},
        ).rows
        # The quarter before, too: it may have waited for the watermark alone.
        return int(found[0][0]) // QUARTER_MS * QUARTER_MS - QUARTER_MS if found else until_ms

    def _sites(self) -> list[str]:
        return [row[0] for row in self.store.query("SELECT name FROM sites ORDER BY name").rows]

    def _count(self, site: str, outcome: closing.Outcome) -> None:
        key = (site, outcome.quarter_ms)
        if outcome.state == "closed":
            self.closed += 1
            self._refused.pop(key, None)
        elif self._refused.get(key) != outcome.reason:  # said once, tried again
            self.not_closed += 1
            self._refused[key] = outcome.reason
            _log.warning("quarter %s of %s: %s", outcome.quarter_ms, site, outcome.reason)
