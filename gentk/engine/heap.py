"""The process's own memory: what one step gives back, the next one takes again.

glibc returns blocks of megabytes to the system as they are freed, and the system hands out zeroed pages anew: on the
CPU that is up to a tenth of a training step (benchmarks/overhead.py).
"""

from __future__ import annotations

import ctypes
import os

# malloc.h; the limit on mmap's threshold is half a HEAP_MAX_SIZE
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _LARGEST = -1, -3, 32 * 2**20
_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep() -> bool:
    """Freed blocks of up to 32 MiB stay with this process from now on; whether it is so.

    Nothing is done where the environment has settings of malloc, or the C library is another one.
    """
    if any(name in os.environ for name in _OWN):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    # the second alone would undo malloc's own rule, by which the first threshold grows
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, -1))
