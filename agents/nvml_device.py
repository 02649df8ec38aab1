"""Reading one GPU: which metric comes from which field or call, and what this GPU does not have.

What is not supported is remembered per GPU and call or field, and asked again every RETRY_S: a
driver feature, MIG or confidential mode may have been switched since. A metric with several
origins takes the first that answers, in the order of the table.
"""

import ctypes
from array import array
from collections.abc import Callable, Mapping, Sequence
from ctypes import byref, c_int, c_uint, c_ulonglong

from agents import nvml
from agents.nvml_frame import NOT_REPORTED

RETRY_S = 600.0

_ALL_LINKS = 0xFFFFFFFF
_GPU, _MODULE = 0, 1
_UNKNOWN_PSTATE = 32

FIELDS: dict[str, tuple[tuple[int, int], ...]] = {
    "power_w": ((185, _GPU),),
    "power_instant_w": ((186, _GPU),),
    "module_power_w": ((185, _MODULE),),
    "energy_j": ((83, 0),),
    "temp_mem_c": ((82, 0),),
    "throttle_power_cap_ms": ((74, 0),),
    "throttle_sync_boost_ms": ((76, 0),),
    "throttle_sw_thermal_ms": ((269, 0),),
    "throttle_hw_thermal_ms": ((270, 0),),
    "throttle_power_brake_ms": ((271, 0),),
    "pcie_tx_mib": ((197, 0),),
    "pcie_rx_mib": ((198, 0),),
    "nvlink_tx_mib": ((138, _ALL_LINKS),),
    "nvlink_rx_mib": ((139, _ALL_LINKS),),
    "power_limit_w": ((190, _GPU),),
    "power_limit_requested_w": ((192, _GPU),),
    "power_limit_default_w": ((189, _GPU),),
    "power_limit_max_w": ((188, _GPU),),
    "ecc_corrected_volatile": ((3, 0),),
    "ecc_uncorrected_volatile": ((4, 0),),
    "ecc_corrected_aggregate": ((5, 0),),
    "ecc_uncorrected_aggregate": ((6, 0),),
    "remap_corrected_rows": ((142, 0),),
    "remap_uncorrected_rows": ((143, 0),),
    "remap_pending": ((144, 0),),
    "remap_failure": ((145, 0),),
    "retired_pages_sbe": ((29, 0),),
    "retired_pages_dbe": ((30, 0),),
    "retired_pages_pending": ((31, 0),),
    "pcie_replays": ((94, 0),),
    "nvlink_crc_errors": ((38, 0), (45, 0)),
    "nvlink_replay_errors": ((52, 0),),
    "nvlink_recovery_errors": ((59, 0),),
    "recovery_action": ((230, 0),),
}
"""Metric to fields (id, scope); those of one metric are added up."""

NOT_UNDER_MIG = ("util_gpu_pct", "util_mem_pct", "util_encoder_pct", "util_decoder_pct")

_UNION = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # by valueType
_LARGEST = (1 << 63) - 1


class Getter:
    """A call with its own buffers, and the metrics that it leaves in them."""

    __slots__ = ("arguments", "name", "values")

    def __init__(self, name: str, *arguments: object, **values: Callable[[], int | None]) -> None:
        self.name = name
        self.arguments = arguments
        self.values = values


def getters() -> tuple[Getter, ...]:
    """Every call beside the fields, in order of preference."""
    number, other = c_uint(), c_uint()
    mask = c_ulonglong()
    memory = nvml.MemoryV2(version=ctypes.sizeof(nvml.MemoryV2) | 2 << 24)
    old_memory = nvml.Memory()
    temperature = nvml.Temperature(version=ctypes.sizeof(nvml.Temperature) | 1 << 24)
    margin = nvml.Margin(version=ctypes.sizeof(nvml.Margin) | 1 << 24)
    busy = nvml.Utilization()
    one, two = byref(number), byref(other)

    def first() -> int:
        return number.value

    return (
        Getter("nvmlDeviceGetPowerUsage", one, power_w=first),
        Getter("nvmlDeviceGetTotalEnergyConsumption", byref(mask), energy_j=lambda: mask.value),
        Getter("nvmlDeviceGetTemperatureV", byref(temperature),
               temp_gpu_c=lambda: temperature.temperature),
        Getter("nvmlDeviceGetTemperature", c_int(0), one, temp_gpu_c=first),
        Getter("nvmlDeviceGetMarginTemperature", byref(margin),
               temp_margin_c=lambda: margin.marginTemperature),
        Getter("nvmlDeviceGetUtilizationRates", byref(busy),
               util_gpu_pct=lambda: busy.gpu, util_mem_pct=lambda: busy.memory),
        Getter("nvmlDeviceGetMemoryInfo_v2", byref(memory), mem_used_mib=lambda: memory.used,
               mem_total_mib=lambda: memory.total, mem_reserved_mib=lambda: memory.reserved),
        Getter("nvmlDeviceGetMemoryInfo", byref(old_memory),
               mem_used_mib=lambda: old_memory.used, mem_total_mib=lambda: old_memory.total),
        Getter("nvmlDeviceGetClockInfo", c_int(1), one, clock_sm_mhz=first),
        Getter("nvmlDeviceGetClockInfo", c_int(2), one, clock_mem_mhz=first),
        Getter("nvmlDeviceGetPerformanceState", one,
               pstate=lambda: number.value if number.value < _UNKNOWN_PSTATE else None),
        Getter("nvmlDeviceGetCurrentClocksEventReasons", byref(mask),
               throttle_reasons=lambda: mask.value),
        Getter("nvmlDeviceGetCurrentClocksThrottleReasons", byref(mask),
               throttle_reasons=lambda: mask.value),
        Getter("nvmlDeviceGetEnforcedPowerLimit", one, power_limit_w=first),
        Getter("nvmlDeviceGetPowerManagementLimit", one, power_limit_requested_w=first),
        Getter("nvmlDeviceGetPowerManagementDefaultLimit", one, power_limit_default_w=first),
        Getter("nvmlDeviceGetPowerManagementLimitConstraints", one, two,
               power_limit_max_w=lambda: other.value),
        Getter("nvmlDeviceGetFanSpeed_v2", c_uint(0), one, fan_pct=first),
        Getter("nvmlDeviceGetEncoderUtilization", one, two, util_encoder_pct=first),
        Getter("nvmlDeviceGetDecoderUtilization", one, two, util_decoder_pct=first),
        Getter("nvmlDeviceGetMigMode", one, two, mig_mode=first),
    )  # fmt: skip


