"""Which GPU a claim's device is: what the node's DRA drivers publish of it on the API server.

A driver describes its devices in ResourceSlices, a pool of them for each node as a rule. Of a pool
only the newest generation counts, and only once all its slices are there. A device's name says
nothing reliable (NVIDIA's drivers have numbered GPUs by NVML's index and by the minor number of
the device file); the UUID in its slice does.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlencode

import msgspec

from agents.pod_api import ACCOUNT, ApiServer, Denied, Missing, in_cluster
from agents.pod_devices import Name, Published
from agents.pod_turns import Seldom
from pipeline.clock import Clock
from pipeline.errors import Unavailable

VERSIONS: Final = ("v1", "v1beta2", "v1beta1")
"""Of resource.k8s.io, the newest first: Kubernetes 1.34, 1.33, 1.32."""
PAGE: Final = 64
"""Slices asked for at once, where the API server heeds that."""
MAX_PAGES: Final = 16
MAX_BYTES: Final = 8 << 20
"""Of all pages. Eight GPUs with every MIG instance that they could have are about 1 MiB."""
MAX_DEVICES: Final = 4096
EVERY_S: Final = 300.0
"""The API server is asked about a device that is not known at most so often."""
BY_NAME: Final = "claims' devices are placed by NVIDIA's names for them"
RULE: Final = "apiGroups: [resource.k8s.io], resources: [resourceslices], verbs: [list]"
"""The right that it takes, as a ClusterRole grants it."""
_KIND: Final = "application/json"
_PCI: Final = "resource.kubernetes.io/pciBusID"
"""The one name of an attribute that all drivers share."""


class _Value(msgspec.Struct):
    """An attribute; those that are numbers, versions or lists name no GPU."""

    string: str | None = None


_Attributes = dict[str, _Value] | None


class _Basic(msgspec.Struct):
    attributes: _Attributes = None


class _Device(msgspec.Struct):
    """`basic` is where v1beta1 has the attributes."""

    name: str
    attributes: _Attributes = None
    basic: _Basic | None = None


class _Pool(msgspec.Struct, rename="camel"):
    name: str
    generation: int = 0
    resource_slice_count: int = 0


class _Spec(msgspec.Struct, rename="camel"):
    """Without devices where it holds counters only."""

    driver: str
    pool: _Pool
    node_name: str | None = None
    devices: list[_Device] | None = None


class _Slice(msgspec.Struct):
    spec: _Spec


class _Metadata(msgspec.Struct, rename={"next": "continue"}):
    next: str | None = None


class _List(msgspec.Struct):
    items: list[_Slice] | None
    metadata: _Metadata


_DECODER: Final = msgspec.json.Decoder(_List)


class Found(NamedTuple):
    """Devices of complete pools, the other pools by driver and name, and the API's version."""

    devices: dict[Name, Published]
    incomplete: list[tuple[str, str]]
    version: str


class ResourceSlices:
    """The slices of one node, listed when called."""

    def __init__(self, node: str, server: ApiServer) -> None:
        self._node = node
        self._server = server
        self._version = VERSIONS[0]

    def __call__(self) -> dict[Name, Published]:
        """Devices of complete pools. Raises Denied or Missing (not served), else Unavailable."""
        return self.read().devices

    def read(self) -> Found:
        """As calling it, with more to tell."""
        # The version that was served last time is the first that is tried.
        for version in sorted(VERSIONS, key=lambda one: one != self._version):
            try:
                specs = self._list(version)
            except Missing:
                continue
            self._version = version
            return gather(specs, version)
        raise Missing("this API server has no ResourceSlices: it is older than Kubernetes 1.32")

    def _list(self, version: str) -> list[_Spec]:
        asked = {"fieldSelector": f"spec.nodeName={self._node}", "limit": str(PAGE)}
        # Out of the API server's memory, where slices are indexed by node; as new as its watch.
        place = {"resourceVersion": "0"}
        left, devices = MAX_BYTES, 0
        found: list[_Spec] = []
        for _ in range(MAX_PAGES):
            path = f"/apis/resource.k8s.io/{version}/resourceslices?{urlencode(asked | place)}"
            body = self._server.get(path, _KIND, left)
            left -= len(body)
            page = parse(body)
            # A server that does not know the selector would send the whole cluster.
            mine = [one.spec for one in page.items or () if one.spec.node_name == self._node]
            found += mine
            devices += sum(len(spec.devices or ()) for spec in mine)
            if devices > MAX_DEVICES:
                raise Unavailable(f"resource slices: more than {MAX_DEVICES} devices")
            if not page.metadata.next:
                return found
            place = {"continue": page.metadata.next}
        raise Unavailable(f"resource slices: more than {MAX_PAGES} pages of {PAGE}")


