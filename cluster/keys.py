"""Every key of a config: what it takes, its default and what it is, from the classes that check it. As Markdown.

python -m cluster.keys > docs/keys.md       # `make keys`
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeAlias

import yaml
from pydantic.fields import FieldInfo

from cluster.config import Config
from ingest.settings import Kinded, Settings
from ingest.sources.registry import SOURCES, Source
from trainer.models.registry import MODELS, ModelConfig, NeuralConfig

HEAD = """# Keys of a config

Made by `make keys` from the classes that check a config; a test holds this page to them. On the command line
`train.reader.tokens=4096` is laid over the file. Where several kinds are told with one key, its default may differ.
What an extension registers has keys of its own.
"""
BOUNDS = {"ge": "from {}", "gt": "over {}", "le": "to {}", "lt": "below {}", "multiple_of": "in steps of {}"}
WORDS = {int: "integer", float: "number", str: "text", bool: "`true`, `false`", type(None): "`null`", Any: "anything"}
LISTED = "list of "
Row: TypeAlias = tuple[str, str, str, str]
"""Key, what it takes, default, what it is."""


def page() -> str:
    return "\n".join([HEAD, *_section("", Config)])


def _section(path: str, cls: type[Settings]) -> Iterator[str]:
    """The section at `path`, and those below it."""
    paragraphs = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
    words = [line for paragraph in paragraphs for line in (" ".join(paragraph.split()), "")]
    yield from (f"## `{path}`" if path else "## The file", "", *words, *_table(_rows(cls)))
    for name, field in cls.model_fields.items():
        for below, inner in _sections_in(field.annotation):
            place = f"{path}.{field.alias or name}{below}".removeprefix(".")
            if inner is ModelConfig:
                yield from _models(place)
            elif inner is Source:
                imported = {kind: SOURCES[kind] for kind in SOURCES.built_in if kind != "simulate"}
                yield from (f"## `{place}`", "", *_of_kinds(imported))
            else:
                yield from _section(place, inner)


def _models(path: str) -> Iterator[str]:
    """What all trained models have, what some kinds have, and the baselines."""
    found: dict[str, type[ModelConfig]] = {kind: MODELS[kind] for kind in MODELS.built_in}
    trained = {kind: cls for kind, cls in found.items() if issubclass(cls, NeuralConfig)}
    common = [row for row in _rows(NeuralConfig) if row[0] != "`kind`"]
    yield from (
        f"## `{path}`, trained",
        "",
        "All kinds:",
        "",
        *_table(common),
        "Some kinds ([models.md](models.md)):",
        "",
    )
    yield from _of_kinds(trained, common)
    for name, field in NeuralConfig.model_fields.items():
        for _, inner in _sections_in(field.annotation):
            yield from _section(f"{path}.{name}", inner)
    rest = {kind: cls for kind, cls in found.items() if kind not in trained}
    yield from (
        f"## `{path}`, not trained",
        "",
        "In place of a value all take a list of them, to choose from on validation",
    )
    yield from ("([evaluation.md](evaluation.md)).", "", *_of_kinds(rest))


def _of_kinds(found: Mapping[str, type[Settings]], without: Collection[Row] = ()) -> list[str]:
    """A table of the keys of several kinds: what is the same of some of them is one row."""
    merged: dict[Row, list[str]] = {}
    for kind, cls in found.items():
        own = [row for row in _rows(cls) if row not in without and row[0] != "`kind`"]
        for row in own or [("", "", "", "no keys")]:
            merged.setdefault(row, []).append(f"`{kind}`")
    lines = [(key, ", ".join(kinds), *rest) for (key, *rest), kinds in merged.items()]
    return _table(sorted(lines, key=lambda line: line[0]), "kind")


def _table(rows: list[Any], second: str = "") -> list[str]:
    columns = ["key", *([second] if second else []), "takes", "default", "what it is"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return [*lines, *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows), ""]


def _rows(cls: type[Settings]) -> list[Row]:
    texts = _texts(cls)
    return [_row(name, field, texts.get(name, "")) for name, field in cls.model_fields.items()]


def _row(name: str, field: FieldInfo, text: str) -> Row:
    bounds = [
        words.format(getattr(each, bound))
        for each in field.metadata
        for bound, words in BOUNDS.items()
        if getattr(each, bound, None) is not None
    ]
    return (
        f"`{field.alias or name}`",
        _takes(field.annotation, " ".join(bounds)),
        _default(field),
        field.description or text,
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "has to be named"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Settings):
        value = value.model_dump(exclude_defaults=True)
        if not value:
            return ""
    return f"`{yaml.safe_dump(value, default_flow_style=True, width=1_000_000).splitlines()[0]}`"


def _texts(cls: type) -> dict[str, str]:
    """What stands below each field in a class, and in those that it comes from."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not issubclass(base, Settings) or base in (Settings, Kinded):
            continue
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(node, ast.ClassDef)
        for field, below in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                found[ast.unparse(field.target)] = " ".join(str(below.value.value).split())
    return found


def _takes(annotation: Any, bounds: str = "") -> str:
    """The values of a type, in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _takes(arguments[0], bounds)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        some = dict.fromkeys(_takes(each, bounds) for each in arguments)
        return ", ".join(words for words in some if not words.startswith(LISTED) or words[len(LISTED) :] not in some)
    if origin is list:
        return f"{LISTED}{_takes(arguments[0])}"
    if origin is tuple:
        return f"list of {len(arguments)}: {_takes(arguments[0])}"
    if origin is dict:
        return f"mapping of names to {_takes(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return "section"
    return f"{WORDS.get(annotation, getattr(annotation, '__name__', str(annotation)))} {bounds}".strip()


def _sections_in(annotation: Any) -> Iterator[tuple[str, type[Settings]]]:
    """The sections that a value may be or hold, and where in it they lie: here, below a name, or in a list."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is dict:
        yield from ((f".NAME{below}", cls) for below, cls in _sections_in(arguments[1]))
    elif origin is list:
        yield from ((f"[]{below}", cls) for below, cls in _sections_in(arguments[0]))
    elif origin is typing.Annotated:
        yield from _sections_in(arguments[0])
    elif arguments and origin is not typing.Literal:
        for each in arguments:
            yield from _sections_in(each)
    elif isinstance(annotation, type) and issubclass(annotation, Settings):
        yield "", annotation


if __name__ == "__main__":
    print(page(), end="")
