"""The one declaration of every metric.

From this table come the wire layout, the tables, the exposition, panel and alert units and the
README's metric table. Adding a metric is one entry here and its reading in a source.

A metric travels and is stored as an integer: `decimals` says how many decimal digits of the unit
in its name that integer carries (power_w with one decimal is a whole number of 0.1 W; energy_j
with three is a whole number of millijoules). Not reported is `null_code`, never 0.
"""

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["gauge", "delta", "state", "counter"]
Cadence = Literal["fast", "slow", "slice"]
Storage = Literal["u1", "u2", "u4", "u8", "i2", "i4"]
Rollup = Literal["power_seconds", "tenant_minutes", "gpu_minutes"]
Like = Literal["", "power_w", "-temp_gpu_c", "power_w*dt_ms", "nvlink_tx_mib"]

WIDTH: Final[dict[Storage, int]] = {"u1": 1, "u2": 2, "u4": 4, "u8": 8, "i2": 2, "i4": 4}
ARRAY_CODE: Final[dict[Storage, str]] = {
    "u1": "B", "u2": "H", "u4": "I", "u8": "Q", "i2": "h", "i4": "i",
}  # fmt: skip
NULL_CODE: Final[dict[Storage, int]] = {
    storage: -(1 << (8 * width - 1)) if storage[0] == "i" else (1 << (8 * width)) - 1
    for storage, width in WIDTH.items()
}


@dataclass(frozen=True, slots=True)
class Dcgm:
    """How dcgm-exporter calls a metric: its value times `factor` is ours."""

    name: str
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured thing of a GPU (or of a MIG instance, cadence "slice").

    kind: gauge (rolled up as time-weighted mean), delta (additive since the previous tick), state
    (bitmask or enumeration), counter (cumulative for the life of a driver or a board).
    nvml: where it is read; FI = nvmlDeviceGetFieldValues field id, GPM = GPM metric id.
    dcgm, dcgm49: dcgm-exporter's name up to 4.8 and from 4.9.
    like: what predicts it; on the wire it travels as the difference, where that pays.
    """

    name: str
    kind: Kind
    cadence: Cadence
    storage: Storage
    decimals: int
    meaning: str
    nvml: str
    dcgm: Dcgm | None = None
    dcgm49: Dcgm | None = None
    rollups: tuple[Rollup, ...] = ()
    like: Like = ""

    @property
    def scale(self) -> int:
        """Stored integers per unit: 10 for power_w (0.1 W)."""
        return int(10**self.decimals)

    @property
    def null_code(self) -> int:
        """The stored integer that means "not reported"."""
        return NULL_CODE[self.storage]

    @property
    def unit(self) -> str:
        """The last word of the name: w, j, c, pct, mhz, mib, kib, ms; or empty for a count."""
        tail = self.name.rsplit("_", 1)[-1]
        return tail if tail in UNITS else ""


UNITS: Final = {
    "w": "W", "j": "J", "c": "°C", "pct": "%", "mhz": "MHz", "mib": "MiB", "ms": "ms",
}  # fmt: skip
"""Last word of a metric's name, and its symbol."""

_MINUTES: Final[tuple[Rollup, ...]] = ("tenant_minutes", "gpu_minutes")
_ALL: Final[tuple[Rollup, ...]] = ("power_seconds", *_MINUTES)
_MIB: Final = 1 / 1048576
_NS: Final = 1e-6  # nanoseconds to milliseconds


def _dev(old: str, new: str, old_factor: float = 1.0, new_factor: float = 1.0) -> tuple[Dcgm, Dcgm]:
    """Names in both dialects of dcgm-exporter, with the factors to our unit."""
    return Dcgm(f"DCGM_FI_{old}", old_factor), Dcgm(f"DCGM_FI_{new}", new_factor)


def _same(name: str, factor: float = 1.0) -> tuple[Dcgm, Dcgm]:
    """A name that 4.9 did not touch."""
    return _dev(name, name, factor, factor)


