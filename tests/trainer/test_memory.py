"""Memory that is free within malloc's heaps goes back to the system."""

from __future__ import annotations

import ctypes
import platform

import pytest

from benchmarks.growth import own_mib
from trainer.memory import give_back_free


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_holes_of_a_heap_are_given_back() -> None:
    """All of 200 MiB in pieces of 2 KiB is freed but each hundredth piece, which keeps the heap from shrinking."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    pieces = [libc.malloc(2048) for _ in range(100 * 1024)]
    for piece in pieces:
        ctypes.memset(piece, 1, 2048)
    for number, piece in enumerate(pieces):
        if number % 100:
            libc.free(piece)
    full = own_mib()
    give_back_free()
    assert full - own_mib() > 150
    for piece in pieces[::100]:
        libc.free(piece)
