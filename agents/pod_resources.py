"""Which pod holds which devices, as the node's kubelet says on its pod-resources socket.

The service is v1.PodResourcesLister. Of its messages only a handful of fields matter, so they are
read by hand: no generated code, and nothing is believed that does not fit. Fields that are not
named here are passed over, as Protocol Buffers wants it.
"""

import errno
import os
import socket as sockets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from pipeline.errors import Refuse, Reject, Unavailable

ANSWER_S: Final = 5.0
"""How long the kubelet may take."""
MAX_BYTES: Final = 16 << 20
"""As much as the kubelet itself accepts."""
MAX_DEVICES: Final = 65_536
MAX_TEXT: Final = 512
"""Bytes of a name; Kubernetes allows 253."""
MAX_PATH: Final = 107
"""Bytes of a unix socket's path."""

Reason = Literal[
    "not there", "permission", "no answer", "too large", "not served", "malformed", "refused",
    "no pods",
]  # fmt: skip

_SERVICE: Final = "/v1.PodResourcesLister/"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIDTH: Final = {_FIXED64: 8, _FIXED32: 4}


class NoAnswer(Unavailable):
    """The kubelet did not say who holds what, in words and in one of few reasons."""

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason: Final = reason


class Held(NamedTuple):
    """A device that a pod holds.

    Of a device plugin: the resource's name and the plugin's name of the device, `pool` is empty.
    Of a claim (DRA): the driver's name, the device's, and the pool in which that is unique.
    """

    namespace: str
    pod: str
    resource: str
    device: str
    pool: str = ""


class Kubelet:
    """A kubelet by its socket, connected anew for each question: a restart makes it another one.

    Raises Refuse if grpcio is missing or the path is too long for a socket.
    """

    def __init__(self, path: Path, wait_s: float = ANSWER_S) -> None:
        try:
            import grpc
        except ImportError as error:
            raise Refuse(
                "[kubernetes] socket needs grpcio: pip install 'megawatch[kubernetes]'"
            ) from error
        if len(os.fsencode(path)) > MAX_PATH:
            raise Refuse(f"[kubernetes] socket={str(path)!r}: longer than {MAX_PATH} bytes")
        self.path: Final = path
        self._grpc: Any = grpc
        self._wait_s = wait_s

    def held(self) -> list[Held]:
        """Every device of every pod on the node. Raises NoAnswer."""
        answer = self._ask("List")
        if not answer:
            # The plugin that offers GPUs is a pod itself: this kubelet does not know its own yet.
            raise NoAnswer(f"{self.path}: it has no pods at all, so it has only begun", "no pods")
        return parse_or_no_answer(answer)

    def allocatable(self) -> list[tuple[str, str]]:
        """Resource and name of every healthy device of a plugin, held or not. Raises NoAnswer."""
        try:
            return parse_allocatable(self._ask("GetAllocatableResources"))
        except Reject as error:
            raise NoAnswer(str(error), "malformed") from error

    def _ask(self, method: str) -> bytes:
        # gRPC would call every one of these "unavailable".
        _reachable(self.path)
        options = [
            ("grpc.max_receive_message_length", MAX_BYTES),
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),
            # By default it is the path, which servers written in Go refuse.
            ("grpc.default_authority", "localhost"),
        ]
        with self._grpc.insecure_channel(f"unix:{self.path}", options=options) as channel:
            try:
                answer: bytes = channel.unary_unary(_SERVICE + method)(b"", timeout=self._wait_s)
            except self._grpc.RpcError as error:
                said = f"{self.path}: {error.code().name.lower()}: {error.details()}"[:300]
                raise NoAnswer(said, _REASONS.get(error.code().name, "refused")) from error
        return answer


_REASONS: Final[dict[str, Reason]] = {
    "UNAVAILABLE": "no answer", "DEADLINE_EXCEEDED": "no answer", "CANCELLED": "no answer",
    "RESOURCE_EXHAUSTED": "too large", "UNIMPLEMENTED": "not served",
    "PERMISSION_DENIED": "permission",
}  # fmt: skip


