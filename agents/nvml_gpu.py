"""One GPU of the child: who it is, its readers, its MIG instances, and whether it is lost."""

from array import array
from ctypes import byref, c_uint

from agents import nvml
from agents.nvml_device import RETRY_S, Calls, Reader
from agents.nvml_frame import NOT_REPORTED, Wish
from agents.nvml_gpm import Activity, is_supported

LOOK_AGAIN_S = 60.0
"""How often a lost GPU is asked whether it is back."""
MIG_MAX_INSTANCES = 64


class Instance:
    """A MIG compute instance; power is the device's alone."""

    def __init__(self, gi: int, ci: int, handle: object, activity: Activity | None) -> None:
        self.gi = gi
        self.ci = ci
        self.handle = handle
        self.activity = activity


class Gpu:
    """A GPU by its NVML index."""

    def __init__(self, library: nvml.Library, index: int, wish: Wish) -> None:
        self._library = library
        self._period_ms = wish.period_ms
        self.index = index
        self.handle: object = library.device(index)
        self.identity = _identity(library, index, self.handle)
        self.lost_code = 0
        self.instances: list[Instance] = []
        self.stale_instances = False
        self._look_again_s = 0.0
        self._fast = Reader(wish.fast)
        self._slow = Reader(wish.slow)
        self._mig_mode: int | None = None
        self._slices = {metric: at for at, metric in enumerate(wish.slices)}
        self._memory = Calls(self._slices)
        self._activity: Activity | None = None
        self._ask_activity_s = 0.0

    @property
    def is_mig(self) -> bool:
        """Whether the GPU is partitioned."""
        return self._mig_mode == 1

    def read_fast(self, tick_ms: int, now_s: float) -> "array[int]":
        """This tick's row. Raises GpuLost, DriverLost."""
        row = self._fast.read(self._library, self.handle, now_s, mig=self.is_mig)
        self._look_for_activity(now_s)
        if self._activity is not None:
            self._activity.read(tick_ms, now_s, row, self._fast.columns)
        return row

    def _look_for_activity(self, now_s: float) -> None:
        if self._activity is None and now_s >= self._ask_activity_s:
            self._ask_activity_s = now_s + RETRY_S
            if is_supported(self._library, self.handle):
                self._activity = Activity(self._library, self.handle, self._period_ms)

    def read_slices(self, tick_ms: int, now_s: float) -> "array[int]":
        """This tick's rows of the instances. Raises GpuLost, DriverLost."""
        rows = array("q")
        activity: dict[int, array[int]] = {}
        for instance in self.instances:
            if instance.gi not in activity:  # GPM knows GPU instances; their CIs share its answer
                activity[instance.gi] = self._blank()
                if instance.activity is not None:
                    instance.activity.read(tick_ms, now_s, activity[instance.gi], self._slices)
            row = activity[instance.gi][:]
            self._memory.read(self._library, instance.handle, row, now_s)
            self.stale_instances |= row[self._slices["mem_used_mib"]] == NOT_REPORTED
            rows.extend(row)
        return rows

    def blank_slices(self) -> "array[int]":
        """Rows of the instances of a GPU that is lost."""
        return self._blank() * len(self.instances)

    def _blank(self) -> "array[int]":
        return array("q", [NOT_REPORTED]) * len(self._slices)

    def read_slow(self, now_s: float) -> "array[int]":
        """The slow row. Raises GpuLost, DriverLost."""
        row = self._slow.read(self._library, self.handle, now_s, mig=self.is_mig)
        mode = row[self._slow.columns["mig_mode"]]
        if self._mig_mode not in (None, mode):
            self._fast.forget()
            self._slow.forget()
        self._mig_mode = mode
        self._look_for_activity(now_s)
        return row

    def look_for_instances(self) -> bool:
        """Enumerate the MIG instances; True if they are not those known so far."""
        handles = self._instance_handles() if self.is_mig else {}
        before = {(i.gi, i.ci): nvml.address(i.handle) for i in self.instances}
        self.stale_instances = False
        if before == {key: nvml.address(handle) for key, handle in handles.items()}:
            return False
        for activity in {i.activity for i in self.instances if i.activity is not None}:
            activity.close()
        meters = {
            gi: Activity(self._library, self.handle, self._period_ms, gi)
            for gi in {gi for gi, _ in handles}
            if self._activity is not None
        }
        self.instances = [
            Instance(gi, ci, handle, meters.get(gi)) for (gi, ci), handle in handles.items()
        ]
        self._memory = Calls(self._slices)
        return before.keys() != handles.keys()

    def _instance_handles(self) -> dict[tuple[int, int], object]:
        call = self._library.call
        count = self._number("nvmlDeviceGetMaxMigDeviceCount", self.handle) or 0
        handles: dict[tuple[int, int], object] = {}
        for at in range(min(count, MIG_MAX_INSTANCES)):
            handle = nvml.Device()
            name = "nvmlDeviceGetMigDeviceHandleByIndex"
            if call(name, self.handle, c_uint(at), byref(handle)) != nvml.SUCCESS:
                continue
            gi = self._number("nvmlDeviceGetGpuInstanceId", handle)
            ci = self._number("nvmlDeviceGetComputeInstanceId", handle)
            if gi is not None and ci is not None:
                handles[gi, ci] = handle
        return dict(sorted(handles.items()))

    def _number(self, name: str, handle: object) -> int | None:
        out = c_uint()
        return out.value if self._library.call(name, handle, byref(out)) == nvml.SUCCESS else None

    def lose(self, code: int, now_s: float) -> None:
        """Read it no more until it is found again."""
        self.lost_code = code
        self._look_again_s = now_s + LOOK_AGAIN_S

    def find_again(self, now_s: float) -> None:
        """Now and then, ask for a new handle of a lost GPU. Raises DriverLost."""
        if now_s < self._look_again_s:
            return
        self._look_again_s = now_s + LOOK_AGAIN_S
        try:
            self.handle = self._library.device_by_uuid(str(self.identity["uuid"]))
            self.read_slow(now_s)
        except nvml.GpuLost:
            return
        self.lost_code = 0
        self._fast.forget()
        self._slow.forget()
        self._activity = None
        self._ask_activity_s = 0.0


def _identity(library: nvml.Library, index: int, handle: object) -> dict[str, str | int]:
    pci = nvml.PciInfo()
    code = library.call("nvmlDeviceGetPciInfo_v3", handle, byref(pci))
    memory = nvml.Memory()
    known = library.call("nvmlDeviceGetMemoryInfo", handle, byref(memory)) == nvml.SUCCESS
    return {
        "index": index,
        "uuid": library.text("nvmlDeviceGetUUID", handle),
        "model": library.text("nvmlDeviceGetName", handle),
        "serial": library.text("nvmlDeviceGetSerial", handle),
        "pci_bus_id": pci.busId.decode("ascii", "replace") if code == nvml.SUCCESS else "",
        "vbios": library.text("nvmlDeviceGetVbiosVersion", handle),
        "memory_mib": memory.total >> 20 if known else 0,
    }
