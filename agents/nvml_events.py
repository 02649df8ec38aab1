"""XIDs as NVML tells them: an event set, waited for in a thread of the child."""

import threading
from collections.abc import Callable
from ctypes import byref, c_uint, c_ulonglong

from agents import nvml

XID_CRITICAL = 0x8
WAIT_MS = 500
PAUSE_S = 5.0
"""After an error of the wait itself (a lost GPU makes it fail at once, again and again)."""

_NO_INSTANCE = 0xFFFFFFFF

Xid = tuple[str, int, int | None, int | None]
"""UUID of the physical GPU, XID, GPU instance, compute instance."""


class Watch(threading.Thread):
    """Tells each XID that happens from now on, until it is stopped.

    `gpus` gives the present handle of each UUID. The wait is not timed as a call: it waits.
    """

    def __init__(
        self,
        library: nvml.Library,
        gpus: Callable[[], dict[str, object]],
        tell: Callable[[Xid], None],
    ) -> None:
        super().__init__(name="nvml-events", daemon=True)
        self._library = library
        self._gpus = gpus
        self._tell = tell
        self._stop_asked = threading.Event()

    def run(self) -> None:
        """Register, wait, tell; anew after an error."""
        while not self._stop_asked.is_set():
            if not self._watch():
                self._stop_asked.wait(PAUSE_S)

    def stop(self) -> None:
        """End within a wait's length."""
        self._stop_asked.set()
        self.join(2 * WAIT_MS / 1000)

    def _watch(self) -> bool:
        wait = self._library.function("nvmlEventSetWait_v2")
        events = nvml.EventSet()
        create = self._library.function("nvmlEventSetCreate")
        if wait is None or create is None or create(byref(events)) != nvml.SUCCESS:
            return False
        try:
            uuids = {
                nvml.address(h): uuid for uuid, h in self._gpus().items() if self._add(h, events)
            }
            if not uuids:
                return False
            data = nvml.EventData()
            code = nvml.TIMEOUT
            while not self._stop_asked.is_set() and code in (nvml.SUCCESS, nvml.TIMEOUT):
                code = wait(events, byref(data), c_uint(WAIT_MS))
                if code == nvml.SUCCESS and data.eventType == XID_CRITICAL:
                    uuid = uuids.get(nvml.address(data.device), "")
                    gi, ci = _place(data.gpuInstanceId), _place(data.computeInstanceId)
                    self._tell((uuid, data.eventData, gi, ci))
            return code in (nvml.SUCCESS, nvml.TIMEOUT)
        finally:
            free = self._library.function("nvmlEventSetFree")
            if free is not None:
                free(events)

    def _add(self, handle: object, events: object) -> bool:
        supported = c_ulonglong()
        ask = self._library.function("nvmlDeviceGetSupportedEventTypes")
        register = self._library.function("nvmlDeviceRegisterEvents")
        if ask is None or register is None or ask(handle, byref(supported)) != nvml.SUCCESS:
            return False
        mask = supported.value & XID_CRITICAL
        return bool(mask) and register(handle, c_ulonglong(mask), events) == nvml.SUCCESS


def _place(instance: int) -> int | None:
    return None if instance == _NO_INSTANCE else instance
