"""The console's pages and its small API; SQL comes from the generated dashboards alone."""

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread
import msgspec
from prometheus_client import generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dashboards import console_query as queries
from dashboards.console_guard import Guard, Meters, refusal
from dashboards.console_pages import Dashboard, Query
from dashboards.macros import Span
from pipeline.errors import MegawatchError, Refuse, Retry
from pipeline.store import Rows, Store
from pipeline.web import Address

WEB: Final = Path(__file__).with_name("web")
CONNECTIONS: Final = 4
MAX_WAITING: Final = 64
MAX_WAIT_S: Final = 20.0
MAX_VALUE: Final = 1000
MAX_OPTIONS: Final = 20_000
MAX_ANNOTATIONS: Final = 500
_LAST_MS: Final = 4_294_967_295_000
"""Of DateTime."""
_TYPES: Final = {
    ".css": "text/css", ".html": "text/html", ".js": "text/javascript",
    ".json": "application/json", ".svg": "image/svg+xml",
}  # fmt: skip
_METRICS: Final = "text/plain; version=0.0.4; charset=utf-8"
_T = TypeVar("_T")
_NEWEST: Final = "SELECT toInt64(toUnixTimestamp(max(ts))) * 1000, count() FROM power_seconds"


class _Asked(msgspec.Struct, frozen=True, rename={"from_ms": "from", "until_ms": "to"}):
    """The range of a request."""

    from_ms: int
    until_ms: int
    points: int = 1000
    panel: int = 0

    @property
    def span(self) -> Span:
        """As the macros take it."""
        if not 0 <= self.from_ms < self.until_ms <= _LAST_MS:
            raise Refuse("`from` must be before `to`, both in milliseconds since 1970")
        if not 1 <= self.points <= 10_000:
            raise Refuse("`points` must be from 1 to 10000")
        step_s = queries.interval_s(self.from_ms, self.until_ms, self.points)
        return Span(self.from_ms, self.until_ms, step_s)


class _Pages:
    """The endpoints, over what they share."""

    def __init__(
        self,
        stores: queries.Stores,
        dashboards: Mapping[str, Dashboard],
        files: "_Files",
        meters: Meters,
    ) -> None:
        self._stores, self._dashboards = stores, dashboards
        self._files, self._meters = files, meters
        self._slots = anyio.CapacityLimiter(CONNECTIONS)
        self._waiting = 0

    async def index(self, request: Request) -> Response:
        """The page; what it shows is in its address."""
        status = 200 if request.path_params.get("uid", "") in {"", *self._dashboards} else 404
        return self._files.answer(request, "index.html", status)

    async def dashboards(self, _: Request) -> Response:
        """What there is."""
        return _json(
            [
                {"uid": d.uid, "title": d.title, "description": d.description}
                for d in self._dashboards.values()
            ]
        )

    async def dashboard(self, request: Request) -> Response:
        """The generated file as it is."""
        return Response(self._found(request).text, media_type="application/json")

    async def query(self, request: Request) -> Response:
        """A panel's answer as columns."""
        _, span, result = await self._panel(request)
        return _json(queries.answer(result, span.interval_s))

    async def csv(self, request: Request) -> Response:
        """A panel's answer as a file."""
        query, _, result = await self._panel(request)
        name = re.sub(r"[^a-z0-9]+", "-", query.name.lower()).strip("-") or "panel"
        headers = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
        return Response(queries.csv(result), media_type="text/csv", headers=headers)

    async def variables(self, request: Request) -> Response:
        """Options of every variable; each query sees the choices that stand before it."""
        dashboard, asked, chosen = self._found(request), _asked(request), _values(request)
        span = asked.span

        def work(store: Store) -> list[dict[str, Any]]:
            out = []
            values: dict[str, str] = {}
            for variable in dashboard.variables:
                found = queries.rows(store, variable.sql, span, values).rows[:MAX_OPTIONS]
                options = [(str(row[0]), str(row[-1])) for row in found]
                known = {value for value, _ in options}
                value = chosen.get(variable.name, "")
                values[variable.name] = value if value in known else next(iter(options), ("",))[0]
                out.append(
                    {
                        "name": variable.name, "label": variable.label, "options": options,
                        "value": values[variable.name],
                    }
                )  # fmt: skip
            return out

        return _json(await self._run(request, work))

    async def annotations(self, request: Request) -> Response:
        """Moments of every annotation, the newest ones where there are too many."""
        dashboard, span, values = self._found(request), _asked(request).span, _values(request)

        def work(store: Store) -> list[dict[str, Any]]:
            return [
                _annotation(one, queries.rows(store, one.sql, span, values), span)
                for one in dashboard.annotations
            ]

        return _json(await self._run(request, work))

    async def status(self, request: Request) -> Response:
        """How fresh the store is: its newest second, null when it is empty."""
        newest_ms, count = (
            await self._run(request, lambda s: s.query(_NEWEST, None, **queries.LIMITS))
        ).rows[0]
        return _json({"newest_ms": newest_ms if count else None})

    async def health(self, _: Request) -> Response:
        """That requests are answered."""
        return Response("ok\n", media_type="text/plain")

    async def metrics(self, _: Request) -> Response:
        """Prometheus text."""
        return Response(generate_latest(self._meters.registry), headers={"Content-Type": _METRICS})

    def _found(self, request: Request) -> Dashboard:
        uid = request.path_params["uid"]
        if uid not in self._dashboards:
            raise HTTPException(404, f"there is no dashboard {uid[:100]!r}")
        return self._dashboards[uid]

    async def _panel(self, request: Request) -> tuple[Query, Span, Rows]:
        dashboard, asked, values = self._found(request), _asked(request), _values(request)
        query, span = dashboard.panels.get(asked.panel), asked.span
        if query is None:
            raise HTTPException(404, f"{dashboard.title} has no panel {asked.panel} with a query")
        result = await self._run(request, lambda s: queries.rows(s, query.sql, span, values))
        return query, span, result

    async def _run(self, request: Request, work: Callable[[Store], _T]) -> _T:
        """Work on a connection in a thread, when its turn comes and if somebody still wants it."""
        if self._waiting >= MAX_WAITING:
            self._meters.refused.inc()
            raise HTTPException(503, f"the console is busy: {self._waiting} queries wait already")
        self._waiting += 1
        self._meters.waiting.set(self._waiting)
        try:
            await self._turn(request)
            try:
                return await anyio.to_thread.run_sync(self._timed, work)
            finally:
                self._slots.release_on_behalf_of(request)
        except Retry:
            self._meters.failed.inc()
            raise
        finally:
            self._waiting -= 1
            self._meters.waiting.set(self._waiting)

    async def _turn(self, request: Request) -> None:
        """Wait for a slot, watching whether the asker leaves."""

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            gone.append(True)
            group.cancel_scope.cancel()

        gone: list[bool] = []
        taken = False
        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            with anyio.move_on_after(MAX_WAIT_S):
                await self._slots.acquire_on_behalf_of(request)
                taken = True
            group.cancel_scope.cancel()
        if taken:
            return
        if gone:
            self._meters.left.inc()
            raise HTTPException(499, "nobody waits for this answer any more")
        self._meters.refused.inc()
        raise HTTPException(503, f"the console is busy: no turn within {MAX_WAIT_S:.0f} s")

    def _timed(self, work: Callable[[Store], _T]) -> _T:
        with self._meters.query_seconds.time(), self._stores.lent() as store:
            return work(store)


