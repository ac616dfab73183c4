"""A user's partition: the published values of FNV-1a and SplitMix64, today and with any library, and even parts."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.prepare.hashing import fnv1a, hash_ids, mix
from ingest.prepare.partition import partition_of


def test_the_published_values() -> None:
    """Landon Curt Noll's test vectors; the first numbers of splitmix64.c from the seed 1234567."""
    known = {"": 0xCBF29CE484222325, "a": 0xAF63DC4C8601EC8C, "foobar": 0x85944171F73967E8,
             "chongo was here!\n": 0x46810940EFF5F915}  # fmt: skip
    assert dict(zip(known, fnv1a(pa.array(known, pa.large_string())).tolist(), strict=True)) == known
    golden = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + step * golden) % 2**64 for step in range(5)], np.uint64)
    assert mix(states).tolist() == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip


def test_partitions_of_known_ids() -> None:
    assert partition_of(pl.Series([0, 1, 2, -1, 2**40, 77]), 97).tolist() == [49, 27, 93, 52, 7, 64]
    assert partition_of(pl.Series(["", "u1", "u2", "Zoë", "x" * 100]), 97).tolist() == [84, 22, 1, 95, 61]


@given(st.lists(st.text(max_size=40)), st.integers(0, 5))
def test_strings_are_hashed_byte_by_byte(texts: list[str], skipped: int) -> None:
    def one(text: str) -> int:
        found = 0xCBF29CE484222325
        for byte in text.encode():
            found = (found ^ byte) * 0x100000001B3 % 2**64
        return found

    array = pa.array(texts, pa.large_string()).slice(skipped)
    assert fnv1a(array).tolist() == [one(text) for text in texts[skipped:]]


@pytest.mark.parametrize("kind", [pl.Int8, pl.UInt8, pl.Int16, pl.UInt16, pl.Int32, pl.UInt32, pl.UInt64])
def test_integers_of_any_width_are_the_same(kind: type[pl.DataType]) -> None:
    ids = [0, 1, 99, 127] + ([-1, -128] if kind in (pl.Int8, pl.Int16, pl.Int32) else [])
    assert hash_ids(pl.Series(ids, dtype=kind)).tolist() == hash_ids(pl.Series(ids, dtype=pl.Int64)).tolist()


@pytest.mark.parametrize("step", [1, 8, 1_000, 2**32])
@pytest.mark.parametrize("prefix", [None, "", "user-"])
def test_partitions_are_even(step: int, prefix: str | None) -> None:
    ids = pl.Series([step * number for number in range(100_000)])
    users = ids if prefix is None else prefix + ids.cast(pl.String)
    for partitions in (2, 8, 256, 257):
        counts = np.bincount(partition_of(users, partitions), minlength=partitions)
        mean = len(ids) / partitions
        assert np.abs(counts - mean).max() < 6 * mean**0.5
    assert partition_of(users, 70_000).max() > 65_535
