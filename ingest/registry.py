"""A registry of kinds: built-in ones are known by name and imported when they are asked for; others register."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")


class Registry(Generic[K]):
    """Values by name. `what` they are called in errors; `built_in` names each one's module, which registers it."""

    def __init__(self, what: str, built_in: dict[str, str]) -> None:
        self.what, self.built_in = what, built_in
        self.found: dict[str, K] = {}

    def add(self, name: str) -> Callable[[K], K]:
        """A decorator that registers what it decorates as `name`. Raises `ValueError` where the name is taken."""

        def added(value: K) -> K:
            if name in self.found:
                raise ValueError(f"{self.what} {name!r} is registered twice")
            self.found[name] = value
            return value

        return added

    @property
    def extensions(self) -> tuple[str, ...]:
        """The modules that registered what is not built in."""
        return tuple(
            sorted({type(value).__module__ for name, value in self.found.items() if name not in self.built_in})
        )

    @property
    def names(self) -> list[str]:
        return [*self.built_in, *(name for name in self.found if name not in self.built_in)]

    def __getitem__(self, name: str) -> K:
        """What is registered as `name`. Raises `ValueError` with the allowed names."""
        if name not in self.found and name in self.built_in:
            importlib.import_module(self.built_in[name])
        if name not in self.found:
            raise ValueError(f"takes a {self.what}: {', '.join(self.names)}")
        return self.found[name]