def _asked(request: Request) -> _Asked:
    given = {n: v for n, v in request.query_params.items() if not n.startswith("var-")}
    unknown = sorted(set(given) - {"from", "to", "points", "panel"})
    if unknown:
        raise Refuse(f"unknown parameter {unknown[0][:100]!r}")
    try:
        return msgspec.convert(given, _Asked, strict=False)
    except msgspec.ValidationError as error:
        raise Refuse(f"a parameter is missing or no number: {error}") from error


def _values(request: Request) -> dict[str, str]:
    """Choices of variables by name; they are bound as parameters, whatever they say."""
    items = request.query_params.items()
    values = {n.removeprefix("var-"): v for n, v in items if n.startswith("var-")}
    if any(len(value) > MAX_VALUE for value in values.values()):
        raise Refuse(f"a variable's value is longer than {MAX_VALUE} characters")
    return values


def _annotation(annotation: Query, result: Rows, span: Span) -> dict[str, Any]:
    answer = queries.answer(result, span.interval_s)
    columns = dict(zip(answer.names, answer.columns, strict=True))
    nothing = [None] * len(result.rows)
    # An answer without rows has no columns either.
    times, ends, texts = (columns.get(name, nothing) for name in ("time", "timeEnd", "text"))
    events = sorted(zip(times, ends, texts, strict=True), key=lambda event: event[0])
    return {
        "name": annotation.name,
        "color": annotation.color,
        "events": events[max(0, len(events) - MAX_ANNOTATIONS) :],
        "left_out": max(0, len(events) - MAX_ANNOTATIONS),
    }


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, error.detail, error.headers)


async def _own_error(_: Request, error: Exception) -> Response:
    return refusal(400 if isinstance(error, Refuse) else 500, str(error))


async def _mistake(_: Request, error: Exception) -> Response:  # noqa: ARG001, Starlette logs it
    return refusal(500, "the console failed: its log says more")


def application(
    stores: queries.Stores,
    dashboards: Mapping[str, Dashboard],
    address: Address,
    token: str = "",
) -> Starlette:
    """The console over connections and dashboards, for requests to an address."""
    meters = Meters()
    files = _Files(WEB)
    pages = _Pages(stores, dashboards, files, meters)
    return Starlette(
        routes=[
            Route("/", pages.index),
            Route("/d/{uid}", pages.index),
            Route("/api/dashboards", pages.dashboards),
            Route("/api/dashboards/{uid}", pages.dashboard),
            Route("/api/query/{uid}", pages.query),
            Route("/api/csv/{uid}", pages.csv),
            Route("/api/variables/{uid}", pages.variables),
            Route("/api/annotations/{uid}", pages.annotations),
            Route("/api/status", pages.status),
            Route("/healthz", pages.health),
            Route("/metrics", pages.metrics),
            Route("/static/{name:path}", files.get),
        ],
        middleware=[Middleware(Guard, address=address, token=token, meters=meters)],
        exception_handlers={
            HTTPException: _http_error,
            MegawatchError: _own_error,
            Exception: _mistake,
        },
    )


class _Files:
    """The page's files, held in memory: the address picks one, no path is ever made of it."""

    def __init__(self, folder: Path) -> None:
        self._files = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        self._tags = {
            name: f'"{hashlib.sha256(body).hexdigest()[:16]}"' for name, body in self._files.items()
        }

    async def get(self, request: Request) -> Response:
        """A file by its name under /static/."""
        name: str = request.path_params["name"]
        if name not in self._files:
            raise HTTPException(404, "there is no such file")
        return self.answer(request, name)

    def answer(self, request: Request, name: str, status: int = 200) -> Response:
        """A file that a browser asks about every time, and mostly has already."""
        headers = {"Cache-Control": "no-cache", "ETag": self._tags[name]}
        if status == 200 and request.headers.get("if-none-match") == self._tags[name]:
            return Response(status_code=304, headers=headers)
        kind = _TYPES.get(Path(name).suffix, "text/plain")
        return Response(self._files[name], status, headers, kind)
