"""Checks of events, memory, bitmasks and names; and the table of all checks."""

import re
from collections.abc import Callable, Iterator
from typing import Final

from alerts.lint_metrics import KNOWN, name_of
from alerts.lint_rule import (
    Comparison,
    Fault,
    Seen,
    comparisons,
    constant,
    known,
    peeled,
    plain,
    selectors,
)
from alerts.lint_shapes import (
    absent_gpu,
    count_zero,
    counter_as_gauge,
    folded_gpu,
    folded_site,
    for_too_long,
    gauge_as_counter,
    hostname_case,
    mig_twice,
    vanishing_baseline,
)
from alerts.lint_units import threshold_unit, units_meet
from alerts.promql import Binary, Call, Node, Selector, walk

APPLICATION_XIDS: Final = ("13", "31", "43", "45")
"""Raised by the workload itself: a program's fault, or a consequence of another XID."""
PAGING: Final = frozenset(
    ("critical", "page", "pager", "emergency", "fatal", "disaster", "p0", "p1", "sev0", "sev1")
)
_XID_LABELS: Final = ("xid", "err_code")
_ALTERNATION: Final = re.compile(r"\^?\(?(?:\d{1,4}\|){0,99}\d{1,4}\)?\$?", re.ASCII)
_XID_EVENTS: Final = "DCGM_EXP_XID_ERRORS_COUNT"
_OTHERS: Final = f'xid!~"{"|".join(APPLICATION_XIDS)}"'
_HARM: Final = 32  # bits from software thermal slowdown up to the power brake, below 256


# -- XIDs ---------------------------------------------------------------------------------------


def _labelled(seen: Seen, selector: Selector, extra: str) -> str:
    """The XID event metric with a selector's labels and one more."""
    inner = seen.labels(selector)[1:-1]
    kept = ", ".join(part for part in (inner.strip().rstrip(","), extra) if part)
    return f"{_XID_EVENTS}{{{kept}}}" if kept else _XID_EVENTS


def xid_changes(seen: Seen) -> Iterator[Fault]:
    """A function over time of the gauge that keeps the last XID."""
    over_time = ("increase", "rate", "irate", "delta", "idelta", "changes", "deriv", "resets")
    for node in walk(seen.tree):
        if not isinstance(node, Call) or node.name not in over_time or not node.arguments:
            continue
        metric, _ = peeled(node.arguments[0])
        found = known(metric) if metric else None
        if metric is None or found is None or found.kind != "last":
            continue
        yield Fault(
            f"`{node.name}` of {metric.name}, a gauge that holds the number of the last XID",
            "the same XID twice changes nothing, and XID 79 after XID 13 looks like 66 errors; "
            f"{_XID_EVENTS} counts events of the last 5 minutes by XID "
            "(a line of the exporter's counter list)",
            seen.put(node, _labelled(seen, metric, "")),
        )


def xid_sticks(seen: Seen) -> Iterator[Fault]:
    """The last XID compared with a number: true until the next XID or a restart."""
    if not seen.rule.alerts or any(s.offset_s for s in selectors(seen.tree)):
        return
    for one in comparisons(seen.tree):
        metric, _ = peeled(one.of)
        found = known(metric) if metric else None
        if metric is None or found is None or found.kind != "last" or _is_calm(one):
            continue
        extra = f'xid="{plain(one.value)}"' if one.operator == "==" else _OTHERS
        if one.operator == "!=" and one.value != 0:
            continue
        yield Fault(
            f"{metric.name} {one.operator} {plain(one.value)} stays true once it is true",
            "the gauge keeps the last XID until another one or a restart of the exporter, so the "
            f"alert never clears; {_XID_EVENTS} forgets after 5 minutes "
            "(a line of the exporter's counter list)",
            seen.put(one.whole, f"{_labelled(seen, metric, extra)} > 0"),
        )


def _is_calm(one: Comparison) -> bool:
    return one.operator in ("==", "<=", "<") and one.value <= 0


def xid_application(seen: Seen) -> Iterator[Fault]:
    """Somebody paged for an XID that the workload raises itself."""
    if not seen.rule.alerts or seen.rule.severity.lower() not in PAGING:
        return
    for selector in selectors(seen.tree):
        found = known(selector)
        timestamps = selector.name == "nvidia_smi_xid_last_timestamp_seconds"
        if not timestamps and (found is None or found.topic not in ("xid_events", "xid")):
            continue
        paged = _paged(seen.tree, selector, last=found is not None and found.kind == "last")
        if paged:
            labels = ", ".join(
                [f'xid!~"{"|".join(APPLICATION_XIDS)}"']
                + [
                    f'{m.label}{m.operator}"{m.value}"'
                    for m in selector.matchers
                    if m.label not in _XID_LABELS and m.label != "__name__"
                ]
            )
            yield Fault(
                f"a {seen.rule.severity} alert for application XIDs ({', '.join(paged)})",
                "the workload raises these itself (or they follow another XID): nobody on call can "
                "mend them, and they hide the ones that matter",
                _without(
                    seen, selector, labels, is_last=found is not None and found.kind == "last"
                ),
            )


