"""Configuration: each component owns a `Settings` class whose checks run at construction.

An unknown key, a wrong type or an impossible value is refused in one sentence that names the key, what it
got and what it takes.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ingest.errors import InputError

S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """Base of every configuration section: immutable, typed, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def load_settings(cls: type[S], source: str | Path, overrides: Sequence[str] = ()) -> S:
    """Read `cls` from the YAML file `source`, with `key.sub=value` overrides applied on top.

    Raises `InputError` with one sentence where the file, an override or a value is not what `cls` takes.
    """
    return build_settings(cls, load_content(source, overrides), str(source))


def load_content(source: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The YAML file `source` as it is written, with the overrides, and nothing checked but that it is a mapping."""
    path = Path(source)
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError:
        raise InputError(f"{path}: no such config file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: a config is a mapping of keys to values, got {type(content).__name__}")
    for override in overrides:
        apply_override(content, override)
    return content


def build_settings(cls: type[S], content: dict[str, Any], source: str) -> S:
    """Validate `content` as `cls`; `source` is the name that an error gives for where it came from."""
    try:
        return cls.model_validate(content)
    except ValidationError as error:
        raise InputError(_sentence(cls, error, source)) from None


def apply_override(content: dict[str, Any], override: str) -> None:
    """Set `key.sub=value` in `content`, in place; the value is read as YAML. Lists take their index as a key."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"override {override!r}: takes the form key.sub=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"override {override!r}: the value is not valid YAML") from None
    *parents, last = key.split(".")
    node: Any = content
    for parent in parents:
        if isinstance(node, dict) and node.get(parent) is None:
            node[parent] = {}
        node = _child(node, parent, override)
    if isinstance(node, dict):
        node[last] = value
    elif isinstance(node, list):
        _child(node, last, override)
        node[int(last)] = value
    else:
        raise InputError(f"override {override!r}: {'.'.join(parents)} is a {type(node).__name__} and has no keys")


def _child(node: Any, key: str, override: str) -> Any:
    if isinstance(node, dict):
        return node[key]
    if isinstance(node, list) and key.isdigit() and int(key) < len(node):
        return node[int(key)]
    raise InputError(f"override {override!r}: there is no key {key!r} here, in a {type(node).__name__}")


def _sentence(cls: type[BaseModel], error: ValidationError, source: str) -> str:
    first = error.errors()[0]
    location = [part for part in first["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    key = ".".join(str(part) for part in location)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        allowed = _keys_at(cls, location[:-1])
        takes = f"; allowed: {', '.join(allowed)}" if allowed else ""
        return f"{source}: unknown key {key!r}{takes}{more}"
    if first["type"] == "missing":
        return f"{source}: key {key!r} is missing{more}"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if first["type"] == "value_error" and not key else f", got {_short(first['input'])}"
    return f"{source}: {f'{key}: ' if key else ''}{message}{got}{more}"


def _short(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def _keys_at(cls: Any, location: Sequence[Any]) -> list[str]:
    """The keys that the settings class at `location` below `cls` takes, or none where it cannot be told."""
    for part in location:
        candidates = _classes_in(cls)
        if not candidates:
            return []
        cls = candidates[0]
        if isinstance(cls, type) and issubclass(cls, BaseModel):
            field = cls.model_fields.get(str(part))
            if field is not None:
                cls = field.annotation
    candidates = _classes_in(cls)
    return sorted(candidates[0].model_fields) if candidates else []


def _classes_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) is None and not isinstance(annotation, types.UnionType):
        return []
    return [found for argument in typing.get_args(annotation) for found in _classes_in(argument)]
