"""The cluster's API server, asked with the token that Kubernetes mounts into the agent's pod.

What may be read is decided there, by RBAC; without a mounted token it is nothing at all.
"""

import http.client
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pipeline.errors import Unavailable

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where Kubernetes mounts a pod's token and the authority that signed the API server."""
ANSWER_S: Final = 3.0


class Denied(Unavailable):
    """The agent may not ask for this: it has no token, or the token gives no right to it."""


class Missing(Unavailable):
    """What was asked for is not there."""


class ApiServer:
    """An API server, connected anew for each question."""

    def __init__(self, host: str, port: int, account: Path = ACCOUNT) -> None:
        self._host, self._port = host, port
        self._account = account

    def get(self, path: str, accept: str, max_bytes: int) -> bytes:
        """An object's or a list's text. Raises Denied, Missing, else Unavailable."""
        try:
            status, body = self._ask(path, accept, max_bytes)
        # A header's value that no header may have is a ValueError.
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise Unavailable(f"API server {self._host}: {error}") from error
        said = f"API server {self._host} answers {status}"
        if status in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
            raise Denied(said)
        if status == http.HTTPStatus.NOT_FOUND:
            raise Missing(said)
        if status != http.HTTPStatus.OK:
            raise Unavailable(said)
        if len(body) > max_bytes:
            raise Unavailable(f"API server {self._host}: more than {max_bytes} bytes")
        return body

    def _ask(self, path: str, accept: str, max_bytes: int) -> tuple[int, bytes]:
        file = self._account / "token"
        try:
            # Read anew each time: the kubelet replaces the token while it runs.
            token = file.read_text().strip()
        except FileNotFoundError as error:
            raise Denied(f"{file} is not there: no token is mounted") from error
        context = ssl.create_default_context(cafile=str(self._account / "ca.crt"))
        server = http.client.HTTPSConnection(
            self._host, self._port, timeout=ANSWER_S, context=context
        )
        try:
            server.request(
                "GET", path, headers={"Authorization": f"Bearer {token}", "Accept": accept}
            )
            answer = server.getresponse()
            return answer.status, answer.read(max_bytes + 1)
        finally:
            server.close()


def in_cluster(account: Path = ACCOUNT, env: Mapping[str, str] = os.environ) -> ApiServer | None:
    """The API server of the cluster in which this runs as a pod; None elsewhere."""
    host, port = env.get("KUBERNETES_SERVICE_HOST"), env.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not port.isdecimal():
        return None
    return ApiServer(host, int(port), account)
