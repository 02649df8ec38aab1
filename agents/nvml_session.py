"""What the NVML child does from opening the driver on: read, answer, then the slow work in turn."""

import json
import time
from array import array
from collections.abc import Callable, Sequence

from agents import nvml, nvml_frame
from agents.nvml_events import Watch
from agents.nvml_frame import Wish
from agents.nvml_gpu import Gpu

Send = Callable[[int, bytes], None]


class Session:
    """The GPUs of the node from opening the driver on, until the process ends."""

    def __init__(self, library: nvml.Library, wish: Wish, send: Send) -> None:
        self._library = library
        self._wish = wish
        self._send = send
        self._turns = max(1, wish.slow_ms // wish.period_ms)
        self._turn = 0
        self._blank = array("q", [nvml_frame.NOT_REPORTED]) * len(wish.fast)
        self._gpus, self._missing = self._open()
        self._slow_round(self._gpus)
        self._introduce()
        self._watch = Watch(library, self._handles, self._tell_xid)
        self._watch.start()

    def close(self) -> None:
        """Stop waiting for events."""
        self._watch.stop()

    def _handles(self) -> dict[str, object]:
        return {str(gpu.identity["uuid"]): gpu.handle for gpu in self._gpus}

    def _open(self) -> tuple[list[Gpu], dict[int, int]]:
        gpus: list[Gpu] = []
        missing: dict[int, int] = {}
        for index in range(self._library.device_count()):
            try:
                gpus.append(Gpu(self._library, index, self._wish))
            except nvml.GpuLost as error:
                missing[index] = error.code
        return gpus, missing

    def _introduce(self) -> None:
        identity = {
            "driver": self._library.driver_version(),
            "gpus": [gpu.identity for gpu in self._gpus],
            "missing": self._missing,
            "instances": [(at, i.gi, i.ci) for at, g in enumerate(self._gpus) for i in g.instances],
        }
        self._send(nvml_frame.IDENTITY, json.dumps(identity).encode())

    def _tell_xid(self, xid: tuple[str, int, int | None, int | None]) -> None:
        self._send(nvml_frame.XID, json.dumps(xid).encode())

    def tick(self, tick_ms: int) -> None:
        """Read and answer, then do what may take longer. Raises DriverLost."""
        now_s = time.monotonic()
        fast, slices = array("q"), array("q")
        for gpu in self._gpus:
            row, sliced = self._read(gpu, tick_ms, now_s)
            fast.extend(row)
            slices.extend(sliced)
        status = bytes(gpu.lost_code for gpu in self._gpus)
        self._send(nvml_frame.READING, nvml_frame.pack_reading(tick_ms, status, fast, slices))
        self._afterwards(now_s)

    def _read(self, gpu: Gpu, tick_ms: int, now_s: float) -> "tuple[array[int], array[int]]":
        if not gpu.lost_code:
            try:
                return gpu.read_fast(tick_ms, now_s), gpu.read_slices(tick_ms, now_s)
            except nvml.GpuLost as error:
                gpu.lose(error.code, now_s)
        return self._blank, gpu.blank_slices()

    def _afterwards(self, now_s: float) -> None:
        count = max(1, len(self._gpus))
        due = [g for at, g in enumerate(self._gpus) if at * self._turns // count == self._turn]
        for gpu in self._gpus:
            if gpu.lost_code:
                gpu.find_again(now_s)
        stale = [gpu for gpu in self._gpus if gpu.stale_instances and gpu not in due]
        if self._slow_round(due + stale):
            self._introduce()
        self._turn = (self._turn + 1) % self._turns
        if self._turn == 0:
            self._send(nvml_frame.COST, json.dumps(self._library.costs).encode())

    def _slow_round(self, gpus: Sequence[Gpu]) -> bool:
        changed = False
        for gpu in gpus:
            if gpu.lost_code:
                continue
            now_s = time.monotonic()
            try:
                row = gpu.read_slow(now_s)
                changed |= gpu.look_for_instances()
            except nvml.GpuLost as error:
                gpu.lose(error.code, now_s)
                continue
            head = nvml_frame.SLOW_HEAD.pack(self._gpus.index(gpu))
            self._send(nvml_frame.SLOW, head + row.tobytes())
        return changed
