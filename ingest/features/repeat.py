"""`repeat`: whether an interaction is with the item of the one before, another that the user had, or a new one.

It is derived from the user's events, so no log has to declare it; as an intent it says whether a session goes on, goes
back or discovers (repeat and explore modes: RepeatNet, arXiv 1812.02646).

    N  events, by user, each user's by time
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ingest.arrays.jagged import Integers
from ingest.features.category import Category
from ingest.features.feature import Feature, register
from ingest.settings import SettingError

LABELS = ["same", "again", "new"]
SAME, AGAIN, NEW = range(3)


@register("repeat")
class Repeat(Category):
    takes = frozenset()

    def check(self, feature: Feature) -> None:
        super().check(feature)
        if feature.of != "event" or feature.column is not None:
            raise SettingError("kind", "repeat goes with a feature of event and without a column")

    def columns(self, feature: Feature) -> list[str]:
        return []

    def derive(self, user_N: Integers, item_N: Integers) -> pa.Array:
        """A user's first event is with a new item."""
        order_N = np.lexsort((item_N, user_N))  # stable: equal ones stay by time
        user, item = user_N[order_N], item_N[order_N]
        first = np.ones(len(order_N), dtype=bool)
        first[1:] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
        new_N = np.empty_like(first)
        new_N[order_N] = first
        label_N = np.where(new_N, NEW, AGAIN).astype(np.int32)
        label_N[1:][(user_N[1:] == user_N[:-1]) & (item_N[1:] == item_N[:-1])] = SAME
        return pa.DictionaryArray.from_arrays(label_N, LABELS)