class Fields:
    """The fields of one GPU, read in one call into an array made once."""

    def __init__(self, columns: Mapping[str, int]) -> None:
        wanted = ((columns[m], f, s) for m, fs in FIELDS.items() if m in columns for f, s in fs)
        self._wanted = tuple(wanted)
        self._again_s = 0.0
        self._lay(self._wanted)

    def _lay(self, fields: Sequence[tuple[int, int, int]]) -> None:
        self._fields = tuple(fields)
        self._array = (nvml.FieldValue * len(self._fields))()
        self._count = c_int(len(self._fields))
        self._entries = []
        for entry, (column, field, scope) in zip(self._array, self._fields, strict=True):
            entry.fieldId, entry.scopeId = field, scope
            self._entries.append((column, entry, entry.value))

    def read(self, library: nvml.Library, handle: object, row: "array[int]", now_s: float) -> None:
        """Fill the row's columns. Raises GpuLost, DriverLost."""
        if len(self._fields) < len(self._wanted) and now_s >= self._again_s:
            self._lay(self._wanted)
        if not self._fields:
            return
        code = library.call("nvmlDeviceGetFieldValues", handle, self._count, self._array)
        if code != nvml.SUCCESS:
            return
        missing = set()
        for at, (column, entry, union) in enumerate(self._entries):
            code = entry.nvmlReturn
            if code == nvml.SUCCESS:
                put(row, column, getattr(union, _UNION[min(entry.valueType, 6)]), add=True)
            elif code in nvml.UNSUPPORTED:
                missing.add(at)
            else:
                nvml.check(code)
        if missing:
            self._again_s = now_s + RETRY_S
            self._lay([field for at, field in enumerate(self._fields) if at not in missing])


def put(row: "array[int]", column: int, value: float | None, *, add: bool = False) -> None:
    """A value into the row, unless it is no number that the row can hold."""
    if value is None or value != value or not -_LARGEST <= value < _LARGEST:  # noqa: PLR0124
        return
    old = row[column] if add else NOT_REPORTED
    row[column] = round(value) if old == NOT_REPORTED else old + round(value)


class Calls:
    """The getters of one GPU, less those that it does not support."""

    def __init__(self, columns: Mapping[str, int]) -> None:
        self._getters = []
        for getter in getters():
            here = tuple((columns[m], value) for m, value in getter.values.items() if m in columns)
            if here:
                self._getters.append((getter.name, getter.arguments, here))
        self._again_s = [0.0] * len(self._getters)

    def read(self, library: nvml.Library, handle: object, row: "array[int]", now_s: float) -> None:
        """Fill columns that nothing has filled yet. Raises GpuLost, DriverLost."""
        for at, (name, arguments, values) in enumerate(self._getters):
            if now_s < self._again_s[at] or row[values[0][0]] != NOT_REPORTED:
                continue
            code = library.call(name, handle, *arguments)
            if code == nvml.SUCCESS:
                for column, value in values:
                    put(row, column, value())
            elif code in nvml.UNSUPPORTED:
                self._again_s[at] = now_s + RETRY_S


class Reader:
    """One cadence of one GPU: the wished metrics as a row of integers in the driver's units."""

    def __init__(self, metrics: Sequence[str]) -> None:
        self.columns = {metric: at for at, metric in enumerate(metrics)}
        self._blank = array("q", [NOT_REPORTED]) * len(metrics)
        self.forget()

    def forget(self) -> None:
        """Ask for everything again: what is supported may have changed."""
        self._fields = Fields(self.columns)
        self._calls = Calls(self.columns)

    def read(
        self, library: nvml.Library, handle: object, now_s: float, *, mig: bool
    ) -> "array[int]":
        """A row; what was not reported is NOT_REPORTED. Raises GpuLost, DriverLost."""
        row = self._blank[:]
        self._fields.read(library, handle, row, now_s)
        self._calls.read(library, handle, row, now_s)
        if mig:
            for metric in NOT_UNDER_MIG:
                if metric in self.columns:
                    row[self.columns[metric]] = NOT_REPORTED
        return row
