"""Checks of shape: functions on the wrong kind of metric, series that vanish, labels folded away."""

from collections.abc import Iterator
from typing import Final

from alerts.lint_metrics import KNOWN
from alerts.lint_rule import (
    Fault,
    Seen,
    comparisons,
    dialect_of,
    host_of,
    known,
    one_host,
    peeled,
    plain,
    selectors,
)
from alerts.promql import Aggregate, Binary, Call, Labels, Node, Selector, walk

_NOT_A_HOST: Final = frozenset(
    ("gpu", "device", "minor_number", "pci_bus_id", "modelName", "model_name", "GPU_I_ID",
     "GPU_I_PROFILE", "name", "job", "cluster", "region", "site", "datacenter", "env")
)  # fmt: skip
_BOARD: Final = frozenset(("power_w", "power_instant_w", "module_power_w", "energy_counter_j"))
"""Of a whole board; dcgm-exporter repeats them for every MIG instance."""
_ONCE: Final = frozenset(
    ("xid", "xid_events", "ecc_uncorrected_volatile", "ecc_uncorrected_aggregate",
     "remap_uncorrected_rows", "remap_corrected_rows")
)  # fmt: skip
"""Things of which one is enough to act on: they do not go on until somebody looks."""
_XID_WINDOW_S: Final = 300


# -- kinds of metrics ---------------------------------------------------------------------------


def gauge_as_counter(seen: Seen) -> Iterator[Fault]:
    """Rate or increase of something that goes up and down."""
    instead = {"rate": "deriv", "irate": "deriv", "increase": "delta"}
    for node, selector in _called(seen.tree, *instead):
        found = KNOWN[selector.name]
        if found.kind == "speed":
            yield Fault(
                f"`{node.name}` of {selector.name}, which is already per second",
                "it is a gauge in bytes per second (MB/s for NVLINK_BANDWIDTH_TOTAL) despite its "
                "name, and every decrease counts as a counter's reset",
                seen.put(node, f"avg_over_time({seen.text(selector)})"),
            )
        elif found.kind in ("gauge", "mask", "window"):
            yield Fault(
                f"`{node.name}` of {selector.name}, which is no counter",
                "every decrease counts as a counter's reset, and adds the whole value",
                seen.put(node, f"{instead[node.name]}({seen.text(selector)})"),
            )


def counter_as_gauge(seen: Seen) -> Iterator[Fault]:
    """Delta or deriv of a counter."""
    instead = {"delta": "increase", "idelta": "increase", "deriv": "rate"}
    for node, selector in _called(seen.tree, *instead):
        if KNOWN[selector.name].kind == "counter":
            yield Fault(
                f"`{node.name}` of {selector.name}, which is a counter",
                "it is for gauges, and goes far below zero when the counter starts again",
                seen.put(node, f"{instead[node.name]}({seen.text(selector)})"),
            )


def _called(tree: Node, *names: str) -> Iterator[tuple[Call, Selector]]:
    """Calls of these functions on a range of a metric that is known."""
    for node in walk(tree):
        if isinstance(node, Call) and node.name in names and node.arguments:
            first = node.arguments[0]
            if isinstance(first, Selector) and known(first) and first.range_s is not None:
                yield node, first


def vanishing_baseline(seen: Seen) -> Iterator[Fault]:
    """Errors over days from a counter that starts again with the driver."""
    for _, selector in _called(seen.tree, "increase", "rate"):
        if "ecc" in KNOWN[selector.name].topic and (selector.range_s or 0) >= 86_400:
            lasting = selector.name.replace("_VOL_", "_AGG_")
            if lasting != selector.name:
                yield Fault(
                    f"{selector.name} over a day or more",
                    "volatile counters start again when the driver is loaded, and errors between "
                    "the last scrape and that are lost; the aggregate ones are the board's own",
                    seen.put(selector, seen.renamed(selector, lasting)),
                )
    for node in walk(seen.tree):
        if not isinstance(node, Binary) or node.operator != "-":
            continue
        now, then = node.left, node.right
        found = known(now)
        if not isinstance(now, Selector) or not isinstance(then, Selector) or found is None:
            continue
        if now.name == then.name and found.resets and then.offset_s and not now.offset_s:
            yield Fault(
                f"{now.name} minus itself {plain(then.offset_s)} s earlier",
                "the counter starts again when the driver is loaded, and the difference goes below "
                "zero; increase() knows of resets",
                seen.put(node, f"increase({seen.instant(now, now.name)}[{plain(then.offset_s)}s])"),
            )


