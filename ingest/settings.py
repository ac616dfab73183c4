"""Configuration: each component owns a `Settings` class whose checks run at construction.

An unknown key, a key that stands twice, a wrong type or an impossible value is refused in one sentence that names the
key, what it got and what it takes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import PydanticUndefined

from ingest.credentials import found_in
from ingest.errors import InputError

S = TypeVar("S", bound="Settings")


class SettingError(ValueError):
    """What is wrong with the value of one `key` of a section, found by a check of several keys together."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


class UnknownKeyError(SettingError):
    """A key that a section does not take."""


class Record(BaseModel):
    """Immutable and typed; without checks in Python, so that tens of thousands are read from JSON at once."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Settings(Record):
    """Base of every configuration section, closed to unknown keys and to numbers that are not finite."""

    model_config = ConfigDict(allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, content: Any) -> Any:
        allowed = sorted(field.alias or name for name, field in cls.model_fields.items())
        for key in content if isinstance(content, dict) else ():
            if key not in allowed and key not in cls.model_fields:
                raise UnknownKeyError(str(key), f"allowed: {', '.join(allowed)}")
        return content


class Kinded(Settings):
    """Base of sections whose class is looked up by their `kind`: validating the base gives the one of that kind."""

    kind: str

    @classmethod
    def class_of(cls, kind: str | None) -> type[Kinded]:
        """The class of a kind, or of the one by default; `ValueError` with the allowed kinds where there is none."""
        raise NotImplementedError

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_kind(cls, content: Any, handler: ModelWrapValidatorHandler[Any]) -> Any:
        if not isinstance(content, dict) or cls.model_fields["kind"].default is not PydanticUndefined:
            return handler(content)
        try:
            found = cls.class_of(content.get("kind"))
        except ValueError as error:
            raise SettingError("kind", str(error)) from None
        return found.model_validate(content)


def load_settings(cls: type[S], source: str | Path, overrides: Sequence[str] = ()) -> S:
    """Read `cls` from the YAML file `source`, with `key.sub=value` overrides applied on top.

    Raises `InputError` with one sentence where the file, an override or a value is not what `cls` takes.
    """
    return build_settings(cls, load_content(source, overrides), str(source))


def load_content(source: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The YAML file `source` as it is written, with the overrides; it has to be a mapping without a credential.

    Everything that is made from a config keeps it or shows it.
    """
    path = Path(source)
    for number, override in enumerate(overrides, 1):
        _refuse_credential(f"override {number} of the command", override)
    try:
        content = parse_content(path.read_text("utf-8"), str(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such config file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; name a config file") from None
    except OSError as error:
        raise InputError(f"{path}: this config file can not be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: a config is UTF-8 text, but its byte {error.start} is not") from None
    for override in overrides:
        apply_override(content, override)
    return content


def parse_content(text: str, source: str) -> dict[str, Any]:
    """The YAML `text` of a config or a part of one; `source` is the name that an error gives for where it came from."""
    _refuse_credential(source, text)
    try:
        content = _unshared(yaml.load(text, _Loader)) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{source}: {_yaml_sentence(error)}") from None
    if not isinstance(content, dict):
        raise InputError(f"{source}: a config is a mapping of keys to values, got {type(content).__name__}")
    return content


def overrides_of(content: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The values of a part of a config as `key.sub=value` overrides."""
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from overrides_of(value, f"{above}{key}.")
        else:
            yield f"{above}{key}={json.dumps(value, default=str)}"


def _refuse_credential(where: str, text: str) -> None:
    found = found_in(text)
    if found is not None:
        raise InputError(
            f"{where}: has {found}; a run's folder keeps its config, so credentials come from the environment alone, "
            "such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )


def build_settings(cls: type[S], content: dict[str, Any], source: str) -> S:
    """Validate `content` as `cls`; `source` is the name that an error gives for where it came from."""
    try:
        return cls.model_validate(content)
    except ValidationError as error:
        raise InputError(sentence(error, content, source)) from None


def _unshared(value: Any) -> Any:
    """A copy in which what an anchor names is there once for each alias, so that one can be changed alone."""
    if isinstance(value, dict):
        return {key: _unshared(below) for key, below in value.items()}
    return [_unshared(each) for each in value] if isinstance(value, list) else value


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping."""

    def compose_mapping_node(self, anchor: dict[Any, Any]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        assert isinstance(node, yaml.MappingNode)
        found = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in found:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} stands twice", problem_mark=key.start_mark)
            found.add((key.tag, str(key.value)))
        return node


def _yaml_sentence(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None and error.context is None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return f"not valid YAML: {' '.join(str(error).split())}"


def apply_override(content: dict[str, Any], override: str) -> None:
    """Set `key.sub=value` in `content`, in place; the value is read as YAML. Items of lists are `key[0]` or `key.0`."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"override {override!r}: takes the form key.sub=value")
    try:
        value = _unshared(yaml.load(text, _Loader))
    except yaml.YAMLError as error:
        raise InputError(f"override {override!r}: the value is not valid YAML: {_yaml_sentence(error)}") from None
    set_key(content, key, value, f"override {override!r}")


def set_key(content: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Set `key.sub` in `content` to `value`, in place; `source` is what an error says that it came from.

    A key that is there may have dots itself, as a model's name.
    """
    parts = key.replace("[", ".").replace("]", "").split(".")
    node: Any = content
    parents: list[str] = []
    while len(parts := _joined(node, parts)) > 1:
        parent, *parts = parts
        parents.append(parent)
        if isinstance(node, dict) and node.get(parent) is None:
            node[parent] = {}
        node = _child(node, parent, source)
    (last,) = parts
    if isinstance(node, dict):
        node[last] = value
    elif isinstance(node, list):
        _child(node, last, source)
        node[int(last)] = value
    else:
        raise InputError(f"{source}: {'.'.join(parents)} is a {type(node).__name__} and has no keys")


def _joined(node: Any, parts: list[str]) -> list[str]:
    """The same with the most parts joined at the front that are a key of `node` together."""
    for count in range(len(parts), 1, -1) if isinstance(node, dict) else ():
        if (together := ".".join(parts[:count])) in node:
            return [together, *parts[count:]]
    return parts


def _child(node: Any, key: str, source: str) -> Any:
    if isinstance(node, dict):
        return node[key]
    if isinstance(node, list) and key.isdigit() and int(key) < len(node):
        return node[int(key)]
    raise InputError(f"{source}: there is no key {key!r} here, in a {type(node).__name__}")


def sentence(error: ValidationError, content: Any, source: str) -> str:
    """The first key that is wrong: what it got, and what it takes."""
    found: dict[str, list[str]] = {}
    got: dict[str, str] = {}
    for problem in error.errors():
        location, value = _location(problem["loc"], content)
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, SettingError):
            inner = [int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", cause.key)]
            location, value = _location([*location, *inner], content)
        key = re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", ".".join(map(str, location)))
        if isinstance(cause, UnknownKeyError):
            said = f"unknown key {key!r}; {cause}"
        elif problem["type"] == "missing":
            said = f"key {key!r} is missing"
        else:
            said = problem["msg"].removeprefix("Value error, ")
            said = said.removeprefix("Input should be ") if key in found else f"{key}: {said}" if key else said
            of_section = isinstance(value, dict) and not isinstance(cause, SettingError)
            got[key] = "" if value is None or of_section else f", got {_short(value)}"
        found.setdefault(key, []).append(said)
    first, messages = next(iter(found.items()))
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{source}: {' or '.join(messages)}{got.get(first, '')}{more}"


def _location(parts: Sequence[Any], content: Any) -> tuple[list[Any], Any]:
    """The keys among `parts`, without what pydantic says of validators and unions; and the value there."""
    found: list[Any] = []
    for place, part in enumerate(parts):
        inside = isinstance(content, dict) and part in content
        inside = inside or (isinstance(content, list) and isinstance(part, int) and part < len(content))
        absent = isinstance(content, dict) and not any(later in content for later in parts[place + 1 :])
        if inside or (absent and not str(part).startswith("function-")):
            found.append(part)
            content = content[part] if inside else None
    return found, content


def _short(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
