"""The made world: a catalogue of items, users with lasting tastes, and when each of them watches.

All of it is drawn at once for a catalogue or a block of users; nothing here depends on what is watched.
Cost: linear in items, in events, and in users x days (a number for each quarter of a day of each user of the block).

Shapes: N items, G genres, U users of the block, S their sessions, E their events (by user, then by time).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Field

from ingest.settings import Settings
from ingest.sources.simulate_rule import FILM, GENRES, KIDS, PARTS_OF_DAY, SERIES, Catalogue

Array = NDArray[Any]

DEVICES = ("tv", "mobile", "tablet", "web")
SLOT_SECONDS = 6 * 3600
LONGEST_SESSION = 40
LEAST_EVENTS = 3

GENRE_SHARES = np.array([4, 5, 6, 10, 7, 13, 8, 5, 14, 6, 3, 5, 5, 8, 6, 2]) / 107
ACTION_SHARES = np.array([0.36, 0.34, 0.08, 0.0, 0.22])  # kids is a matter of the household
AGE_SHARES = np.array([0.25, 0.25, 0.5])
DEVICE_SHARES = np.array([0.5, 0.25, 0.1, 0.15])
PART_SHARES = np.array([0.07, 0.16, 0.27, 0.5])
# Dirichlet concentrations around the shares, and the two numbers of Beta distributions.
ACTION_CONCENTRATION, AGE_CONCENTRATION = 6.0, 3.0
CHILDREN, SERIES_SHARE = (2.0, 4.0), (2.0, 2.0)
# How much likelier a device is at a part of the day (PARTS_OF_DAY x DEVICES).
DEVICE_FACTORS = np.array([[0.7, 1.6, 1.4, 0.6], [0.5, 1.8, 1.0, 1.6], [0.8, 1.1, 1.2, 1.5], [1.7, 0.5, 0.8, 0.5]])


class CatalogueSettings(Settings):
    """What the made catalogue is like."""

    popularity_exponent: float = Field(
        default=0.9, ge=0, le=3, description="weight of the k-th most popular item: k ** -this"
    )
    released_before: float = Field(
        default=0.6, ge=0, le=1, description="share of the items released before the first day"
    )
    series: float = Field(default=0.4, ge=0, le=1, description="share of the franchises that are series")
    franchise_size: float = Field(default=8.0, ge=1, description="mean number of items in a franchise")
    episodes: float = Field(default=10.0, ge=2, description="mean number of a series' episodes")


class UserSettings(Settings):
    """What the made users are like."""

    sessions: float = Field(default=22.0, gt=0, description="mean number of a user's sessions")
    sessions_spread: float = Field(default=0.9, ge=0, le=3, description="sigma of the log-normal number of sessions")
    events: float = Field(default=4.0, ge=1, le=20, description="mean number of a session's events")
    taste_concentration: float = Field(default=3.0, gt=0, description="Dirichlet concentration of the genre taste")
    kids_households: float = Field(default=0.3, ge=0, le=1, description="share of the users who watch with children")


def make_catalogue(settings: CatalogueSettings, items: int, first_day: int, days: int, rng: Generator) -> Catalogue:
    """Draw `items` items, some released before `first_day` (days since 1970), the rest in the `days` from it on."""
    before = min(items, max(2, round(settings.released_before * items)))
    old = first_day - 1 - rng.integers(0, (2 ** rng.uniform(0, 13, before)).astype(np.int64) + 1)
    release_day_N = np.sort(np.concatenate([old, first_day + rng.integers(0, days, items - before)]))
    franchises = max(1, round(items / settings.franchise_size))
    franchise_N = rng.integers(0, franchises, items)
    main_genre, side_genre = rng.choice(len(GENRES), size=(2, franchises), p=GENRE_SHARES)
    genres_NG = np.zeros((items, len(GENRES)), bool)
    everything = np.arange(items)
    genres_NG[everything, main_genre[franchise_N]] = True
    genres_NG[everything, side_genre[franchise_N]] |= rng.random(items) < 0.6
    genres_NG[everything, rng.choice(len(GENRES), items, p=GENRE_SHARES)] |= rng.random(items) < 0.25
    franchise_is_series = rng.random(franchises) < settings.series
    is_series_N = franchise_is_series[franchise_N] ^ (rng.random(items) < 0.1)
    episodes_N = 1 + rng.geometric(1 / (settings.episodes - 1), items)
    return Catalogue(
        genres=genres_NG,
        content_type=np.where(is_series_N, SERIES, FILM),
        release_day=release_day_N,
        weight=(1.0 + rng.permutation(items)) ** -settings.popularity_exponent,
        franchise=franchise_N,
        episodes=np.where(is_series_N, episodes_N, 1),
    )


def make_titles(items: int) -> list[str]:
    """A readable title for each item, all different."""
    first = ("Silent", "Golden", "Broken", "Hidden", "Last", "Crimson", "Distant", "Frozen", "Wild", "Secret", "Blue")
    second = ("River", "Crown", "Summer", "Harbour", "Signal", "Garden", "Empire", "Winter", "Letters", "Road")
    third = ("Tomorrow", "the North", "Glass", "Strangers", "the Sea", "Mercy", "Shadows", "Home", "Ashes")
    names = [f"{a} {b} of {c}" for c in third for b in second for a in first]
    return [
        names[index * 7 % len(names)] + (f" {index // len(names) + 1}" if index >= len(names) else "")
        for index in range(items)
    ]


@dataclass(frozen=True)
class Users:
    """Hidden parameters of U users; each row of probabilities sums to 1."""

    sessions: Array  # (U,) the expected number
    taste: Array  # (U, GENRES)
    actions: Array  # (U, ACTIONS)
    series_share: Array  # (U,)
    ages: Array  # (U, AGES)
    devices: Array  # (U, DEVICES)
    parts: Array  # (U, PARTS_OF_DAY)


def make_users(settings: UserSettings, users: int, rng: Generator) -> Users:
    """Draw the hidden parameters of `users` users."""
    spread = settings.sessions_spread
    children = (rng.random(users) < settings.kids_households) * rng.beta(*CHILDREN, users)
    actions_UA = _rows_around(ACTION_SHARES, ACTION_CONCENTRATION, users, rng) * (1 - children[:, None])
    actions_UA[:, KIDS] = children
    return Users(
        sessions=settings.sessions * rng.lognormal(-(spread**2) / 2, spread, users),
        taste=_rows_around(GENRE_SHARES, settings.taste_concentration, users, rng),
        actions=actions_UA,
        series_share=rng.beta(*SERIES_SHARE, users),
        ages=_rows_around(AGE_SHARES, AGE_CONCENTRATION, users, rng),
        devices=_rows_around(DEVICE_SHARES, 3.0, users, rng),
        parts=_rows_around(PART_SHARES, 12.0, users, rng),
    )


def _rows_around(shares: Array, concentration: float, rows: int, rng: Generator) -> Array:
    """Dirichlet rows with the mean `shares`."""
    drawn = rng.standard_gamma(concentration * shares, (rows, len(shares))) + 1e-12 * shares
    normalised: Array = drawn / drawn.sum(axis=1, keepdims=True)
    return normalised


@dataclass(frozen=True)
class Timeline:
    """When U users watch: E events by user, then by time; (U,) for `first` and `events`, else (E,)."""

    first: Array  # index of the user's first event
    events: Array
    user: Array
    session: Array  # 0 is the user's first
    new_session: Array  # bool
    day: Array  # from the first day of the span
    part: Array  # of the day
    second: Array  # float64, from the start of the span
    free_seconds: Array  # until the next event or the end of the session
    device: Array


def make_timeline(settings: UserSettings, users: Users, days: int, rng: Generator) -> Timeline:
    """Draw sessions and the times of their events.

    A session takes one quarter of a day, so that no two of a user's sessions meet; which quarters, is drawn
    without replacement (exponential races), with the user's share of each part of the day as weight.
    """
    parts = len(PARTS_OF_DAY)
    slots = parts * days
    count_U = np.clip(rng.poisson(users.sessions), 1, slots)
    race_UT = rng.standard_exponential((len(count_U), slots)) / np.tile(users.parts, days)
    last_U = np.sort(race_UT, axis=1)[np.arange(len(count_U)), count_U - 1]
    user_S, slot_S = np.nonzero(race_UT <= last_U[:, None])
    first_session_S = np.diff(user_S, prepend=-1) > 0

    size_S = np.minimum(rng.geometric(1 / settings.events, len(user_S)), LONGEST_SESSION)
    events_U = np.bincount(user_S, size_S, len(count_U)).astype(np.int64)
    size_S[first_session_S] += np.maximum(LEAST_EVENTS - events_U, 0)
    events_U = np.maximum(events_U, LEAST_EVENTS)

    first_S = np.cumsum(size_S) - size_S
    session_E = np.repeat(np.arange(len(size_S)), size_S)
    gap_E = np.clip(rng.lognormal(np.log(1500.0), 0.8, len(session_E)), 20.0, 3 * 3600.0)
    begin_S = rng.uniform(1.0, SLOT_SECONDS / 2, len(size_S))
    gap_E *= np.minimum(1.0, (SLOT_SECONDS - 1 - begin_S) / np.add.reduceat(gap_E, first_S))[session_E]
    passed_E = np.cumsum(gap_E) - gap_E
    offset_E = begin_S[session_E] + passed_E - passed_E[first_S][session_E]

    part_S = slot_S % parts
    devices_SD = users.devices[user_S] * DEVICE_FACTORS[part_S]
    ordinal_S = np.arange(len(user_S)) - np.flatnonzero(first_session_S)[user_S]
    new_session_E = np.zeros(len(session_E), bool)
    new_session_E[first_S] = True
    return Timeline(
        first=np.cumsum(events_U) - events_U,
        events=events_U,
        user=user_S[session_E],
        session=ordinal_S[session_E],
        new_session=new_session_E,
        day=(slot_S // parts)[session_E],
        part=part_S[session_E],
        second=slot_S[session_E] * float(SLOT_SECONDS) + offset_E,
        free_seconds=gap_E,
        device=choose(devices_SD, rng.random(len(devices_SD)))[session_E],
    )


def choose(weights_QK: Array, uniform_Q: Array) -> Array:
    """An index (Q,) of each row of weights, in proportion to them, for uniform numbers in [0, 1)."""
    cumulative_QK = np.cumsum(weights_QK, axis=1)
    above: Array = (cumulative_QK <= (uniform_Q * cumulative_QK[:, -1])[:, None]).sum(axis=1)
    return np.minimum(above, weights_QK.shape[1] - 1)
