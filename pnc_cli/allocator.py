"""The C library's allocator, made fit for large tensors."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
MOST = 2**31 - 1  # bytes kept at the end of the heap


def keep_freed_memory() -> bool:
    """Has glibc keep the memory of large tensors that are freed, for the next ones.

    It hands blocks of 32 MiB and more back to the system at once, and every layer that puts out
    another has its pages zeroed again: on images of 224 pixels that takes longer than the
    arithmetic.  For commands, not for a library: it holds for the whole process.  Returns whether
    there was a glibc to ask.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, MOST))


def give_back_freed_memory() -> None:
    """Gives freed memory back to the system, between two pieces of work that need it in other sizes:
    what is kept of the first lies in between, and the second could not use much of the rest."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):  # another C library
        return
