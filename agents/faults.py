"""What can go wrong at a simulated site: kinds of faults as data, and when they happen.

What a kind does to GPUs is made of few things, each a field of Kind, so that a new kind is a new
row. agents.struck turns the faults in force into arrays.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, cast, get_args

from pipeline.errors import Refuse

FaultKind = Literal[
    "xid", "gpu_lost", "hot_gpu", "link_errors", "ecc", "rack_loss", "node_down", "energy_reset",
    "frozen", "gpu_missing", "pdu_loss", "hall_loss", "site_loss", "straggler", "thermal_slowdown",
    "power_brake", "absurd_power", "energy_drift", "pcie_replays", "remap_failure",
    "recovery_action", "spool_overflow", "idle_gpu", "idle_job", "stray_work", "load_drop",
    "load_swing", "load_climb", "meter_silent", "meter_stuck", "meter_drift",
]  # fmt: skip
Scope = Literal["gpu", "node", "rack", "pdu", "hall", "site", "job"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """What a fault does to the GPUs that it touches, while it lasts.

    scope: it touches the GPU, or what that stands in, or the whole job that runs on it.
    events: kind and code of what the node tells when it begins.
    once, per_s: counters that grow by one when it begins, by so many a second. states: slow columns
    that say so. shows: gauges that read so many times the truth, plus so much in their unit.
    clock: it may run at most at this share of its full clock, for the `reasons` of NVML, and
    `slowed` is the column that counts the time. resistance: times the usual one, of its cooling.
    counts: the share of its energy that its counter counts. idles: the share of the GPUs that
    stand idle; only in the second half of every `swing_s`; down to none after `climb_s`. works: they
    work for nobody. reads: what the hall's (of scope site: the site's) meter shows of the truth;
    NaN is nothing, infinity is what it showed when the fault began.
    """

    scope: Scope = "gpu"
    is_moment: bool = False
    is_away: bool = False
    is_frozen: bool = False
    events: tuple[tuple[str, int], ...] = ()
    once: tuple[str, ...] = ()
    per_s: Mapping[str, int] = field(default_factory=dict)
    states: Mapping[str, int] = field(default_factory=dict)
    shows: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    clock: float = 1.0
    reasons: int = 0
    slowed: str = ""
    resistance: float = 1.0
    counts: float = 1.0
    idles: float = 0.0
    swing_s: float = 0.0
    climb_s: float = 0.0
    works: bool = False
    reads: float = 1.0

    @property
    def misreads(self) -> bool:
        """Whether it touches a meter."""
        return self.reads != 1


ECC_COUNTERS: Final = (
    "ecc_uncorrected_volatile", "ecc_uncorrected_aggregate", "remap_uncorrected_rows",
)  # fmt: skip
_RESET, _REBOOT = 1, 2  # recovery actions
_BRAKED: Final = 0x88  # hardware slowdown, by the external power brake
_TOO_HOT: Final = 0x48  # hardware slowdown, because of heat
_NOTHING, _AS_THEN = float("nan"), float("inf")

KINDS: Final[Mapping[FaultKind, Kind]] = {
    # The driver's word alone: nothing else changes.
    "xid": Kind(is_moment=True),
    # There is nothing to read. With its node or rack, the agent is gone too, and tells nothing.
    "gpu_lost": Kind(is_away=True, events=(("xid", 79), ("gpu_lost", 0))),
    "gpu_missing": Kind(is_away=True),
    "node_down": Kind(scope="node", is_away=True),
    "rack_loss": Kind(scope="rack", is_away=True),
    "pdu_loss": Kind(scope="pdu", is_away=True),
    "hall_loss": Kind(scope="hall", is_away=True),
    "site_loss": Kind(scope="site", is_away=True),
    # What hardware says of itself.
    "link_errors": Kind(
        events=(("xid", 74),),
        per_s={"nvlink_crc_errors": 40, "nvlink_replay_errors": 5, "nvlink_recovery_errors": 1},
    ),
    "ecc": Kind(
        events=(("xid", 94), ("xid", 63)), once=ECC_COUNTERS,
        states={"remap_pending": 1, "recovery_action": _RESET},
    ),
    "pcie_replays": Kind(per_s={"pcie_replays": 2}),
    "remap_failure": Kind(events=(("xid", 64),), states={"remap_failure": 1}),
    "recovery_action": Kind(events=(("xid", 154),), states={"recovery_action": _REBOOT}),
    # What it draws, how fast it runs, how hot it gets.
    "hot_gpu": Kind(resistance=2.5),
    "thermal_slowdown": Kind(
        clock=0.5, reasons=_TOO_HOT, slowed="throttle_hw_thermal_ms", shows={"temp_mem_c": (1, 35)},
    ),
    "power_brake": Kind(
        scope="rack", clock=0.5, reasons=_BRAKED, slowed="throttle_power_brake_ms",
    ),
    "straggler": Kind(clock=0.55),
    # What is shown is not what is.
    "energy_reset": Kind(scope="node", is_moment=True, events=(("driver_reload", 0),)),
    "energy_drift": Kind(counts=0.75),
    "frozen": Kind(is_frozen=True),
    "absurd_power": Kind(shows={"power_w": (100, 0)}),
    "spool_overflow": Kind(scope="node", is_moment=True, events=(("spool_overflow", 0),)),
    # Who works, and for whom.
    "idle_gpu": Kind(idles=1),
    "idle_job": Kind(scope="job", idles=1),
    "stray_work": Kind(scope="node", works=True),
    "load_drop": Kind(scope="site", idles=1),
    "load_swing": Kind(scope="site", idles=1, swing_s=5),
    "load_climb": Kind(scope="site", idles=0.6, climb_s=900),
    # The facility's instruments.
    "meter_silent": Kind(scope="hall", reads=_NOTHING),
    "meter_stuck": Kind(scope="hall", reads=_AS_THEN),
    "meter_drift": Kind(scope="site", reads=0.4),
}  # fmt: skip
assert set(KINDS) == set(get_args(FaultKind))

RANDOM_FAULTS: Final[tuple[tuple[float, FaultKind, int, int], ...]] = (
    (1000, "xid", 31, 0),
    (800, "xid", 13, 0),
    (500, "xid", 43, 0),
    (300, "xid", 45, 0),
    (150, "ecc", 0, 3600),
    (100, "gpu_lost", 0, 1800),
    (100, "link_errors", 0, 600),
    (50, "hot_gpu", 0, 900),
    (10, "node_down", 0, 600),
    (10, "energy_reset", 0, 0),
    (2, "frozen", 0, 300),
    (0.5, "rack_loss", 0, 900),
)
"""How often per million GPUs and day, what, which XID, for how many seconds."""
MAX_RANDOM_FAULTS: Final = 100  # in one step

_FAULT: Final = re.compile(
    r"(?P<kind>[a-z_]+)(=(?P<code>\d{1,5}))?(:(?P<gpu>\d{1,9}))?(@(?P<after_s>\d{1,9}))?"
    r"(\+(?P<for_s>\d{1,9}))?", re.ASCII
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """Something goes wrong with the GPU at position `gpu` of the reading, or around it.

    What it touches is the scope of its kind. `code` is the XID of kind "xid". It begins when the
    site has run for `after_s` seconds and lasts for `for_s`, or until it is cleared, unless its kind
    is but a moment.
    """

    kind: FaultKind
    gpu: int = 0
    code: int = 31
    for_s: float | None = None
    after_s: float = 0

    @classmethod
    def parse(cls, text: str) -> "Fault":
        """From KIND[=XID][:GPU][@SECONDS][+SECONDS], as rack_loss:16@60+300. Raises Refuse."""
        found = _FAULT.fullmatch(text)
        if (
            found is None
            or found["kind"] not in KINDS
            or (found["code"] and found["kind"] != "xid")
        ):
            raise Refuse(
                f"--fault {text!r} is not KIND[:GPU][@AFTER_S][+FOR_S], as rack_loss@60+300 or "
                f"xid=79:12@30: kinds are {', '.join(KINDS)}"
            )
        return cls(
            cast("FaultKind", found["kind"]), int(found["gpu"] or 0), int(found["code"] or 31),
            float(found["for_s"]) if found["for_s"] else None, float(found["after_s"] or 0),
        )  # fmt: skip

    @property
    def does(self) -> Kind:
        """What its kind does."""
        return KINDS[self.kind]

    def check(self, gpus: int) -> None:
        """Raise Refuse unless it can happen to a site of so many GPUs."""
        if self.kind not in KINDS or not 0 <= self.gpu < gpus:
            raise Refuse(
                f"simulator: no fault {self.kind!r} of GPU {self.gpu}: kinds are "
                f"{', '.join(KINDS)}, GPUs 0 to {gpus - 1}"
            )

    def told(self) -> tuple[tuple[str, int], ...]:
        """Kind and code of the events that the node sends."""
        return (("xid", self.code),) if self.kind == "xid" else self.does.events


def draw_faults(seed: int, step: int, gpus: int, dt_s: float) -> list[Fault]:
    """What goes wrong by itself during a step: RANDOM_FAULTS as a Poisson process."""
    chance = random.Random(f"{seed}/fault/{step}")  # noqa: S311
    rates = [rate for rate, *_ in RANDOM_FAULTS]
    expected = sum(rates) * 1e-6 * gpus * dt_s / 86_400
    out: list[Fault] = []
    at = chance.expovariate(expected)
    while at < 1 and len(out) < MAX_RANDOM_FAULTS:
        _, kind, code, for_s = chance.choices(RANDOM_FAULTS, rates)[0]
        out.append(Fault(kind, chance.randrange(gpus), code, for_s))
        at += chance.expovariate(expected)
    return out
