"""Memory of the C library."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST = 2**31 - 1  # mallopt takes a C int


def keep_freed_memory() -> None:
    """Makes glibc keep freed buffers of up to 2 GiB: each step on the CPU allocates the same ones as the step before.

    By default it returns large ones to the kernel, which then clears their pages at every step.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST)
