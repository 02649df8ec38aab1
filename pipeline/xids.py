"""What the driver's XIDs mean and who must act: the vocabulary of dashboards and alerts.

After NVIDIA's catalogue of XIDs for Ampere and newer
(docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html). The tiers are ours, by the immediate
action that it asks for:

| tier | the GPU | who acts |
|---|---|---|
| application | is well: the job ended by its own doing | the job's owner |
| driver | is well: driver or firmware reports something about itself | nobody, unless it repeats |
| hardware | works on; memory, a link or power is worse than it was | the operator, at the next window |
| fatal | cannot be trusted or used before a reset, a reboot or a repair | the operator, now |

An XID's tier never says that a job has failed, nor that a GPU must be replaced: counts do.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

Tier = Literal["application", "driver", "hardware", "fatal"]
TIERS: Final[tuple[Tier, ...]] = get_args(Tier)
"""From harmless to worst."""
UNLISTED: Final = "unlisted"
"""In the place of a tier and a name: NVIDIA lists the code as unused, or does not list it yet."""


@dataclass(frozen=True, slots=True)
class Xid:
    """One code: what happened in a few words, and what to do about it."""

    code: int
    name: str
    tier: Tier
    action: str


_RESTART: Final = "The job's owner restarts it; contact support if it follows the GPU."
_CODE: Final = "The job's owner looks for an illegal access (compute-sanitizer, cuda-gdb)."
_WATCH: Final = "Nothing, unless it repeats: then look at driver and firmware."
_WINDOW: Final = "Reset the GPU at the next window; replace it if it comes back."
_RESET: Final = "Drain and reset the GPU; contact support if it comes back."
_REBOOT: Final = "Drain and reboot the node; if it comes back, reseat or replace the GPU."
_FABRIC: Final = (
    "Drain, reset the GPU, then look at both ends of the link and at the fabric manager."
)
_POWER: Final = "The GPU runs without power smoothing: check temperatures and what swings may cost."
_COPY_ENGINES: Final = (39, 40, 41, 70, 71, 72, 75, 76, 77, 85, *range(126, 136))
_VIDEO: Final = (60, 68, 82, 83, 84, 86, 88, 89, *range(96, 106), 139, 142)

# fmt: off
_LIST: Final[tuple[Xid, ...]] = (
    Xid(8, "channel idle timeout", "application", _RESTART),
    Xid(11, "bad push buffer", "application", _CODE),
    Xid(13, "graphics engine exception", "application", _CODE),
    Xid(14, "injected error", "driver", "Nothing: somebody injected it from user space."),
    Xid(25, "illegal push buffer", "application", _CODE),
    Xid(31, "memory page fault", "application", _CODE),
    Xid(32, "push buffer DMA error", "hardware", "Restart the job; look at the GPU's PCIe replays and its slot."),
    Xid(37, "firmware method missing", "driver", _WATCH),
    Xid(38, "firmware watchdog", "driver", _WATCH),
    *(Xid(code, "copy engine exception", "application", _RESTART) for code in _COPY_ENGINES),
    Xid(43, "job hit a software fault", "application", "The job's owner looks at the job: the GPU is healthy."),
    Xid(44, "fault during context switch", "driver", _WATCH),
    Xid(45, "job torn down", "application", "Nothing alone: look at the XID that came before it."),
    Xid(46, "GPU stopped processing", "fatal", _RESET),
    Xid(48, "double-bit ECC error", "fatal", "Drain and reset the GPU; if errors are in SRAM, run field diagnostics."),
    Xid(54, "auxiliary power missing", "hardware", "Check the power cables of the board."),
    Xid(62, "microcontroller halt", "fatal", _RESET),
    Xid(63, "memory row remapped", "hardware", "Reset the GPU at the next window: the remap waits for it."),
    Xid(64, "memory remap failed", "fatal", "Drain and reset the GPU; replace it if the remap fails again."),
    Xid(66, "illegal access by driver", "driver", _WATCH),
    Xid(67, "illegal access by driver", "driver", _WATCH),
    Xid(69, "graphics engine class error", "application", _CODE),
    Xid(74, "NVLink error", "fatal", _FABRIC),
    Xid(78, "vGPU start error", "driver", "Update the vGPU software of host and guest."),
    Xid(79, "fallen off the bus", "fatal", _REBOOT),
    Xid(80, "corrupted data sent to GPU", "application", _RESTART),
    *(Xid(code, "video engine exception", "application", _RESTART) for code in _VIDEO),
    Xid(92, "many corrected ECC errors", "hardware", _WINDOW),
    Xid(93, "InfoROM wear limit", "driver", "Clear the limit that was set when the board was flashed."),
    Xid(94, "contained memory error", "hardware", "The job's owner restarts it; reset the GPU at the next window."),
    Xid(95, "uncontained memory error", "fatal", _RESET),
    Xid(106, "out-of-band test message", "driver", "Nothing: a test."),
    Xid(107, "out-of-band test message", "driver", "Nothing: a test."),
    Xid(109, "context switch timeout", "fatal", _RESET),
    Xid(110, "security fault", "fatal", "Undo the last change of hardware and power the node off and on."),
    Xid(119, "GSP does not answer", "fatal", "Drain and reset the GPU; power the node off and on if it stays."),
    Xid(120, "GSP error", "fatal", "Drain and reset the GPU; power the node off and on if it stays."),
    Xid(121, "C2C link errors corrected", "hardware", "Reset the GPU at the next window: it trains the link again."),
    Xid(136, "NVLink training failed", "fatal", _FABRIC),
    Xid(137, "illegal NVLink peer access", "application", _CODE),
    Xid(140, "ECC error not recovered", "fatal", _RESET),
    Xid(141, "CUDA fast path error", "driver", _WATCH),
    Xid(143, "GPU initialisation failed", "fatal", _RESET),
    *(Xid(code, "NVLink 5 error", "fatal", _FABRIC) for code in range(144, 151)),
    Xid(151, "key rotation failed", "driver", "Restart the virtual machine."),
    Xid(154, "recovery action changed", "driver", "Do what the recovery action says; look at the XID that came with it."),
    Xid(155, "NVLink down by software", "fatal", _FABRIC),
    Xid(156, "resource retired", "hardware", _WINDOW),
    Xid(157, "no spare resource left", "hardware", "Plan to replace the GPU: this will happen again."),
    Xid(158, "GPU timeout", "fatal", _RESET),
    Xid(160, "memory channel retired", "hardware", _WINDOW),
    Xid(161, "channel retirement failed", "hardware", _WINDOW),
    Xid(162, "power smoothing is back", "driver", "Nothing."),
    Xid(163, "power smoothing is off", "hardware", _POWER),
    Xid(164, "power smoothing wears out", "hardware", _POWER),
    Xid(165, "power smoothing is worn out", "hardware", _POWER),
    Xid(167, "PCIe timeout", "fatal", _REBOOT),
    Xid(168, "memory capacity reduced", "hardware", "Switch ECC on, so that rows can be remapped."),
    Xid(169, "security processor halt", "fatal", _RESET),
    Xid(171, "DRAM error, with XID 48", "fatal", "See XID 48."),
    Xid(172, "SRAM error, with XID 48", "fatal", "See XID 48."),
)
# fmt: on
XIDS: Final[Mapping[int, Xid]] = {xid.code: xid for xid in _LIST}


def codes(tier: Tier) -> tuple[int, ...]:
    """The codes of a tier, in order."""
    return tuple(sorted(code for code, xid in XIDS.items() if xid.tier == tier))


def sql(field: Literal["name", "tier", "action"], code: str = "code") -> str:
    """A ClickHouse expression for what a column of codes means; UNLISTED for codes unknown here."""
    known = ", ".join(map(str, XIDS))
    texts = ", ".join("'" + getattr(xid, field).replace("'", "''") + "'" for xid in XIDS.values())
    return f"transform({code}, [{known}], [{texts}], '{UNLISTED}')"