def _reachable(path: Path) -> None:
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except OSError as error:
            reason: Reason = "no answer"
            if error.errno in (errno.EACCES, errno.EPERM):
                reason = "permission"
            elif error.errno in (errno.ENOENT, errno.ENOTDIR):
                reason = "not there"
            raise NoAnswer(f"{path}: {(error.strerror or str(error)).lower()}", reason) from error


def parse_or_no_answer(data: bytes) -> list[Held]:
    """As parse_list; what it rejects is no answer. Raises NoAnswer."""
    try:
        return parse_list(data)
    except Reject as error:
        raise NoAnswer(str(error), "malformed") from error


def parse_list(data: bytes) -> list[Held]:
    """The devices in a ListPodResourcesResponse. Raises Reject."""
    found: list[Held] = []
    for number, value in _fields(data):
        if number == 1:
            found += _pod(_message(value, "pod_resources"))
            if len(found) > MAX_DEVICES:
                raise Reject(f"pod-resources: more than {MAX_DEVICES} devices")
    return found


def parse_allocatable(data: bytes) -> list[tuple[str, str]]:
    """Resource and device of each device in an AllocatableResourcesResponse. Raises Reject."""
    found: list[tuple[str, str]] = []
    for number, value in _fields(data):
        if number == 1:
            found += _devices(_message(value, "devices"))
            if len(found) > MAX_DEVICES:
                raise Reject(f"pod-resources: more than {MAX_DEVICES} devices")
    return found


def _pod(data: bytes) -> list[Held]:
    name = namespace = ""
    devices: list[tuple[str, str, str]] = []
    for number, value in _fields(data):
        if number == 1:
            name = _text(value, "name")
        elif number == 2:
            namespace = _text(value, "namespace")
        elif number == 3:
            devices += _container(_message(value, "containers"))
    if devices and not (name and namespace):
        raise Reject("pod-resources: a pod without a name holds devices")
    return [Held(namespace, name, *device) for device in devices]


def _container(data: bytes) -> Iterator[tuple[str, str, str]]:
    """Resource, device and pool of what a container holds."""
    for number, value in _fields(data):
        if number == 2:
            for resource, device in _devices(_message(value, "devices")):
                yield resource, device, ""
        elif number == 5:
            yield from _dynamic(_message(value, "dynamic_resources"))


def _devices(data: bytes) -> list[tuple[str, str]]:
    resource, ids = "", []
    for number, value in _fields(data):
        if number == 1:
            resource = _text(value, "resource_name")
        elif number == 2:
            ids.append(_text(value, "device_ids"))
    return [(resource, device) for device in ids]


def _dynamic(data: bytes) -> Iterator[tuple[str, str, str]]:
    for number, value in _fields(data):
        if number != 4:
            continue
        named = {2: "", 3: "", 4: ""}
        for part, text in _fields(_message(value, "claim_resources")):
            if part in named:
                named[part] = _text(text, "claim_resources")
        driver, pool, device = named.values()
        if device:  # a claim of devices that are outside containers has no name here
            yield driver, device, pool


def _message(value: int | bytes, what: str) -> bytes:
    if isinstance(value, int):
        raise Reject(f"pod-resources: {what} is a number")
    return value


def _text(value: int | bytes, what: str) -> str:
    data = _message(value, what)
    if len(data) > MAX_TEXT:
        raise Reject(f"pod-resources: {what} is longer than {MAX_TEXT} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise Reject(f"pod-resources: {what} is not UTF-8") from error
    if not text.isprintable():
        raise Reject(f"pod-resources: {what} has control characters")
    return text


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field; fixed-width ones as their bytes. Raises Reject."""
    at, end = 0, len(data)
    while at < end:
        # Nearly all tags and lengths are one byte: the call is spared.
        tag = data[at]
        tag, at = (tag, at + 1) if tag < 0x80 else _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise Reject(f"pod-resources: {number} is no field's number")
        if wire == _BYTES:
            size, at = (data[at], at + 1) if at < end and data[at] < 0x80 else _varint(data, at)
        elif wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        elif wire in _WIDTH:
            size = _WIDTH[wire]
        else:
            raise Reject(f"pod-resources: {wire} is no type of a field's value")
        if size > end - at:
            raise Reject("pod-resources: cut off within a field")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise Reject("pod-resources: cut off within a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, at
    raise Reject("pod-resources: a number of more than 64 bits")