# -- series that vanish -------------------------------------------------------------------------


def _fewer(seen: Seen, selector: Selector) -> str:
    """Nodes that have fewer GPUs than a quarter of an hour ago, those with none left included."""
    by, metric = f"count by ({host_of(seen.tree)})", seen.instant(selector, selector.name)
    before = f"{by} ({metric} offset 15m)"
    return f"(({by} ({metric}) or 0 * {before}) < {before})"


def absent_gpu(seen: Seen) -> Iterator[Fault]:
    """absent() of series of which there is one per GPU."""
    for node in walk(seen.tree):
        if not isinstance(node, Call) or node.name not in ("absent", "absent_over_time"):
            continue
        first = node.arguments[0] if node.arguments else None
        if isinstance(first, Selector) and known(first) and not one_host(first):
            yield Fault(
                f"`{node.name}` of {first.name}, of which every GPU has a series",
                "it fires when the last GPU of all is gone, and says nothing while some are lost; "
                "compare with what was there (and alert on `up == 0` for the exporter)",
                seen.put(node, _fewer(seen, first)),
            )


def count_zero(seen: Seen) -> Iterator[Fault]:
    """A count that is expected to become zero."""
    for one in comparisons(seen.tree):
        zero = (one.operator in ("==", "<=") and one.value == 0) or (
            one.operator == "<" and 0 < one.value <= 1
        )
        counted = one.of.arguments[-1] if isinstance(one.of, Aggregate) else None
        if not zero or not isinstance(one.of, Aggregate) or one.of.name != "count":
            continue
        if isinstance(counted, Selector) and known(counted):
            yield Fault(
                f"`{seen.text(one.of)}` never is zero",
                "a count of no series is no series, so the alert cannot fire; "
                "compare with what was there",
                seen.put(one.whole, _fewer(seen, counted)),
            )


# -- labels -------------------------------------------------------------------------------------


def mig_twice(seen: Seen) -> Iterator[Fault]:
    """A board's power summed over its MIG instances."""
    for node in walk(seen.tree):
        if not isinstance(node, Aggregate) or node.name not in ("sum", "avg"):
            continue
        inner = node.arguments[-1]
        rate = inner.arguments[0] if isinstance(inner, Call) and inner.arguments else inner
        found = known(rate)
        if not isinstance(rate, Selector) or found is None or found.dialect == "smi":
            continue
        filtered = any(m.label in ("GPU_I_ID", "GPU_I_PROFILE") for m in rate.matchers)
        if found.topic not in _BOARD or filtered or (node.name == "avg" and not seen.has_mig):
            continue
        kept = node.grouping.names if node.grouping and node.grouping.word == "by" else ()
        if node.grouping and node.grouping.word == "without":
            continue
        labels = ", ".join(dict.fromkeys((*kept, host_of(seen.tree), "gpu")))
        yield Fault(
            f"`{node.name}` of {found.name} over MIG instances",
            "each instance of a partitioned GPU repeats the power of the whole board, which is "
            "counted up to seven times; take each board once",
            seen.put(inner, f"max by ({labels}) ({seen.text(inner)})"),
        )


