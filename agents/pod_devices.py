"""From the names by which Kubernetes calls devices to the node's GPUs and parts of them.

A part is stated where the number of parts is known: a replica is one N-th of its GPU (time slicing,
MPS), a MIG instance as many compute slices as its profile says. Where it is not known, and of whole
GPUs, the share is 0: an equal part of what others leave (pipeline/ledger/holdings.py).
"""

import fnmatch
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from agents.pod_resources import Held
from pipeline.errors import Unavailable
from pipeline.records import Gpu

WHOLE_PPM: Final = 1_000_000

_SLICES: Final[tuple[tuple[re.Pattern[str], int], ...]] = (
    (re.compile(r"\bA30X?\b|\bRTX PRO 6000\b"), 4),
    (re.compile(r"\b(A100|H100|H200|H20|GH200|B200|GB200|B300|GB300)\b"), 7),
)
"""Into how many compute slices MIG cuts a GPU, by its model's name."""
_REPLICA: Final = re.compile(r"(?P<name>.*)::(?P<replica>\d{1,5})")
_GPU: Final = re.compile(r"GPU-[0-9A-Za-z-]{1,64}")
_MIG_OF_GPU: Final = re.compile(r"MIG-(?P<gpu>GPU-[0-9A-Za-z-]{1,64})/\d{1,3}/\d{1,3}")
_MIG: Final = re.compile(r"MIG-[0-9A-Za-z-]{1,64}")
_GKE: Final = re.compile(
    r"nvidia(?P<index>\d{1,4})(?P<gi>/gi\d{1,3})?(?:/vgpu(?P<replica>\d{1,5}))?"
)
_DRA: Final = re.compile(r"gpu-(?P<index>\d{1,4})(?P<mig>-mig-[0-9a-z.-]{1,64})?")
_PROFILE: Final = re.compile(r"(?:^|[/-])mig-(?:(?P<compute>[1-7])c\.?)?(?P<slices>[1-7])g")
"""1g.10gb; of a compute instance inside a larger GPU instance 1c.3g.40gb, which is one slice."""


Name = tuple[str, str, str]
"""What a claim calls a device: its driver, the pool, and the name that is unique in that."""


class Published(NamedTuple):
    """A device as its DRA driver describes it, empty where it does not.

    uuid: its GPU's, of a partition its parent's; pci: the GPU's address; profile: of a MIG instance.
    """

    uuid: str = ""
    pci: str = ""
    profile: str = ""


class Instance(NamedTuple):
    """A MIG instance: the UUID of its GPU and its profile, such as 1g.10gb."""

    gpu: str
    profile: str


@dataclass(frozen=True, slots=True)
class Node:
    """A node's GPUs by UUID, its MIG instances by theirs, and its name, which is that of its pool.

    replicas: into how many each device that has any is divided, by `replica_of`; published: what
    its DRA drivers say of their devices; by_name: nobody can say, so NVIDIA's names must do.
    """

    name: str
    gpus: Mapping[str, Gpu]
    instances: Mapping[str, Instance] = field(default_factory=dict)
    replicas: Mapping[str, int] = field(default_factory=dict)
    published: Mapping[Name, Published] = field(default_factory=dict)
    by_name: bool = True


class Part(NamedTuple):
    """A part of a GPU by NVML's index; 0 ppm: an equal one of what others leave."""

    gpu: int
    share_ppm: int


class Claim(NamedTuple):
    """What a pod holds for a while: an equal part of each of these GPUs."""

    namespace: str
    pod: str
    gpus: tuple[int, ...]
    share_ppm: int

    @property
    def workload(self) -> str:
        """The pod's name, unique on the cluster at a time."""
        return f"{self.namespace}/{self.pod}"


class Placed(NamedTuple):
    """Claims, and devices that are none of the node's GPUs as far as known, with the reason."""

    claims: list[Claim]
    unplaced: dict[Held, str]


def wanted(held: Sequence[Held], resources: Sequence[str]) -> list[Held]:
    """Devices of these resources (or DRA drivers); `*` stands for anything."""
    names = {one.resource for one in held}
    ours = {n for n in names if any(fnmatch.fnmatchcase(n, pattern) for pattern in resources)}
    return [one for one in held if one.resource in ours]


def replica_of(device: str) -> tuple[str, int | None]:
    """A device and which of its replicas this is; None if it is not divided."""
    for pattern in (_REPLICA, _GKE):
        if (match := pattern.fullmatch(device)) and match["replica"] is not None:
            name = match["name"] if pattern is _REPLICA else device.rpartition("/")[0]
            return name, int(match["replica"])
    return device, None


def replicas_of(devices: Iterable[str]) -> dict[str, int]:
    """How many replicas each device has that has any."""
    named = {device: replica_of(device) for device in devices}
    return dict(Counter(name for name, replica in named.values() if replica is not None))


def is_unknown_instance(device: str, node: Node) -> bool:
    """Whether its GPU can only be found by asking the driver again for its MIG instances."""
    name, _ = replica_of(device)
    return bool(_MIG.fullmatch(name)) and name not in node.instances


def claimed(held: Iterable[Held]) -> set[Name]:
    """What claims call their devices; a plugin's have no pool."""
    return {_name(one) for one in held if one.pool}


def _name(held: Held) -> Name:
    return held.resource, held.pool, held.device


