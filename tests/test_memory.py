"""The C library keeps freed memory."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource, sys
from t2i.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def step():
    buffer = libc.malloc(40 << 20)  # more than the 32 MiB up to which glibc learns to keep buffers
    ctypes.memset(buffer, 1, 40 << 20)
    libc.free(buffer)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives large buffers back at once")
def test_a_buffer_that_is_freed_and_asked_for_again_costs_no_page_fault():
    def faults(how: str) -> int:
        return int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True).stdout)

    assert faults("keep") < 100 < 1000 < faults("default")
