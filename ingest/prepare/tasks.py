"""Stages of many tasks whose finished ones are not done again.

A task writes its files first and then, in one piece, what it found as JSON: `<work>/<stage>/<number>.json`. Where that
is there, the task is done, whoever did it and when. A `Runner` runs tasks somewhere: here, one after the other, or on
a Ray cluster (`cluster.runner`); it knows nothing of what they do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

from ingest.features.feature import KINDS
from ingest.storage import join, list_names, read_text, write_text

_THREADS = 8
Task = Callable[..., dict[str, Any]]
"""Takes picklable arguments, the same for every task of a stage and then its own; gives JSON."""


class Runner(Protocol):
    """Runs calls that do not depend on each other."""

    def run(self, calls: Sequence[Call], description: str) -> None:
        """Run all `calls`. The error of the first of them that failed is raised."""
        ...


@dataclass(frozen=True)
class Call:
    """One task: `function(*arguments)`, whose result goes to `result`."""

    function: Task
    arguments: tuple[Any, ...]
    result: str
    modules: tuple[str, ...] = field(default_factory=lambda: KINDS.extensions)
    """Imported first, in whatever process: they register kinds of feature of one's own."""

    def __call__(self) -> None:
        for module in self.modules:
            import_module(module)
        write_text(self.result, json.dumps(self.function(*self.arguments)))


class InThisProcess:
    """Runs calls one after the other, here."""

    def run(self, calls: Sequence[Call], description: str) -> None:
        for call in calls:
            call()


def run_stage(
    runner: Runner,
    work: str,
    name: str,
    function: Task,
    common: tuple[Any, ...],
    tasks: Sequence[Any],
    description: str,
) -> list[dict[str, Any]]:
    """What `function(*common, task)` gives for each of `tasks`; those that are done already are not run again."""
    folder = join(work, name)
    done = set(list_names(folder))
    names = [f"{number:06d}.json" for number in range(len(tasks))]
    with ThreadPoolExecutor(_THREADS) as threads:
        found = list(threads.map(lambda name: _result(join(folder, name)) if name in done else None, names))
        calls = [
            Call(function, (*common, task), join(folder, name))
            for task, name, known in zip(tasks, names, found, strict=True)
            if known is None
        ]
        if calls:
            runner.run(calls, description)
        new = threads.map(lambda call: json.loads(read_text(call.result)), calls)
        return [next(new) if known is None else known for known in found]


def _result(url: str) -> dict[str, Any] | None:
    """What a task found; None where its file is not whole, as a machine that fails can leave it."""
    try:
        found: dict[str, Any] = json.loads(read_text(url))
    except ValueError:
        return None
    return found
