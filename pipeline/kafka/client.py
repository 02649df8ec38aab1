"""Our settings as kafka-python's options, and its errors as ours."""

import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from kafka import errors
from kafka.net.compat import KafkaNetClient
from kafka.net.connection import KafkaConnection
from kafka.net.inet import KafkaNetSocket
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from pipeline.errors import MegawatchError, Refuse, Retry
from pipeline.settings import Kafka, secret

BOOTSTRAP_TIMEOUT_S: Final = 10.0
REQUEST_TIMEOUT_MS: Final = 10_000

_PROTOCOLS: Final = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_PROBE_TIMEOUT_S: Final = 2.0
_DEFAULT_PORT: Final = 9092

# What matters of the client's log is said by our errors; without a handler of the application's,
# Python would print every failed connection to standard error.
logging.getLogger("kafka").addHandler(logging.NullHandler())

Options = dict[str, Any]
_Client = TypeVar("_Client")

_BAD_LOGIN: Final = (
    errors.SaslAuthenticationFailedError,
    errors.UnsupportedSaslMechanismError,
    errors.IllegalSaslStateError,
)
_INCOMPATIBLE: Final = (errors.UnsupportedVersionError, errors.KafkaConfigurationError)


class _Socket(KafkaNetSocket):  # type: ignore[misc]
    """Closes the socket of a failed connection, which kafka-python leaves to the collector."""

    SCHEMES = ("direct",)

    async def sock_connect(
        self, net: NetworkSelector, sock: socket.socket, *where: object, **options: object
    ) -> socket.socket:
        """The connected socket."""
        try:
            return await super().sock_connect(net, sock, *where, **options)  # type: ignore[no-any-return]
        except BaseException:
            sock.close()
            raise


class _Connections(KafkaConnectionManager):  # type: ignore[misc]
    """Keeps why the last connection failed, which kafka-python only logs."""

    failure: Exception | None = None
    _watched: KafkaConnection | None = None

    def get_connection(self, *args: object, **options: object) -> KafkaConnection:
        """A connection whose end is watched."""
        connection = super().get_connection(*args, **options)
        if connection is not self._watched:
            self._watched = connection
            connection.close_future.add_errback(self._note)
        return connection

    def _note(self, error: Exception) -> None:
        # What a refused login said counts more than the disconnections around it, and an attempt
        # that the end of the bootstrap cut short says nothing: its own error tells as much.
        if not isinstance(self.failure, _BAD_LOGIN) and not isinstance(
            error, errors.RequestTimedOutError
        ):
            self.failure = error


