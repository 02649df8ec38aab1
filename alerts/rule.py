"""A rule as data: one question, one threshold, one reason to tell somebody.

Rules that read the same rows share a signal, so that a round of evaluation makes one pass over each
table (compile.py). From rules come Prometheus files, Grafana-managed rules and what the evaluator
runs; tests hold rules, runbooks and dashboards in step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

Named = Literal["sites", "tenants", "workloads", "gpus"]
"""Views that give ids of labels their names."""
FALLEN: Final = 2
"""Of what is watched at a large site, so many come and go all the time."""
PLACE: Final = ("hall", "row", "rack", "pdu", "node")
"""Labels that say where a thing stands, from the largest to the smallest."""
Severity = Literal["page", "ticket", "info"]
Scope = Literal["site", "hall", "row", "rack", "pdu", "node", "gpu", "tenant", "job", "service"]
Clock = Literal["data", "wall"]
NoData = Literal["ok", "alerting", "keep"]
"""Without any row to judge: nothing is wrong, that itself is wrong, or the state stays as it was."""

PAGES: Final = {
    "site": "megawatch-site", "tenant": "megawatch-tenant", "fleet": "megawatch-fleet",
    "node": "megawatch-node", "job": "megawatch-workload", "service": "megawatch-pipeline",
}  # fmt: skip
"""Dashboards that a rule may point to, by what they are about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Signal:
    """Rows that rules judge: one pass over a table, a row per combination of labels.

    `$at` in the SQL stands for the time of evaluation, a DateTime('UTC') on a whole second: behind
    the watermark where `clock` is "data", else now. `$caps` stands for the configured caps, a table
    of (scope String, name String, watts Float64); `$site_caps` for those of sites, an array of
    (id of the site or 0 for any, watts).
    labels: label name to SQL over `source`; a label is text, and is stable while an alert lasts. Its
        name hides a column of that name from the rules' values.
    names: which labels are ids, and where their names are: only what breaks a rule is named, since
        that costs a large site more than most rules do. An id that has no name is shown in hex.
        Those of "gpus" are UUIDs, and come with where the GPU stands: the labels of PLACE.
    source: what follows FROM, up to WHERE; the values of rules are aggregates over its groups.
    present: SQL aggregate over `source`; 0 means that there is nothing to judge (no data).
    every_s: how often it is worth its cost; a multiple of the evaluator's interval.
    watch: SQL of a number, cheaply had, that falls when something breaks at once. While it has not
        fallen by more than FALLEN since the signal was asked, and none of its pages is pending or
        fires, the signal is only asked every calm_s.
    """

    name: str
    clock: Clock
    labels: Mapping[str, str]
    source: str
    present: str
    names: Mapping[str, Named] = field(default_factory=dict)
    with_: str = ""
    every_s: int = 15
    watch: str = ""
    calm_s: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Fires when `value` of a group is above (or below) `threshold` for `for_s`.

    value: SQL aggregate over the signal's source, in `unit`; NULL is not judged. threshold may be
    overridden by name in the configuration. folds: whether it may be a symptom of something larger,
    told with it; not what is a danger by itself, such as a cap. summary: one line for the person
    woken, with {value} and {labels' names}. promql: the same on the agents' or pipelines' own metrics, where the
    symptom lives there; a rule has SQL (signal and value), PromQL, or both.
    """

    name: str
    question: str
    severity: Severity
    scope: Scope
    summary: str
    signal: Signal | None = None
    value: str = ""
    unit: str = ""
    above: float | None = None
    below: float | None = None
    for_s: int = 0
    keep_firing_s: int = 0
    no_data: NoData = "ok"
    page: str = "site"
    tenant_visible: bool = False
    promql: str = ""
    folds: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def runbook(self) -> str:
        """The file under alerts/runbooks/."""
        return f"{self.name}.md"

    @property
    def threshold(self) -> float:
        """What the value is compared with; exactly one of above and below is given."""
        limit = self.above if self.above is not None else self.below
        assert limit is not None, f"{self.name} has no threshold"
        return limit

    @property
    def operator(self) -> Literal[">", "<"]:
        """How the value is compared."""
        return ">" if self.above is not None else "<"


def by_signal(rules: Sequence[Rule]) -> dict[str, list[Rule]]:
    """Rules that have SQL, by the name of their signal."""
    out: dict[str, list[Rule]] = {}
    for rule in rules:
        if rule.signal is not None:
            out.setdefault(rule.signal.name, []).append(rule)
    return out
