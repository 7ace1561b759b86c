"""allocator.py: freed memory is kept where glibc is, and nothing breaks where it is not."""

import platform
import subprocess
import sys

import pytest

from pnc_cli import allocator

FAULTS = """
import ctypes, resource, sys
from pnc_cli.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(ctypes.c_size_t(256 << 20))
    ctypes.memset(block, 1, 256 << 20)
    libc.free(block)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_a_large_block_that_was_freed_is_used_again():
    def faults(how):
        ran = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return int(ran.stdout)

    assert faults("keep") < faults("plain") / 10


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert allocator.keep_freed_memory() is False
    allocator.give_back_freed_memory()


KEPT = """
import ctypes, os
from pnc_cli.allocator import give_back_freed_memory, keep_freed_memory
assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
def block():
    at = libc.malloc(ctypes.c_size_t(64 << 20))
    ctypes.memset(at, 1, 64 << 20)
    return at
blocks = [block() for _ in range(4)]
libc.free(blocks[1])  # in between: at the end it could go anyhow
kept = resident()
give_back_freed_memory()
print(kept - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_what_was_freed_in_between_can_be_given_back():
    ran = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 60 << 20