# fmt: off
FAST: Final[tuple[Metric, ...]] = (
    Metric("power_w", "gauge", "fast", "i4", 1, "Power of the GPU, average over 1 s", "FI 185 scope 0",
           *_dev("DEV_POWER_USAGE", "DEV_BOARD_POWER_WATTS"), rollups=_ALL),
    Metric("power_instant_w", "gauge", "fast", "i4", 1, "Power of the GPU at this instant", "FI 186 scope 0",
           *_dev("DEV_POWER_USAGE_INSTANT", "DEV_BOARD_POWER_RAW_WATTS"), like="power_w"),
    Metric("module_power_w", "gauge", "fast", "i4", 1, "Power of the module (Grace and GPU)", "FI 185 scope 1",
           *_same("DEV_MODULE_POWER_UTIL_CURRENT")),
    Metric("energy_j", "delta", "fast", "u4", 3, "Energy since the previous tick", "FI 83", rollups=_ALL, like="power_w*dt_ms"),
    Metric("temp_gpu_c", "gauge", "fast", "i2", 0, "Temperature of the GPU", "nvmlDeviceGetTemperatureV",
           *_dev("DEV_GPU_TEMP", "DEV_GPU_TEMP_CELSIUS"), rollups=_MINUTES),
    Metric("temp_mem_c", "gauge", "fast", "i2", 0, "Temperature of the memory", "FI 82",
           *_dev("DEV_MEMORY_TEMP", "DEV_MEMORY_TEMP_CELSIUS")),
    Metric("temp_margin_c", "gauge", "fast", "i2", 0, "Distance to the nearest slowdown temperature",
           "nvmlDeviceGetMarginTemperature", *_dev("DEV_GPU_TEMP_LIMIT", "DEV_GPU_TEMP_MARGIN_CELSIUS"), like="-temp_gpu_c"),
    Metric("util_gpu_pct", "gauge", "fast", "u1", 0, "Time with at least one kernel running",
           "nvmlDeviceGetUtilizationRates", *_dev("DEV_GPU_UTIL", "DEV_GPU_UTIL_RATIO", 1, 100), rollups=_MINUTES),
    Metric("util_mem_pct", "gauge", "fast", "u1", 0, "Time with memory being read or written",
           "nvmlDeviceGetUtilizationRates", *_dev("DEV_MEM_COPY_UTIL", "DEV_MEMORY_UTIL_RATIO", 1, 100)),
    Metric("sm_active_pct", "gauge", "fast", "u2", 1, "Multiprocessors with work (Hopper and newer)", "GPM 2",
           *_dev("PROF_SM_ACTIVE", "PROF_SM_UTIL_RATIO", 100, 100), rollups=("tenant_minutes",)),
    Metric("tensor_active_pct", "gauge", "fast", "u2", 1, "Tensor cores active (Hopper and newer)", "GPM 5",
           *_dev("PROF_PIPE_TENSOR_ACTIVE", "PROF_TENSOR_UTIL_RATIO", 100, 100), rollups=("tenant_minutes",)),
    Metric("dram_active_pct", "gauge", "fast", "u2", 1, "Memory bandwidth in use (Hopper and newer)", "GPM 10",
           *_dev("PROF_DRAM_ACTIVE", "PROF_DRAM_UTIL_RATIO", 100, 100)),
    Metric("mem_used_mib", "gauge", "fast", "u4", 0, "Memory in use", "nvmlDeviceGetMemoryInfo_v2",
           *_dev("DEV_FB_USED", "DEV_FB_USED_BYTES", 1, _MIB)),
    Metric("clock_sm_mhz", "gauge", "fast", "u2", 0, "Multiprocessor clock", "nvmlDeviceGetClockInfo",
           *_dev("DEV_SM_CLOCK", "DEV_SM_CLOCK_HERTZ", 1, 1e-6)),
    Metric("clock_mem_mhz", "gauge", "fast", "u2", 0, "Memory clock", "nvmlDeviceGetClockInfo",
           *_dev("DEV_MEM_CLOCK", "DEV_MEMORY_CLOCK_HERTZ", 1, 1e-6)),
    Metric("pstate", "state", "fast", "u1", 0, "Performance state, 0 is the fastest", "nvmlDeviceGetPerformanceState",
           *_dev("DEV_PSTATE", "DEV_GPU_PSTATE")),
    Metric("throttle_reasons", "state", "fast", "u4", 0, "Bitmask of clock event reasons in force",
           "nvmlDeviceGetCurrentClocksEventReasons",
           *_dev("DEV_CLOCK_THROTTLE_REASONS", "DEV_CLOCKS_EVENT_REASONS")),
    Metric("throttle_power_cap_ms", "delta", "fast", "u4", 0, "Time slowed by the software power cap", "FI 74",
           *_same("DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP_NS", _NS), rollups=_MINUTES),
    Metric("throttle_sync_boost_ms", "delta", "fast", "u4", 0, "Time slowed by sync boost", "FI 76",
           *_same("DEV_CLOCKS_EVENT_REASON_SYNC_BOOST_NS", _NS)),
    Metric("throttle_sw_thermal_ms", "delta", "fast", "u4", 0, "Time slowed by software thermal protection", "FI 269",
           *_same("DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN_NS", _NS), rollups=_MINUTES),
    Metric("throttle_hw_thermal_ms", "delta", "fast", "u4", 0, "Time slowed by hardware thermal protection", "FI 270",
           *_same("DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN_NS", _NS), rollups=_MINUTES),
    Metric("throttle_power_brake_ms", "delta", "fast", "u4", 0, "Time slowed by the external power brake", "FI 271",
           *_same("DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN_NS", _NS), rollups=_MINUTES),
    Metric("pcie_tx_mib", "delta", "fast", "u4", 0, "Sent over PCIe", "FI 197"),
    Metric("pcie_rx_mib", "delta", "fast", "u4", 0, "Received over PCIe", "FI 198"),
    Metric("nvlink_tx_mib", "delta", "fast", "u4", 0, "Sent over all NVLinks", "FI 138 scope 0xffffffff"),
    Metric("nvlink_rx_mib", "delta", "fast", "u4", 0, "Received over all NVLinks", "FI 139 scope 0xffffffff", like="nvlink_tx_mib"),
)

