"""What is learned part by part is what the whole gives: moments and bins of equal frequency."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.features import bins, vocabulary
from ingest.features.feature import Feature, kind_of
from ingest.features.number import Moments


@settings(max_examples=40, deadline=None)
@given(parts=st.lists(st.lists(st.floats(-1e6, 1e6)), min_size=1, max_size=5))
def test_moments_of_parts_are_those_of_the_whole(parts: list[list[float]]) -> None:
    merged = Moments()
    for part in parts:
        merged = merged.merged(Moments.of(np.array(part)))
    whole = np.array([value for part in parts for value in part])
    assert merged.count == len(whole)
    if len(whole):
        assert merged.mean == pytest.approx(whole.mean(), abs=1e-6)
        assert merged.deviation == pytest.approx(whole.std(), rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("value", [0.1, 0.3, 1.1, 4.99, 9.95, 19.99, -4.99, 0.0])
def test_a_number_that_is_always_the_same_in_training_is_not_scaled(value: float) -> None:
    """Its mean may be off by rounding, alone and in parts; another value is then as far away as it is."""
    feature = Feature.model_validate({"name": "price", "kind": "number"})
    kind = kind_of(feature)
    for parts in ([125], [24, 1], [50, 50, 25], [7] * 9):
        counted = kind.merge(kind.count(feature, pa.array(np.full(part, value))) for part in parts)
        found = kind.fit(feature, counted, None).feature
        assert found.deviation == 1.0
        encoded = kind.encode(found, pa.array([value, value + 1]), lambda _: np.zeros(0, np.int32))
        assert encoded.to_pylist() == pytest.approx([0, 1], abs=1e-6)


def edges_of(parts: list[list[float | None]], number: int) -> list[float]:
    feature = Feature.model_validate({"name": "price", "kind": "number", "bins": number})
    kind = kind_of(feature)
    counted = kind.merge(kind.count(feature, pa.array(part, pa.float64())) for part in parts)
    return kind.fit(feature, counted, None).feature.edges


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(
        st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.5])),
        min_size=1,
        max_size=4,
    ),
    number=st.integers(2, 5),
)
def test_bins_of_parts_are_those_of_the_whole(parts: list[list[float | None]], number: int) -> None:
    known = sorted(value for part in parts for value in part if value is not None)
    starts = {known[k * len(known) // number] for k in range(1, number)} if known else set()
    assert edges_of(parts, number) == sorted(start for start in starts if start > known[0])


def test_bins_of_more_values_than_are_kept_are_off_by_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty parts of 1000 different values, of which 500 are kept whenever 2000 have come together."""
    monkeypatch.setattr(bins, "POINTS", 500)
    monkeypatch.setattr(vocabulary, "ROWS_AT_ONCE", 2000)
    values = np.random.default_rng(0).lognormal(size=20_000)
    edges = edges_of([part.tolist() for part in np.split(values, 20)], 10)
    shares = np.diff(np.searchsorted(np.sort(values), edges), prepend=0, append=len(values)) / len(values)
    assert len(shares) == 10
    assert np.abs(shares - 0.1).max() < 0.01


def test_values_that_are_often_there_keep_their_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bins, "POINTS", 5)
    counted = pl.DataFrame({"value": [1.0, 2, 3, 4, 5, 6], "count": [1, 1, 96, 1, 1, 0]})
    shrunk = bins.summary(counted)
    assert shrunk["count"].sum() == 100
    assert shrunk["value"][0] == 1.0
    assert shrunk.filter(pl.col("value") == 3)["count"].sum() >= 80


@pytest.mark.parametrize("kind", ["number", "elapsed"])
def test_names_of_bins_differ_however_close_their_edges_are(kind: str) -> None:
    """A name has no more digits than are needed."""
    for edges, name in (([1234561.0, 1234562.0, 1234563.0], "1234562"), ([1.0, 1 + 2**-52], "1.0000000000000002")):
        feature = Feature.model_validate({"name": "price", "kind": kind, "bins": len(edges) + 1})
        counted = pl.DataFrame({"value": [0.0, *edges], "count": [1] * (len(edges) + 1)})
        vocabulary = kind_of(feature).fit(feature, counted, None).vocabulary
        assert vocabulary is not None
        names = vocabulary["value"].drop_nulls().to_list()
        assert len(set(names)) == len(names) == len(edges) + 1
        assert any(name in text for text in names)
    declared = Feature.model_validate({"name": "price", "kind": "number", "bins": [1234561, 1234562]})
    vocabulary = kind_of(declared).fit(declared, None, None).vocabulary
    assert vocabulary is not None
    assert vocabulary["value"].to_list()[2:] == ["< 1234561", "1234561 - 1234562", ">= 1234562"]