def place(held: Iterable[Held], node: Node) -> Placed:
    """Who holds which parts of the node's GPUs, in the order of their names."""
    parts: dict[tuple[str, str], dict[int, list[int]]] = {}
    unplaced: dict[Held, str] = {}
    # A device may be in several containers of a pod (DRA): the pod holds it once.
    once = sorted(set(held))
    # And several pods may hold it by one claim, or by claims that share it.
    holders = Counter(_name(one) for one in once if one.pool)
    for one in once:
        try:
            part = _part(one, node)
        except Unavailable as error:
            unplaced[one] = str(error)
            continue
        # Rounded down, so that nobody's share depends on the names of the others.
        share = part.share_ppm // (holders[_name(one)] or 1)
        mine = parts.setdefault((one.namespace, one.pod), {})
        mine.setdefault(part.gpu, []).append(share)
    claims = []
    for (namespace, pod), mine in parts.items():
        by_share: dict[int, list[int]] = {}
        for index, shares in mine.items():
            share = min(sum(shares), WHOLE_PPM) if all(shares) else 0
            by_share.setdefault(share, []).append(index)
        for share, gpus in sorted(by_share.items()):
            claims.append(Claim(namespace, pod, tuple(sorted(gpus)), share))
    return Placed(claims, unplaced)


def _part(held: Held, node: Node) -> Part:
    """Raises Unavailable, with the reason for people."""
    name, replica = replica_of(held.device)
    if held.pool:
        gpu, slices = _claimed(held, node)
    else:
        gpu, slices = _plugged(name, held.resource, node)
    share = WHOLE_PPM if slices is None else _slices_ppm(gpu, slices)
    if replica is None:
        return Part(gpu.index, 0 if slices is None else share)
    count = node.replicas.get(name, 0)
    if not count:
        return Part(gpu.index, 0)
    # So that the replicas' parts add up to the whole.
    return Part(gpu.index, (replica + 1) * share // count - replica * share // count)


def _slices_ppm(gpu: Gpu, slices: int) -> int:
    """The part of a GPU that so many slices are; 0 where either is not known."""
    of = next((count for model, count in _SLICES if model.search(gpu.model)), 0)
    return min(slices * WHOLE_PPM // of, WHOLE_PPM) if of else 0


def _plugged(name: str, resource: str, node: Node) -> tuple[Gpu, int | None]:
    """A device plugin's device: its GPU, and of a MIG instance the slices."""
    if _GPU.fullmatch(name):
        return _by_uuid(name, node), None
    if match := _MIG_OF_GPU.fullmatch(name):
        return _by_uuid(match["gpu"], node), _profile_slices(resource)
    if _MIG.fullmatch(name):
        instance = node.instances.get(name)
        if instance is None:
            raise Unavailable("the driver did not name this MIG instance")
        return _by_uuid(instance.gpu, node), _profile_slices(f"mig-{instance.profile}")
    if match := _GKE.fullmatch(name):
        gpu = _by_index(int(match["index"]), node)
        return gpu, _profile_slices(resource) if match["gi"] else None
    raise Unavailable("not the name of an NVIDIA device")


def _claimed(held: Held, node: Node) -> tuple[Gpu, int | None]:
    """A claim's device (DRA), as its driver describes it."""
    published = node.published.get(_name(held))
    if published is not None:
        by_uuid = bool(published.uuid)
        gpu = _by_uuid(published.uuid, node) if by_uuid else _by_pci(published.pci, node)
        return gpu, _profile_slices(f"mig-{published.profile}") if published.profile else None
    if not node.by_name:
        raise Unavailable("no complete pool of this node is known to have it")
    return _named(held, node)


def _named(held: Held, node: Node) -> tuple[Gpu, int | None]:
    """By its name alone: NVIDIA's driver has a pool for each node and numbers its GPUs."""
    if held.pool != node.name:
        raise Unavailable(f"its pool {held.pool!r} is not this node, {node.name!r}")
    match = _DRA.fullmatch(held.device)
    if not match:
        raise Unavailable("not the name of an NVIDIA device in a pool")
    gpu = _by_index(int(match["index"]), node)
    return gpu, _profile_slices(match["mig"]) if match["mig"] else None


def _profile_slices(text: str) -> int:
    match = _PROFILE.search(text)
    return int(match["compute"] or match["slices"]) if match else 0


def _by_uuid(uuid: str, node: Node) -> Gpu:
    if uuid not in node.gpus:
        raise Unavailable("no GPU of this node has this UUID")
    return node.gpus[uuid]


def _by_index(index: int, node: Node) -> Gpu:
    for gpu in node.gpus.values():
        if gpu.index == index:
            return gpu
    raise Unavailable("no GPU of this node has this index")


def _by_pci(address: str, node: Node) -> Gpu:
    if not address:
        raise Unavailable("its driver published neither a UUID nor an address")
    for gpu in node.gpus.values():
        if _pci(gpu.pci_bus_id) == _pci(address):
            return gpu
    raise Unavailable("no GPU of this node has the address that its driver published")


def _pci(address: str) -> str:
    """An address as one text: NVML writes the domain in eight digits, Linux in four."""
    domain, _, rest = address.lower().partition(":")
    return f"{domain.lstrip('0')}:{rest}"
