"""Memory that is freed and taken again costs no page faults once it is kept; the user's own settings stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import ctypes, resource, sys
from gentk.engine import heap
kept = sys.argv[1] == "keep" and heap.keep()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def step():  # blocks that pile up and go, as a graph's do, by malloc itself: nothing small of torch's lies on top
    held = [ctypes.c_void_p(libc.malloc(1 << 22)) for _ in range(24)]
    for block in held:
        libc.memset(block, 1, 1 << 22)
    for block in held:
        libc.free(block)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
before = faults()
for _ in range(3):
    step()
print(int(kept), (faults() - before) // 3)
"""
GLIBC = sys.platform == "linux" and "CS_GNU_LIBC_VERSION" in os.confstr_names


def said(word: str, **settings: str) -> tuple[bool, int]:
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    environment = plain | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | settings
    words = [sys.executable, "-c", SCRIPT, word]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    kept, faults = map(int, done.stdout.split())
    return bool(kept), faults


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_no_page_is_asked_for_twice() -> None:
    pages = 24 * 2**22 // os.sysconf("SC_PAGE_SIZE")
    kept, faults = said("keep")
    assert kept
    assert faults < 0.01 * pages
    assert said("leave")[1] > 0.2 * pages, "malloc keeps them by itself: the module has lost its point"


def test_the_users_settings_stand() -> None:
    assert said("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] is False
