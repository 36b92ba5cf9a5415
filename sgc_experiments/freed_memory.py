"""Freed memory is kept for what comes next.

On a CPU, tensors of megabytes come and go all the time. As it is set, glibc gives their memory back
to the kernel at once, and gets it again for the next one, page by page and filled with zeros: 6,000
page faults in a training step of the default network; an eighth of its time, and of classifying's.
"""

import ctypes
import functools

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 32 * 2**20  # bytes that a block can be said to come from the heap up to
_KEPT = 2**30  # bytes free at the end of the heap before any are given back


@functools.cache
def keep_freed_memory() -> None:
    """Let this process keep up to a gigabyte of what it frees; nothing where there is no glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST)
    mallopt(_M_TRIM_THRESHOLD, _KEPT)
