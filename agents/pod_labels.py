"""A label of a pod, asked of the API server: the tenant, where a namespace is not one.

Only the pod's metadata is asked for, once per pod. Whoever may create pods chooses their labels:
one that decides a bill must be guarded by an admission policy.
"""

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from agents.pod_api import ACCOUNT, Denied, Missing, in_cluster
from pipeline.errors import Refuse, Unavailable

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
        server = in_cluster(account, env)
        if server is None:
            raise Refuse("[kubernetes] pod_label: KUBERNETES_SERVICE_HOST is not set: not in a pod")
        self._label = label
        self._server = server
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
            body = self._server.get(path, _KIND, MAX_BYTES)
        except Missing:
            return ""  # it went between two answers
        except Denied as error:
            raise Unavailable(f"{error}: may not get pods") from error
        try:
            labels = _DECODER.decode(body).metadata.labels or {}
        except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unavailable(f"API server: {error}") from error
        value = labels.get(self._label, "")
        return value if _VALUE.fullmatch(value) else ""
