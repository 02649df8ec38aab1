"""NVML through nvidia-ml-py, the only module that knows it: calls timed, errors sorted by duty.

Calls go to the library's symbols directly, with buffers made once: the wrappers of nvidia-ml-py
allocate at each call, which costs twenty times the call itself. Only the child process of NVML
imports this module.
"""

import ctypes
import time
from collections.abc import Callable

import pynvml

from pipeline.errors import Unavailable

SUCCESS = 0
FUNCTION_NOT_FOUND = 13
TIMEOUT = 10

UNSUPPORTED = frozenset((2, 3, 4, FUNCTION_NOT_FOUND, 22, 25, 26))
"""This GPU or driver does not have it: invalid argument (a field that an old driver does not
know), not supported, no permission, no such function, not on this vGPU, another version of the
struct, deprecated. Asked again rarely."""
GPU_GONE = frozenset((8, 11, 15, 16, 28))
"""Power cable, interrupts, lost, reset required, not found: nothing of this GPU can be read."""
DRIVER_GONE = frozenset((1, 9, 12, 17, 18))
"""Uninitialised, not loaded, no library, refused by the operating system, another version."""

_SENTENCES = {
    1: "NVML was shut down under the agent; it starts anew",
    4: "no permission to use the GPUs: let the agent read and write /dev/nvidia*",
    9: "the NVIDIA driver is not loaded: load it (modprobe nvidia), or choose another source",
    12: "libnvidia-ml.so.1 was not found: install the NVIDIA driver, or choose another source "
    "(simulator, replay or dcgm)",
    17: "the operating system refuses the NVIDIA driver (a container without the GPU?)",
    18: "the NVIDIA library and the loaded driver are of different versions: an upgrade is half "
    "done, reload the driver or reboot the node",
}

Device = pynvml.c_nvmlDevice_t
EventSet = pynvml.c_nvmlEventSet_t
GpmSample = pynvml.c_nvmlGpmSample_t


def _plain(struct: type[ctypes.Structure]) -> type[ctypes.Structure]:
    """The same struct without nvidia-ml-py's conversion at each access, ten times the access."""
    return type(struct.__name__, (struct,), {"__getattribute__": ctypes.Structure.__getattribute__})


EventData = _plain(pynvml.c_nvmlEventData_t)
FieldValue = _plain(pynvml.c_nvmlFieldValue_t)
GpmMetrics = pynvml.c_nvmlGpmMetricsGet_t
GpmSupport = _plain(pynvml.c_nvmlGpmSupport_t)
Margin = _plain(pynvml.c_nvmlMarginTemperature_v1_t)
Memory = _plain(pynvml.c_nvmlMemory_t)
MemoryV2 = _plain(pynvml.c_nvmlMemory_v2_t)
PciInfo = _plain(pynvml.nvmlPciInfo_t)
Temperature = _plain(pynvml.c_nvmlTemperature_v1_t)
Utilization = _plain(pynvml.c_nvmlUtilization_t)


class Lost(Unavailable):
    """Nothing can be read; `code` is NVML's reason."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class GpuLost(Lost):
    """One GPU cannot be read at all."""


class DriverLost(Lost):
    """No GPU can be read until this process is replaced by a new one."""


def sentence(code: int) -> str:
    """What a user reads of an NVML error that concerns the whole node."""
    return "NVML: " + _SENTENCES.get(code, f"error {code}, {pynvml.NVMLError(code)}")


class Library:
    """The initialised library. Raises DriverLost when it cannot be had.

    `costs` holds, by symbol, the number of calls, their seconds in all and of the longest.
    """

    def __init__(self) -> None:
        self.costs: dict[str, list[float]] = {}
        self._functions: dict[str, Callable[..., int] | None] = {}
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise DriverLost(error.value, sentence(error.value)) from error

    def function(self, name: str) -> Callable[..., int] | None:
        """A symbol of the library; None where this driver does not have it."""
        if name not in self._functions:
            self._functions[name] = getattr(pynvml.nvmlLib, name, None)
        return self._functions[name]

    def call(self, name: str, *arguments: object) -> int:
        """The return code of a call that left everything as it should be, or just not this value.

        Raises GpuLost or DriverLost where nothing more can be had from the GPU, or from any.
        """
        function = self.function(name)
        if function is None:
            return FUNCTION_NOT_FOUND
        began_s = time.perf_counter()
        code = function(*arguments)
        took_s = time.perf_counter() - began_s
        cost = self.costs.get(name)
        if cost is None:
            cost = self.costs[name] = [0, 0.0, 0.0]
        cost[0] += 1
        cost[1] += took_s
        cost[2] = max(cost[2], took_s)
        if code != SUCCESS:
            check(code)
        return code

    def text(self, name: str, device: object) -> str:
        """A string of a device, empty where it has none."""
        buffer = ctypes.create_string_buffer(96)
        code = self.call(name, device, buffer, ctypes.c_uint(len(buffer)))
        return buffer.value.decode("utf-8", "replace") if code == SUCCESS else ""

    def driver_version(self) -> str:
        """The driver's version, as 590.48.01."""
        buffer = ctypes.create_string_buffer(96)
        code = self.call("nvmlSystemGetDriverVersion", buffer, ctypes.c_uint(len(buffer)))
        return buffer.value.decode("utf-8", "replace") if code == SUCCESS else ""

    def device_count(self) -> int:
        """How many GPUs the driver has. Raises DriverLost."""
        count = ctypes.c_uint()
        code = self.call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        if code != SUCCESS:
            raise DriverLost(code, sentence(code))
        return count.value

    def device(self, index: int) -> ctypes.c_void_p:
        """The handle of a GPU: this call may take seconds. Raises GpuLost."""
        handle: ctypes.c_void_p = Device()
        code = self.call(
            "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle)
        )
        if code != SUCCESS:
            raise GpuLost(code, f"GPU {index}: {sentence(code)}")
        return handle

    def device_by_uuid(self, uuid: str) -> ctypes.c_void_p:
        """The handle of a GPU that was lost and may be back. Raises GpuLost."""
        handle: ctypes.c_void_p = Device()
        code = self.call("nvmlDeviceGetHandleByUUID", uuid.encode(), ctypes.byref(handle))
        if code != SUCCESS:
            raise GpuLost(code, f"GPU {uuid}: {sentence(code)}")
        return handle

    def shutdown(self) -> None:
        """Let go of the driver; the shared object itself stays mapped until the process ends."""
        function = self.function("nvmlShutdown")
        if function is not None:
            function()


def check(code: int) -> None:
    """Raises for a code that concerns a whole GPU or the whole driver."""
    if code in GPU_GONE:
        raise GpuLost(code, sentence(code))
    if code in DRIVER_GONE:
        raise DriverLost(code, sentence(code))


def address(handle: object) -> int:
    """The pointer behind a handle, by which equal handles are known."""
    return ctypes.cast(handle, ctypes.c_void_p).value or 0  # type: ignore[arg-type]