def _without(seen: Seen, selector: Selector, labels: str, *, is_last: bool) -> str:
    if is_last:
        return f"{_XID_EVENTS}{{{labels}}} > 0"
    return seen.swap(selector.name_start, selector.labels_end, f"{selector.name}{{{labels}}}")


def _paged(tree: Node, selector: Selector, *, last: bool) -> list[str]:
    """The application XIDs that a selector lets through; none where that cannot be told."""
    matchers = [m for m in selector.matchers if m.label in _XID_LABELS]
    if last and not matchers:  # the value is the XID
        equal = {
            plain(one.value)
            for one in comparisons(tree)
            if one.operator == "==" and peeled(one.of)[0] is selector
        }
        return [xid for xid in APPLICATION_XIDS if xid in equal]
    left = list(APPLICATION_XIDS)
    for matcher in matchers:
        if matcher.operator in ("=~", "!~") and not _ALTERNATION.fullmatch(matcher.value):
            return []
        listed = set(re.findall(r"\d+", matcher.value))
        left = [xid for xid in left if (xid in listed) == (matcher.operator in ("=", "=~"))]
    return left


# -- memory and clocks --------------------------------------------------------------------------


def fb_total(seen: Seen) -> Iterator[Fault]:
    """A metric that dcgm-exporter does not export unless it is told to."""
    for selector in selectors(seen.tree):
        if selector.name != "DCGM_FI_DEV_FB_TOTAL" or selector.range_s is not None:
            continue
        parts = ("DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_FREE", "DCGM_FI_DEV_FB_RESERVED")
        total = " + ".join(seen.renamed(selector, part) for part in parts)
        yield Fault(
            "DCGM_FI_DEV_FB_TOTAL is not in dcgm-exporter's default counter list",
            "with the defaults there is no such series, and the rule never fires",
            seen.put(selector, f"({total})"),
        )


def fb_used_of_free(seen: Seen) -> Iterator[Fault]:
    """Used memory divided by free memory, taken for a share."""
    for node in walk(seen.tree):
        if not isinstance(node, Binary) or node.operator != "/":
            continue
        used, _ = peeled(node.left)
        free, _ = peeled(node.right)
        a, b = (known(s) if s else None for s in (used, free))
        if used is None or a is None or b is None:
            continue
        if a.topic == "mem_used_mib" and b.topic == "mem_free_mib" and a.dialect == b.dialect:
            yield Fault(
                "used memory divided by free memory is not a share of the memory",
                "it is 1 when half is used and grows without bound",
                seen.put(node, _share(seen, used)),
            )


def _share(seen: Seen, used: Selector) -> str:
    dialect = KNOWN[used.name].dialect
    if dialect == "smi":
        total = seen.renamed(used, "nvidia_smi_memory_total_bytes")
    else:
        topics = ("mem_used_mib", "mem_free_mib", "mem_reserved_mib")
        names = (name_of(topic, dialect) for topic in topics)
        total = f"({' + '.join(seen.renamed(used, name) for name in names)})"
    return f"({seen.text(used)} / {total})"


def mask_compared(seen: Seen) -> Iterator[Fault]:
    """A bitmask compared as if it were a quantity."""
    for one in comparisons(seen.tree):
        found = known(one.of)
        bits = int(one.value) if 0 <= one.value < 1 << 32 and one.value % 1 == 0 else -1
        if found is None or found.kind != "mask" or bits < 0:
            continue
        if bits == 0 and one.operator in ("==", "<="):
            continue
        is_bit = bits > 0 and bits & (bits - 1) == 0 and one.operator in ("==", ">=")
        bit = bits if is_bit else _HARM
        modulus = 2 * bit if is_bit else 256
        yield Fault(
            f"{found.name} is a bitmask and is compared with {bits} as a quantity",
            "several reasons hold at once and add up, and an idle GPU reports reason 1; "
            f"test bits by remainder: `x % {modulus} >= {bit}`"
            + ("" if is_bit else " is any of thermal slowdown (32, 64) and power brake (128)"),
            seen.put(one.whole, f"{seen.text(one.of)} % {modulus} >= {bit}"),
        )


def mask_and(seen: Seen) -> Iterator[Fault]:
    """`and` used as if it worked on bits."""
    for node in walk(seen.tree):
        if not isinstance(node, Binary) or node.operator != "and":
            continue
        found = known(node.left)
        number = node.right.left if isinstance(node.right, Binary) else node.right
        bit = constant(number)
        if found is None or found.kind != "mask" or bit is None or bit < 1:
            continue
        yield Fault(
            f"`and` does not work on bits: {found.name} and {plain(bit)}",
            "PromQL's `and` joins series by labels; a bit is tested by remainder",
            seen.put(node, f"{seen.text(node.left)} % {plain(2 * bit)} >= {plain(bit)}"),
        )


