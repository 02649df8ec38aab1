"""A site on paper, for tests of folding: halls of rows of racks of nodes."""

from collections import Counter
from collections.abc import Mapping

from alerts.alert import Alert
from alerts.rule import Severity
from alerts.topology import Gpu, Place, Spot, Topology, count

GPU_W = 700.0


def site(
    halls: int = 2, rows: int = 2, racks: int = 4, nodes: int = 9, gpus: int = 8, *,
    silent: bool = True, jobs: Mapping[str, str] | None = None,
) -> Topology:  # fmt: skip
    """Racks are fed in twos; a tenant a row; `jobs` by node."""
    found: dict[Spot, list[Gpu]] = {}
    held = Counter[Place]()
    for h in range(1, halls + 1):
        for r in range(rows * racks):
            for n in range(1, nodes + 1):
                hall, row, rack = (
                    f"h{h:02d}",
                    f"h{h:02d}-row{r // racks + 1}",
                    f"h{h:02d}-r{r + 1:02d}",
                )
                spot = Spot("s", hall, row, rack, f"{hall}-pdu{r // 2 + 1}", f"{rack}-n{n:02d}")
                job = (jobs or {}).get(spot.node, "")
                found[spot] = [
                    Gpu(spot, i, f"GPU-{spot.node}-{i}", f"lab-{row}", job, GPU_W, silent=silent)
                    for i in range(gpus)
                ]
                for gpu in found[spot]:
                    held.update(gpu.holders())
    made = count(((spot, len(some)) for spot, some in found.items()), held)
    return Topology(made.spots, made.sizes, made.parts, found)


def alert(
    rule: str = "NodeSilent", active_ms: int = 1000, severity: Severity = "page", **labels: str
) -> Alert:
    """One that fires."""
    return Alert(
        rule=rule, version="1", severity=severity, labels={"site": "s", **labels}, state="firing",
        value=1.0, active_ms=active_ms, fired_ms=active_ms,
    )  # fmt: skip


def silent_nodes(rack: str, nodes: int = 9) -> list[Alert]:
    """The alerts of a rack whose nodes are gone."""
    return [alert(node=f"{rack}-n{n:02d}", hall=rack[:3], rack=rack) for n in range(1, nodes + 1)]