class _Secret(str):
    """A password that does not show in the client's debug log."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


def client_options(kafka: Kafka) -> Options:
    """Options that producers, consumers and administrators share. Raises Refuse."""
    if not kafka.bootstrap.strip():
        raise Refuse("[kafka] bootstrap is empty: name a broker, as in host1:9092,host2:9092")
    if kafka.security_protocol not in _PROTOCOLS:
        raise Refuse(
            f"[kafka] security_protocol={kafka.security_protocol!r}: "
            f"valid are {', '.join(_PROTOCOLS)}"
        )
    options: Options = {
        "bootstrap_servers": [part.strip() for part in kafka.bootstrap.split(",") if part.strip()],
        "bootstrap_timeout_ms": round(BOOTSTRAP_TIMEOUT_S * 1000),
        "security_protocol": kafka.security_protocol,
        "proxy_url": "direct://",  # no proxy: chooses _Socket
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "reconnect_backoff_ms": 100,
        # A broker that is back is found within seconds; jitter keeps a site from coming at once.
        "reconnect_backoff_max_ms": 3000,
        "metadata_max_age_ms": 60_000,
    }
    if "SSL" in kafka.security_protocol.split("_"):
        options |= _tls(kafka)
    if kafka.security_protocol.startswith("SASL"):
        options |= _sasl(kafka)
    return options


def _tls(kafka: Kafka) -> Options:
    files = {
        name: getattr(kafka, name)
        for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile")
        if getattr(kafka, name)
    }
    for name, path in files.items():
        if not Path(path).is_file():
            raise Refuse(f"[kafka] {name}: there is no file {path}")
    if kafka.ssl_keyfile and not kafka.ssl_certfile:
        raise Refuse("[kafka] ssl_keyfile is given without ssl_certfile")
    return {"ssl_check_hostname": True, **files}


def _sasl(kafka: Kafka) -> Options:
    if kafka.sasl_mechanism not in _MECHANISMS:
        raise Refuse(
            f"[kafka] sasl_mechanism={kafka.sasl_mechanism!r}: valid are {', '.join(_MECHANISMS)}"
        )
    password = secret(kafka.sasl_password, kafka.sasl_password_file)
    for name, value in (("sasl_username", kafka.sasl_username), ("sasl_password_file", password)):
        if not value:
            raise Refuse(f"[kafka] {name} is empty, which {kafka.security_protocol} needs")
    return {
        "sasl_mechanism": kafka.sasl_mechanism,
        "sasl_plain_username": kafka.sasl_username,
        "sasl_plain_password": _Secret(password),
    }


def build(kind: Callable[..., _Client], options: Options) -> _Client:
    """A client of that kind; where it cannot be built, no thread or socket of it stays behind."""
    made: list[tuple[KafkaNetClient, _Connections]] = []

    def network(**configs: Any) -> KafkaNetClient:
        loop = NetworkSelector(**configs)
        connections = _Connections(loop, **configs)
        made.append((KafkaNetClient(loop, connections, **configs), connections))
        return made[-1][0]

    try:
        return kind(**options, kafka_client=network)
    except BaseException as error:
        for client, connections in made:
            client.close()
            if isinstance(error, errors.KafkaTimeoutError) and connections.failure is not None:
                raise connections.failure from error
        raise


@contextlib.contextmanager
def translated(kafka: Kafka) -> Iterator[None]:
    """Turn the client's errors into Retry and Refuse, each with one clear sentence."""
    try:
        yield
    except MegawatchError:
        raise
    except errors.KafkaError as error:
        raise as_ours(kafka, error) from error


def as_ours(kafka: Kafka, error: Exception) -> MegawatchError:
    """The error that says what whoever catches it must do."""
    where = kafka.bootstrap
    if isinstance(error, _BAD_LOGIN):
        return Refuse(
            f"Kafka at {where} refuses user {kafka.sasl_username!r}: {_text(error)}; "
            "check [kafka] sasl_username, sasl_password_file and sasl_mechanism"
        )
    if isinstance(error, errors.AuthorizationError):
        user = kafka.sasl_username or "this client"
        return Refuse(f"Kafka at {where} does not allow this to {user}: {_text(error)}")
    if isinstance(error, _INCOMPATIBLE):
        return Refuse(f"Kafka at {where} and this client do not fit: {_text(error)}")
    if isinstance(error, errors.KafkaTimeoutError | errors.KafkaConnectionError):
        return Retry(f"cannot reach Kafka at {where}: {_reason(kafka, error)}")
    return Retry(f"Kafka at {where}: {_text(error)}")


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__


def _reason(kafka: Kafka, error: Exception) -> str:
    """Why no broker answers, and what to check; looks at the addresses, which takes seconds."""
    reasons = []
    for address in client_options(kafka)["bootstrap_servers"][:3]:
        host, _, port = address.rpartition(":") if ":" in address else (address, "", "")
        try:
            number = int(port or _DEFAULT_PORT)
            socket.create_connection((host.strip("[]"), number), _PROBE_TIMEOUT_S).close()
        except ValueError:
            reasons.append(f"{address} is not host:port")
        except socket.gaierror:
            reasons.append(f"no such host as {host}")
        except TimeoutError:
            reasons.append(f"{address} does not answer")
        except OSError as problem:
            reasons.append(f"{address}: {problem.strerror or problem}".lower())
        else:
            keys = "security_protocol"
            if kafka.security_protocol.startswith("SASL"):
                keys += ", sasl_username and sasl_password_file"
            return f"{address} listens, but {_text(error)}; check [kafka] {keys}"
    return f"{', '.join(dict.fromkeys(reasons))}; check [kafka] bootstrap"