def folded_gpu(seen: Seen) -> Iterator[Fault]:
    """GPUs of one number on every node taken for one GPU."""
    for node in walk(seen.tree):
        labels: Labels | None = None
        if isinstance(node, Aggregate) and node.grouping and node.grouping.word == "by":
            labels = node.grouping
        elif isinstance(node, Binary) and node.matching and node.matching.word == "on":
            labels = node.matching
        if labels is None or not {"gpu", "device", "minor_number"} & set(labels.names):
            continue
        series = selectors(node)
        if not set(labels.names) <= _NOT_A_HOST or not series or any(map(one_host, series)):
            continue
        names = ", ".join((host_of(seen.tree), *labels.names))
        yield Fault(
            f"`{seen.rule.expr[labels.start : labels.end]}` without the node",
            "gpu is a number within a node: GPU 0 of every node falls into one",
            seen.swap(labels.start, labels.end, f"{labels.word} ({names})"),
        )


def folded_site(seen: Seen) -> Iterator[Fault]:
    """One alert for all GPUs, that names none."""
    for one in comparisons(seen.tree):
        node = one.of
        if not isinstance(node, Aggregate) or node.name not in ("max", "min", "avg"):
            continue
        metric, around = peeled(node)
        found = known(metric) if metric else None
        if metric is None or found is None or len(around) != 1 or not seen.rule.alerts:
            continue
        averaged = node.name == "avg" and found.topic not in ("temp_gpu_c", "temp_mem_c")
        if averaged or one_host(metric) or (node.grouping and node.grouping.names):
            continue
        if node.grouping and node.grouping.word == "without":
            continue
        best = "max" if node.name == "avg" else node.name
        inner = seen.text(node.arguments[-1])
        labels = f"{host_of(seen.tree)}, gpu" if found.dialect != "smi" else "instance, uuid"
        yield Fault(
            f"`{node.name}` over all GPUs in one alert",
            "the alert has no labels left: nobody learns which GPU of which node, and a second one "
            "adds nothing",
            seen.put(node, f"{best} by ({labels}) ({inner})"),
        )


def hostname_case(seen: Seen) -> Iterator[Fault]:
    """The label Hostname where dcgm-exporter writes hostname."""
    if dialect_of(seen.tree) != "new":
        return
    for node in walk(seen.tree):
        labels = None
        if isinstance(node, Aggregate):
            labels = node.grouping
        elif isinstance(node, Binary):
            labels = node.matching
        if labels and "Hostname" in labels.names:
            names = ("hostname" if name == "Hostname" else name for name in labels.names)
            yield Fault(
                "the label Hostname beside names of dcgm-exporter 4.9",
                "from mid-2026 the label is written hostname: Hostname is empty on every series",
                seen.swap(labels.start, labels.end, f"{labels.word} ({', '.join(names)})"),
            )


# -- time ---------------------------------------------------------------------------------------


def for_too_long(seen: Seen) -> Iterator[Fault]:
    """`for` longer than one event is visible."""
    if not seen.rule.alerts or not seen.rule.for_s:
        return
    for one in comparisons(seen.tree):
        lives_s = _lives_s(one.of, one.operator, one.value)
        if lives_s is not None and lives_s <= seen.rule.for_s:
            yield Fault(
                f"`for` of {plain(seen.rule.for_s)} s, but one event is visible for "
                f"{plain(lives_s)} s",
                "a single event is gone before the alert fires; one is enough here, and "
                "`keep_firing_for` holds the alert",
                "for: 0s",
                at_for=True,
            )


def _lives_s(node: Node, operator: str, value: float) -> float | None:
    """How long one event keeps a comparison true; None where it is no comparison of that sort."""
    if operator in (">", ">=", "!=") and value in (0, 1):
        if isinstance(node, Aggregate):
            node = node.arguments[-1]
        for call, selector in _called(node, "increase", "rate", "changes", "delta"):
            if call is node and KNOWN[selector.name].topic in _ONCE:
                return selector.range_s
        found = known(node)
        return _XID_WINDOW_S if found and found.kind == "window" else None
    if operator in ("<", "<=") and isinstance(node, Binary) and node.operator == "-":
        stamped = isinstance(node.right, Selector) and node.right.name.startswith(
            "nvidia_smi_xid_last_timestamp"
        )
        clock = isinstance(node.left, Call) and node.left.name == "time"
        return value if stamped and clock else None
    return None
