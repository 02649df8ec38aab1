"""Activity of a GPU or a GPU instance between two looks at its profiling counters (GPM, Hopper+)."""

import ctypes
from array import array
from collections.abc import Mapping
from ctypes import byref, c_uint

from agents import nvml
from agents.nvml_device import RETRY_S, put

GPM_METRICS = {"sm_active_pct": 2, "tensor_active_pct": 5, "dram_active_pct": 10}
"""Metric to GPM id; percent, kept with one decimal."""

_QUIET_PERIODS = 2  # an average over more than that is not this tick's
_TENTHS = 10


def is_supported(library: nvml.Library, device: object) -> bool:
    """Whether the GPU has GPM. Raises GpuLost, DriverLost."""
    support = nvml.GpmSupport(version=1)
    code = library.call("nvmlGpmQueryDeviceSupport", device, byref(support))
    return bool(code == nvml.SUCCESS and support.isSupportedDevice)


class Activity:
    """The two samples of a GPU (`instance` None), or of one of its GPU instances."""

    def __init__(
        self, library: nvml.Library, device: object, period_ms: int, instance: int | None = None
    ) -> None:
        self._library = library
        self._device = device
        self._instance = None if instance is None else c_uint(instance)
        self._longest_ms = _QUIET_PERIODS * period_ms
        self._at_ms: int | None = None
        self._again_s = 0.0
        self._samples = [nvml.GpmSample(), nvml.GpmSample()]
        for sample in self._samples:
            if library.call("nvmlGpmSampleAlloc", byref(sample)) != nvml.SUCCESS:
                self._again_s = float("inf")
        self._request = nvml.GpmMetrics(version=1, numMetrics=len(GPM_METRICS))
        for at, number in enumerate(GPM_METRICS.values()):
            self._request.metrics[at].metricId = number

    def read(
        self, tick_ms: int, now_s: float, row: "array[int]", columns: Mapping[str, int]
    ) -> None:
        """Fill the row's activity, in tenths of a percent. Raises GpuLost, DriverLost."""
        if now_s < self._again_s:
            return
        self._samples.reverse()
        code = self._take(self._samples[1])
        before_ms, self._at_ms = self._at_ms, tick_ms if code == nvml.SUCCESS else None
        if code in nvml.UNSUPPORTED:
            self._again_s = now_s + RETRY_S
        if code != nvml.SUCCESS or before_ms is None or tick_ms - before_ms > self._longest_ms:
            return
        self._request.sample1, self._request.sample2 = self._samples
        if self._library.call("nvmlGpmMetricsGet", byref(self._request)) != nvml.SUCCESS:
            return
        for at, metric in enumerate(GPM_METRICS):
            entry = self._request.metrics[at]
            if metric in columns and entry.nvmlReturn == nvml.SUCCESS:
                put(row, columns[metric], entry.value * _TENTHS)

    def _take(self, sample: ctypes.c_void_p) -> int:
        if self._instance is None:
            return self._library.call("nvmlGpmSampleGet", self._device, sample)
        return self._library.call("nvmlGpmMigSampleGet", self._device, self._instance, sample)

    def close(self) -> None:
        """Give the samples back to the driver."""
        self._again_s = float("inf")
        for sample in self._samples:
            if sample:
                self._library.call("nvmlGpmSampleFree", sample)
        self._samples = [nvml.GpmSample(), nvml.GpmSample()]