def parse(body: bytes) -> _List:
    """A ResourceSliceList of any of the versions. Raises Unavailable."""
    try:
        return _DECODER.decode(body)
    # Nesting deeper than Python's stack is not the decoder's own error.
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Unavailable(f"resource slices: {error}") from error


def gather(specs: Iterable[_Spec], version: str = "") -> Found:
    """The devices of the newest generation of each pool of which every slice is there."""
    pools: dict[tuple[str, str], list[_Spec]] = {}
    for spec in specs:
        pools.setdefault((spec.driver, spec.pool.name), []).append(spec)
    found = Found({}, [], version)
    for (driver, pool), slices in pools.items():
        newest = max(spec.pool.generation for spec in slices)
        current = [spec for spec in slices if spec.pool.generation == newest]
        devices = [device for spec in current for device in spec.devices or ()]
        # A name that is there twice is on its way from one slice to another.
        whole = len({device.name for device in devices}) == len(devices)
        if whole and all(spec.pool.resource_slice_count == len(current) for spec in current):
            for device in devices:
                found.devices[driver, pool, device.name] = _published(driver, device)
        else:
            found.incomplete.append((driver, pool))
    return found


def _published(driver: str, device: _Device) -> Published:
    attributes = (device.attributes or (device.basic and device.basic.attributes)) or {}

    def text(name: str) -> str:
        # A name without a domain is the driver's own; it may also be written out.
        value = attributes.get(name) or attributes.get(f"{driver}/{name}")
        return (value and value.string) or ""

    pci = attributes.get(_PCI)
    return Published(
        text("parentUUID") or text("uuid"), (pci and pci.string) or "", text("profile")
    )


class Known:
    """The devices that claims may name: what was read of them, and when it may be read again.

    ask: reads them; None outside a cluster.
    """

    def __init__(self, ask: Callable[[], Mapping[Name, Published]] | None, clock: Clock) -> None:
        self.devices: Mapping[Name, Published] = {}
        self.by_name = ask is None
        self._ask = ask
        self._turn = Seldom(clock, EVERY_S)

    def learn(self, claims: set[Name]) -> None:
        """Ask if one of these is not known and it is time. Raises Unavailable; what is known stays.

        Where slices may not be read, or are not served, names must do until they can be.
        """
        if self._ask is None or claims <= self.devices.keys() or not self._turn.may():
            return
        try:
            found = self._ask()
        except (Denied, Missing) as error:
            self.by_name = True
            raise Unavailable(f"{error}: {BY_NAME}") from error
        self.by_name = False
        # A device that was withdrawn (it is unhealthy, say) stays known while it is held.
        kept = {name: one for name, one in self.devices.items() if name in claims}
        self.devices = kept | dict(found)

    def forget(self) -> None:
        """The names may mean others now."""
        self.devices = {}


def open_slices(node: str, clock: Clock) -> Known:
    """Of this node, by the API server of the cluster that the agent runs in, if any."""
    server = in_cluster()
    return Known(None if server is None else ResourceSlices(node, server), clock)


def describe(node: str, account: Path = ACCOUNT, env: Mapping[str, str] = os.environ) -> list[str]:
    """Whether the node's slices may be read, and what is in them, for people: one line or more."""
    server = in_cluster(account, env)
    if server is None:
        return [f"not in a pod: {BY_NAME}"]
    try:
        found = ResourceSlices(node, server).read()
    except Denied as error:
        fix = f"grant {RULE}, and mount the token (deploy/kubernetes/agent-resource-slices.yaml)"
        return [f"{error}: {BY_NAME}; to read them {fix}"]
    except Missing as error:
        return [f"{error}: {BY_NAME}"]
    except Unavailable as error:
        return [f"{error}: a claim on a device that is not known yet waits"]
    pools = {(driver, pool) for driver, pool, _ in found.devices}
    drivers = ", ".join(sorted({driver for driver, _ in pools})) or "nobody"
    version = f"resource.k8s.io/{found.version}"
    lines = [f"{version}: {len(found.devices)} devices of {node}, {len(pools)} pools of {drivers}"]
    for driver, pool in sorted(found.incomplete):
        lines.append(f"pool {pool!r} of {driver} is not complete: claims on it wait")
    return lines
