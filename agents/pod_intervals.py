"""Intervals of holding that write themselves: what is seen, against what was seen before.

An interval begins when a claim is first seen and ends when it is first not seen, so both are late
by a poll at most. An end is told once two answers in a row are without the claim, since a kubelet
that has just begun does not know all its pods; a pod that was away for one is one interval.
What an agent asserted is kept in a file beside the spool. What went while no agent looked is ended
at the last time it was seen: nobody is billed for time that nobody watched.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from agents.pod_devices import Claim
from pipeline.errors import Unavailable
from pipeline.records import Allocation, TimeMs

SOURCE: Final = "kubernetes"
MAX_FILE_BYTES: Final = 16 << 20

Key = tuple[str, tuple[int, ...], int]
"""Workload, GPUs and their share: with another one of these it is another interval."""
TenantOf = Callable[[Claim], str | None]
"""Whose pods these are; None: not known now."""


class Interval(msgspec.Struct, frozen=True):
    """An open interval; without a tenant it was not told yet.

    seen_ms: when its pod was last seen; missed_ms: when it was first not seen since, or 0.
    """

    record: Allocation
    seen_ms: TimeMs
    missed_ms: TimeMs = 0

    @property
    def key(self) -> Key:
        """What makes it this one."""
        return self.record.workload, self.record.gpus, self.record.share_ppm


class State(msgspec.Struct, frozen=True):
    """What is in the file: open intervals, and ends of which the spool may not know yet."""

    open: tuple[Interval, ...] = ()
    ended: tuple[Allocation, ...] = ()


class Step(msgspec.Struct, frozen=True):
    """The intervals that are open now, and what is to be told of those that began or ended."""

    open: dict[Key, Interval]
    records: list[Allocation]


_DECODER: Final = msgspec.json.Decoder(State)


def follow(
    before: Mapping[Key, Interval],
    claims: Iterable[Claim],
    kept: frozenset[str],
    away: frozenset[Key],
    tenant_of: TenantOf,
    begin: Callable[[Claim], Allocation],
    now_ms: int,
) -> Step:
    """One poll further.

    kept: workloads of which not every device could be placed: what is open of them stays as it
    is; away: what was open when the agent began and was not seen since; begin: the record of a
    claim from now on, without a tenant.
    """
    step = Step({}, [])
    stay = kept & {interval.record.workload for interval in before.values()}
    for claim in claims:
        if claim.workload in stay:
            continue
        key = claim.workload, claim.gpus, claim.share_ppm
        old = before.get(key)
        record = begin(claim) if old is None else old.record
        if not record.tenant and (tenant := tenant_of(claim)):
            record = msgspec.structs.replace(record, tenant=tenant, asserted_at_ms=now_ms)
            step.records.append(record)
        # A clock that went back has not seen the pod before it began.
        seen_ms = max(now_ms, record.from_ms)
        step.open[key] = Interval(record, seen_ms)
    for key, interval in before.items():
        if key in step.open:
            continue
        if interval.record.workload in stay:
            step.open[key] = interval
            continue
        if not interval.missed_ms:
            step.open[key] = msgspec.structs.replace(interval, missed_ms=now_ms)
            continue
        until_ms = interval.seen_ms if key in away else interval.missed_ms
        step.records.append(ended(interval, until_ms, now_ms))
    return step


def ended(interval: Interval, until_ms: int, now_ms: int) -> Allocation:
    """An interval's last record; one whose tenant never became known is its namespace's."""
    record = interval.record
    return msgspec.structs.replace(
        record,
        tenant=record.tenant or record.account,
        until_ms=max(until_ms, interval.seen_ms),
        # The newest assertion counts, also after the clock went back.
        asserted_at_ms=max(now_ms, record.asserted_at_ms + 1),
    )


def load(path: Path) -> State:
    """The file's content, nothing if there is none. Raises Unavailable if it is damaged."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return State()
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
    try:
        if len(data) > MAX_FILE_BYTES:
            raise Unavailable(f"{path}: more than {MAX_FILE_BYTES} bytes")
        return _DECODER.decode(data)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unavailable(f"{path}: {error}") from error


def save(path: Path, state: State) -> None:
    """All or nothing, and on the disk. Raises OSError."""
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        file.write(msgspec.json.encode(state))
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
