"""How this process's allocator treats the large arrays that come and go with every batch."""

import ctypes
import sys
from typing import Final

# glibc's <malloc.h>
_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_MAX: Final = -4
_M_ARENA_MAX: Final = -8
_KEEP: Final = 2**31 - 1


def keep_pages() -> None:
    """Keep freed memory for the next batch; to be called before any thread begins.

    glibc gives the pages of every large array back and the kernel clears and maps new ones for the
    next: measured, 0.3 CPU-s per million rows. The process then stays as large as its largest
    batch, which is bounded. Does nothing where there is no glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    for option, value in (
        (_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _KEEP), (_M_TOP_PAD, 64 << 20),
    ):  # fmt: skip
        mallopt(option, value)