def clock_for_throttle(seen: Seen) -> Iterator[Fault]:
    """A low clock taken for throttling."""
    metrics = {s.name for s in selectors(seen.tree)}
    for one in comparisons(seen.tree):
        metric, _ = peeled(one.of)
        found = known(metric) if metric else None
        if metric is None or found is None or len(metrics) != 1 or not seen.rule.alerts:
            continue
        if found.topic == "clock_sm_mhz" and one.operator in ("<", "<=") and one.value > 0:
            reasons = seen.instant(metric, name_of("throttle_reasons", found.dialect))
            yield Fault(
                f"a low {metric.name} taken for throttling",
                "an idle GPU lowers its clock too; the reasons say why it is low: thermal slowdown "
                "(bits 32 and 64) and power brake (128)",
                seen.put(one.whole, f"{reasons} % 256 >= {_HARM}"),
            )


def temperature_constant(seen: Seen) -> Iterator[Fault]:
    """A temperature in degrees where the GPU knows its own margin."""
    for one in comparisons(seen.tree):
        metric, around = peeled(one.of)
        found = known(metric) if metric else None
        if metric is None or found is None or found.topic != "temp_gpu_c" or around:
            continue
        if one.operator in (">", ">=") and 60 <= one.value <= 120 and seen.rule.alerts:
            margin = seen.instant(metric, name_of("temp_margin_c", found.dialect))
            yield Fault(
                f"{metric.name} is compared with {plain(one.value)} °C for every model alike",
                "models slow down at different temperatures; the margin to the GPU's own slowdown "
                "temperature holds for all that report it (for dcgm-exporter, a line of its "
                "counter list)",
                seen.put(one.whole, f"{margin} < 5"),
            )


# -- names --------------------------------------------------------------------------------------


def dialects_joined(seen: Seen) -> Iterator[Fault]:
    """Names from before and after 4.9 joined by anything but `or`."""
    for node in walk(seen.tree):
        if not isinstance(node, Binary) or node.operator in ("or", "unless"):
            continue
        left, right = (
            {k.dialect for s in selectors(side) if (k := known(s))} & {"old", "new"}
            for side in (node.left, node.right)
        )
        if len(left) == len(right) == 1 and left != right:
            metric = next(s for s in selectors(node.right) if (k := known(s)) and k.twin)
            twin = KNOWN[metric.name].twin
            yield Fault(
                f"names of dcgm-exporter up to 4.8 and from 4.9 meet in `{node.operator}`",
                "an exporter speaks one dialect, so the two sides never have series of one GPU "
                "(mind units: 4.9 also went to bytes, hertz, joules and ratios)",
                seen.put(metric, seen.renamed(metric, twin)),
            )


def dialect_missing(seen: Seen) -> Iterator[Fault]:
    """In a file for both dialects, a metric under one of its names only."""
    is_for_both = any(KNOWN[name].twin in seen.metrics for name in seen.metrics if name in KNOWN)
    if not is_for_both or any(dialects_joined(seen)):
        return
    for selector in selectors(seen.tree):
        found = known(selector)
        if found and found.twin and found.twin not in seen.metrics:
            other = seen.renamed(selector, found.twin)
            meant = other + _to(found.unit, KNOWN[found.twin].unit)
            since = "from 4.9" if found.dialect == "old" else "up to 4.8"
            yield Fault(
                f"{selector.name} has another name {since}, {found.twin}, and no rule here uses it",
                "the file is for both dialects, but this rule sees half of the fleet",
                seen.put(selector, f"({seen.text(selector)} or {meant})")
                if selector.range_s is None
                else f"{seen.rule.expr} or {seen.put(selector, other)}",
            )


def _to(ours: str, theirs: str) -> str:
    scale = {
        ("percent", "ratio"): " * 100", ("ratio", "percent"): " / 100",
        ("MiB", "B"): " / 1048576", ("B", "MiB"): " * 1048576",
        ("MHz", "Hz"): " / 1000000", ("Hz", "MHz"): " * 1000000",
        ("mJ", "J"): " * 1000", ("J", "mJ"): " / 1000",
    }  # fmt: skip
    return scale.get((ours, theirs), "")


CHECKS: Final[dict[str, Callable[[Seen], Iterator[Fault]]]] = {
    "xid-changes": xid_changes,
    "xid-sticks": xid_sticks,
    "xid-application": xid_application,
    "fb-total": fb_total,
    "fb-used-of-free": fb_used_of_free,
    "mask-compared": mask_compared,
    "mask-and": mask_and,
    "clock-for-throttle": clock_for_throttle,
    "temperature-constant": temperature_constant,
    "dialects-joined": dialects_joined,
    "dialect-missing": dialect_missing,
    "threshold-unit": threshold_unit,
    "units-meet": units_meet,
    "gauge-as-counter": gauge_as_counter,
    "counter-as-gauge": counter_as_gauge,
    "vanishing-baseline": vanishing_baseline,
    "absent-gpu": absent_gpu,
    "count-zero": count_zero,
    "mig-twice": mig_twice,
    "folded-gpu": folded_gpu,
    "folded-site": folded_site,
    "hostname-case": hostname_case,
    "for-too-long": for_too_long,
}
"""Every check by its name, in the order in which a rule's mistakes are told."""
