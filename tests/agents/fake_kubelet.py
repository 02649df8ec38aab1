"""A kubelet's pod-resources service, spoken as the real one does, over a unix socket."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

LIST: Final = "/v1.PodResourcesLister/List"
ALLOCATABLE: Final = "/v1.PodResourcesLister/GetAllocatableResources"


@dataclass
class FakePod:
    """A pod of one container: devices by resource, claims as (driver, pool, device)."""

    namespace: str
    name: str
    devices: dict[str, list[str]] = field(default_factory=dict)
    claims: list[tuple[str, str, str]] = field(default_factory=list)


def varint(value: int) -> bytes:
    """A number in groups of seven bits, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def put(number: int, payload: bytes | str | int) -> bytes:
    """A field."""
    if isinstance(payload, int):
        return varint(number << 3) + varint(payload)
    data = payload.encode() if isinstance(payload, str) else payload
    return varint(number << 3 | 2) + varint(len(data)) + data


def container_devices(resource: str, ids: Sequence[str], numa: int | None = None) -> bytes:
    """ContainerDevices, with a topology as device plugins give it."""
    topology = b"" if numa is None else put(3, put(1, put(1, numa)))
    return put(1, resource) + b"".join(put(2, one) for one in ids) + topology


def pod_resources(pod: FakePod) -> bytes:
    """PodResources, with the fields around those that matter."""
    devices = b"".join(put(2, container_devices(r, ids, 1)) for r, ids in pod.devices.items())
    cpus = b"".join(put(3, varint(cpu) + b"") for cpu in (1, 200))
    claims = b"".join(
        put(5, put(2, "claim") + put(3, pod.namespace)
            + put(4, put(1, put(1, "k8s.gpu.nvidia.com/claim=x")) + put(2, driver)
                  + put(3, pool) + put(4, device)))
        for driver, pool, device in pod.claims
    )  # fmt: skip
    memory = put(4, put(1, "memory") + put(2, 1 << 40))
    container = put(1, "main") + devices + cpus + memory + claims
    return put(1, pod.name) + put(2, pod.namespace) + put(3, container)


def list_response(pods: Sequence[FakePod]) -> bytes:
    """ListPodResourcesResponse."""
    return b"".join(put(1, pod_resources(pod)) for pod in pods)


def allocatable_response(devices: dict[str, list[str]]) -> bytes:
    """AllocatableResourcesResponse."""
    return b"".join(put(1, container_devices(r, ids)) for r, ids in devices.items()) + put(2, b"\1")


class FakeKubelet:
    """Answers what it is told to; `allocatable` None: as a kubelet that does not serve it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pods: list[FakePod] = []
        self.allocatable: dict[str, list[str]] | None = {}
        self.raw: bytes | None = None
        self.hang = threading.Event()
        self.asked: list[str] = []
        self._grpc = pytest.importorskip("grpc", reason="grpcio is not installed")
        self._server: Any = None

    def start(self) -> None:
        """Make the socket anew, as a kubelet does that starts."""
        server = self._grpc.server(futures.ThreadPoolExecutor(2))
        server.add_generic_rpc_handlers((_Handler(self._grpc, self._method),))
        self.path.unlink(missing_ok=True)
        assert server.add_insecure_port(f"unix:{self.path}")
        server.start()
        self._server = server

    def stop(self) -> None:
        """End; a real kubelet's socket stays behind."""
        if self._server is not None:
            self.hang.set()
            self._server.stop(0).wait()
            self._server = None
            self.hang.clear()

    @contextmanager
    def running(self) -> Iterator["FakeKubelet"]:
        """For as long as a test."""
        self.start()
        try:
            yield self
        finally:
            self.stop()

    def _method(self, name: str) -> Callable[[bytes, Any], bytes] | None:
        served = {LIST: self._list, ALLOCATABLE: self._allocatable}
        return served.get(name)

    def _list(self, request: bytes, _context: Any) -> bytes:
        assert request == b""
        self.asked.append("List")
        if self.raw == b"hang":
            self.hang.wait(10)
        return list_response(self.pods) if self.raw is None else self.raw

    def _allocatable(self, _request: bytes, context: Any) -> bytes:
        self.asked.append("GetAllocatableResources")
        if self.allocatable is None:
            context.abort(self._grpc.StatusCode.UNIMPLEMENTED, "unknown method")
        return allocatable_response(self.allocatable or {})


def _Handler(grpc: Any, method: Callable[[str], Any]) -> Any:  # noqa: N802, a class made at run time
    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        """Bytes in, bytes out."""

        def service(self, details: Any) -> Any:
            found = method(details.method)
            return None if found is None else grpc.unary_unary_rpc_method_handler(found)

    return Handler()
