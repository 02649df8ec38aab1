"""A label of a pod, asked of the API server: the tenant, where a namespace is not one.

Only the pod's metadata is asked for, once per pod. Whoever may create pods chooses their labels:
one that decides a bill must be guarded by an admission policy.
"""

import http.client
import os
import re
import ssl
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from pipeline.errors import Refuse, Unavailable

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where Kubernetes mounts a pod's token and the authority that signed the API server."""
ANSWER_S: Final = 3.0
MAX_BYTES: Final = 512 << 10
MAX_ASKED: Final = 16
"""Pods asked about between two calls of `keep`, so that a poll is bounded."""
_VALUE: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_KIND: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


class _Metadata(msgspec.Struct):
    labels: dict[str, str] | None = None


class _Pod(msgspec.Struct):
    metadata: _Metadata


_DECODER: Final = msgspec.json.Decoder(_Pod)


class PodLabels:
    """The value of one label per pod, kept while the pod is. Raises Refuse outside a cluster."""

    def __init__(
        self, label: str, account: Path = ACCOUNT, env: Mapping[str, str] = os.environ
    ) -> None:
        host, port = env.get("KUBERNETES_SERVICE_HOST"), env.get("KUBERNETES_SERVICE_PORT", "443")
        if not host or not port.isdecimal():
            raise Refuse("[kubernetes] pod_label: KUBERNETES_SERVICE_HOST is not set: not in a pod")
        self._label = label
        self._account = account
        self._host, self._port = host, int(port)
        self._known: dict[tuple[str, str], str] = {}
        self._asked = 0

    def value(self, namespace: str, pod: str) -> str:
        """The label's value; empty if it has none or none that is valid. Raises Unavailable."""
        key = namespace, pod
        if key not in self._known:
            if self._asked >= MAX_ASKED:
                raise Unavailable(f"more than {MAX_ASKED} pods at once: later")
            self._asked += 1
            self._known[key] = self._ask(namespace, pod)
        return self._known[key]

    def keep(self, pods: Collection[tuple[str, str]]) -> None:
        """Forget all other pods; as many as the bound may be asked about again."""
        self._known = {key: value for key, value in self._known.items() if key in pods}
        self._asked = 0

    def _ask(self, namespace: str, pod: str) -> str:
        path = f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{quote(pod, safe='')}"
        try:
            status, body = self._get(path)
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"API server {self._host}: {error}") from error
        if status == http.HTTPStatus.NOT_FOUND:
            return ""  # it went between two answers
        if status != http.HTTPStatus.OK:
            hint = ": may not get pods" if status in (401, 403) else ""
            raise Unavailable(f"API server {self._host} answers {status}{hint}")
        if len(body) > MAX_BYTES:
            raise Unavailable(f"API server {self._host}: more than {MAX_BYTES} bytes")
        try:
            labels = _DECODER.decode(body).metadata.labels or {}
        except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unavailable(f"API server {self._host}: {error}") from error
        value = labels.get(self._label, "")
        return value if _VALUE.fullmatch(value) else ""

    def _get(self, path: str) -> tuple[int, bytes]:
        # Read anew each time: the kubelet replaces the token while it runs.
        token = (self._account / "token").read_text().strip()
        context = ssl.create_default_context(cafile=str(self._account / "ca.crt"))
        server = http.client.HTTPSConnection(
            self._host, self._port, timeout=ANSWER_S, context=context
        )
        try:
            server.request(
                "GET", path, headers={"Authorization": f"Bearer {token}", "Accept": _KIND}
            )
            answer = server.getresponse()
            return answer.status, answer.read(MAX_BYTES + 1)
        finally:
            server.close()
