"""The page of all keys is that of the classes that check them, and none is without words."""

from __future__ import annotations

import pytest

from cluster.keys import page
from tests.cluster.readme import ROOT
from trainer.models.registry import MODELS

SAID = page()


def test_the_page_is_that_of_the_classes() -> None:
    assert (ROOT / "docs" / "keys.md").read_text() == SAID, "run `make keys`"


def test_every_key_has_words_and_every_kind_of_model_is_there() -> None:
    rows = [line.strip("| ").split(" | ") for line in SAID.splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    assert not [row for row in rows if row[0] != "`kind`" and len(row[-1]) < 5]
    assert not [kind for kind in MODELS.built_in if f"`{kind}`" not in SAID]


@pytest.mark.parametrize(
    "row",
    [
        "| `tokens` | integer from 1 | `8192` | Tokens in a worker's batch, about: a sequence is never cut. |",
        "| `in_batch_share` | number over 0 below 1 | `0.5` | The part of `mixed` negatives that",
        "| `gpus` | `true`, `false`, `null` | `null` | ",
        "| `features` | `sasrec`, `bert4rec` | `true`, `false` | `false` | ",
        "| `weights` | `session_knn` | `same`, `linear`, `div` | `linear` | ",
        "| `source` | `movielens` | text | has to be named | A folder or a .zip. |",
        "| `bins` | list of text, number, integer, `null` | `null` | Upper edges of the bins",
        "| `workers` | section | `{max: 2, min: 2}` | ",
    ],
)
def test_a_key_tells_its_kind_its_values_and_its_default(row: str) -> None:
    assert row in SAID