SLOW: Final[tuple[Metric, ...]] = (
    Metric("energy_counter_j", "counter", "slow", "u8", 3, "Energy since the driver was loaded, at the first tick",
           "FI 83", *_dev("DEV_TOTAL_ENERGY_CONSUMPTION", "DEV_GPU_ENERGY_JOULES_TOTAL", 1e-3, 1)),
    Metric("power_limit_w", "gauge", "slow", "i4", 1, "Power limit in force", "FI 190",
           *_dev("DEV_ENFORCED_POWER_LIMIT", "DEV_BOARD_POWER_LIMIT_ENFORCED_WATTS")),
    Metric("power_limit_requested_w", "gauge", "slow", "i4", 1, "Power limit asked for", "FI 192",
           *_dev("DEV_POWER_MGMT_LIMIT", "DEV_BOARD_POWER_LIMIT_REQUESTED_WATTS")),
    Metric("power_limit_default_w", "gauge", "slow", "i4", 1, "Power limit as shipped", "FI 189",
           *_dev("DEV_POWER_MGMT_LIMIT_DEF", "DEV_BOARD_POWER_LIMIT_DEFAULT_WATTS")),
    Metric("power_limit_max_w", "gauge", "slow", "i4", 1, "Highest power limit that can be set", "FI 188",
           *_dev("DEV_POWER_MGMT_LIMIT_MAX", "DEV_BOARD_POWER_LIMIT_MAX_WATTS")),
    Metric("mem_total_mib", "gauge", "slow", "u4", 0, "Memory of the GPU", "nvmlDeviceGetMemoryInfo_v2",
           *_dev("DEV_FB_TOTAL", "DEV_FB_CAPACITY_BYTES", 1, _MIB)),
    Metric("mem_reserved_mib", "gauge", "slow", "u4", 0, "Memory that the driver keeps", "nvmlDeviceGetMemoryInfo_v2",
           *_dev("DEV_FB_RESERVED", "DEV_FB_RESERVED_BYTES", 1, _MIB)),
    Metric("ecc_corrected_volatile", "counter", "slow", "u8", 0, "Corrected memory errors since driver load", "FI 3",
           *_same("DEV_ECC_SBE_VOL_TOTAL")),
    Metric("ecc_uncorrected_volatile", "counter", "slow", "u8", 0, "Uncorrected memory errors since driver load", "FI 4",
           *_same("DEV_ECC_DBE_VOL_TOTAL")),
    Metric("ecc_corrected_aggregate", "counter", "slow", "u8", 0, "Corrected memory errors of the board's life", "FI 5",
           *_same("DEV_ECC_SBE_AGG_TOTAL")),
    Metric("ecc_uncorrected_aggregate", "counter", "slow", "u8", 0, "Uncorrected memory errors of the board's life",
           "FI 6", *_same("DEV_ECC_DBE_AGG_TOTAL")),
    Metric("remap_corrected_rows", "counter", "slow", "u4", 0, "Rows remapped after corrected errors", "FI 142",
           *_dev("DEV_CORRECTABLE_REMAPPED_ROWS", "DEV_ROW_REMAP_CORRECTABLE_TOTAL")),
    Metric("remap_uncorrected_rows", "counter", "slow", "u4", 0, "Rows remapped after uncorrected errors", "FI 143",
           *_dev("DEV_UNCORRECTABLE_REMAPPED_ROWS", "DEV_ROW_REMAP_UNCORRECTABLE_TOTAL")),
    Metric("remap_pending", "state", "slow", "u1", 0, "1 while a remap waits for a reset", "FI 144",
           *_same("DEV_ROW_REMAP_PENDING")),
    Metric("remap_failure", "state", "slow", "u1", 0, "1 once a remap has failed", "FI 145",
           *_dev("DEV_ROW_REMAP_FAILURE", "DEV_ROW_REMAP_FAILED")),
    Metric("retired_pages_sbe", "counter", "slow", "u4", 0, "Pages retired for single-bit errors (before Ampere)",
           "FI 29", *_dev("DEV_RETIRED_SBE", "DEV_PAGE_RETIRED_SBE_TOTAL")),
    Metric("retired_pages_dbe", "counter", "slow", "u4", 0, "Pages retired for double-bit errors (before Ampere)",
           "FI 30", *_dev("DEV_RETIRED_DBE", "DEV_PAGE_RETIRED_DBE_TOTAL")),
    Metric("retired_pages_pending", "state", "slow", "u1", 0, "1 while a page waits to be retired", "FI 31",
           *_dev("DEV_RETIRED_PENDING", "DEV_PAGE_RETIRED_PENDING")),
    Metric("pcie_replays", "counter", "slow", "u8", 0, "PCIe replays", "FI 94",
           *_dev("DEV_PCIE_REPLAY_COUNTER", "DEV_PCIE_REPLAY_TOTAL")),
    Metric("nvlink_crc_errors", "counter", "slow", "u8", 0, "NVLink CRC errors, all links", "FI 38 and 45",
           *_dev("DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL", "DEV_NVLINK_CRC_FLIT_ERROR_TOTAL")),
    Metric("nvlink_replay_errors", "counter", "slow", "u8", 0, "NVLink replays, all links", "FI 52",
           *_dev("DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL", "DEV_NVLINK_REPLAY_ERROR_TOTAL")),
    Metric("nvlink_recovery_errors", "counter", "slow", "u8", 0, "NVLink recoveries, all links", "FI 59",
           *_dev("DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL", "DEV_NVLINK_RECOVERY_ERROR_TOTAL")),
    Metric("fan_pct", "gauge", "slow", "u1", 0, "Intended fan speed, may exceed 100", "nvmlDeviceGetFanSpeed_v2",
           *_same("DEV_FAN_SPEED")),
    Metric("util_encoder_pct", "gauge", "slow", "u1", 0, "Video encoder in use", "nvmlDeviceGetEncoderUtilization",
           *_dev("DEV_ENC_UTIL", "DEV_ENC_UTIL_RATIO", 1, 100)),
    Metric("util_decoder_pct", "gauge", "slow", "u1", 0, "Video decoder in use", "nvmlDeviceGetDecoderUtilization",
           *_dev("DEV_DEC_UTIL", "DEV_DEC_UTIL_RATIO", 1, 100)),
    Metric("recovery_action", "state", "slow", "u1", 0, "What the driver asks for: 0 nothing, 1 reset, 2 reboot ...",
           "FI 230", *_dev("DEV_GET_GPU_RECOVERY_ACTION", "DEV_GPU_RECOVERY_ACTION")),
    Metric("mig_mode", "state", "slow", "u1", 0, "1 while the GPU is partitioned (MIG)", "nvmlDeviceGetMigMode",
           *_same("DEV_MIG_MODE")),
)

SLICE: Final[tuple[Metric, ...]] = (
    Metric("mem_used_mib", "gauge", "slice", "u4", 0, "Memory in use by the instance", "nvmlDeviceGetMemoryInfo_v2"),
    Metric("sm_active_pct", "gauge", "slice", "u2", 1, "Multiprocessors of the instance with work", "GPM 2"),
    Metric("tensor_active_pct", "gauge", "slice", "u2", 1, "Tensor cores of the instance active", "GPM 5"),
    Metric("dram_active_pct", "gauge", "slice", "u2", 1, "Memory bandwidth of the instance in use", "GPM 10"),
)
# fmt: on

METRICS: Final[tuple[Metric, ...]] = FAST + SLOW + SLICE
FAST_BY_NAME: Final[dict[str, Metric]] = {m.name: m for m in FAST}
SLOW_BY_NAME: Final[dict[str, Metric]] = {m.name: m for m in SLOW}

# Watts above which a reading of one GPU is kept, flagged and left out of every sum. A GB300 module
# is provisioned at 2,900 W; ten kilowatts is no GPU of this decade.
ABSURD_POWER_W: Final = 10_000
