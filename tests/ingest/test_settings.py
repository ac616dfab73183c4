"""A config that is wrong is refused in one sentence with its key; a file that is none, with its path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ingest.data.schema import DataConfig
from ingest.errors import InputError
from ingest.settings import Settings, build_settings, load_content, load_settings


class Whole(Settings):
    name: str
    data: DataConfig = DataConfig()


def refused(content: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        build_settings(Whole, {"name": "n", "data": content}, "c.yaml")
    message = str(caught.value)
    assert message.startswith("c.yaml: ")
    assert "\n" not in message
    return message.removeprefix("c.yaml: ")


NUMBER: dict[str, Any] = {"name": "n", "kind": "number"}
AGE: dict[str, Any] = {"name": "age", "kind": "elapsed"}


@pytest.mark.parametrize(
    ("feature", "key", "said", "got"),
    [
        ({"name": "item"}, "name", "this name is taken", "'item'"),
        ({"name": "1a"}, "name", "pattern", "'1a'"),
        ({"name": "a", "bins": 3}, "bins", "kind category does not take it", "3"),
        ({"name": "a", "kind": "colour"}, "kind", "category, categories, number, elapsed", "'colour'"),
        ({"name": "a", "first_of": {}}, "first_of", "one label at least", "{}"),
        ({"name": "a", "first_of": {"x": "y"}, "column": "c"}, "first_of", "without a column", "{'x': 'y'}"),
        (NUMBER | {"bins": [3, 2]}, "bins", "must rise", "[3, 2]"),
        (NUMBER | {"bins": []}, "bins", "one at least", "[]"),
        (NUMBER | {"bins": ["7d"]}, "bins", "takes numbers", "['7d']"),
        (NUMBER | {"bins": "many"}, "bins", "valid list or a valid integer", "'many'"),
        (NUMBER | {"bins": 1}, "bins", "at least 2", "1"),
        (NUMBER | {"bins": 2, "bin_labels": ["a"]}, "bin_labels", "2 bins take 2 labels, not 1", "['a']"),
        (NUMBER | {"bin_labels": ["a"]}, "bin_labels", "goes with bins", "['a']"),
        (NUMBER | {"intent": True}, "intent", "only with bins", "True"),
        (NUMBER | {"since_first_event": True}, "since_first_event", "does not take it", "True"),
        (AGE, "bins", "needs them, such as [7d, 30d]", ""),
        (AGE | {"bins": ["7days"]}, "bins", "with a unit ms, s, m, h, d, w or y", "['7days']"),
        (AGE | {"bins": [1], "unit": "month"}, "unit", "'year'", "'month'"),
        ({"name": "a", "of": "item"}, "of", "data.items names no item table", "'item'"),
        ({"name": "first"}, "name", "'first' is declared twice", "'first'"),
        (NUMBER | {"at_request": True}, "at_request", "an event's feature with one value of a vocabulary", "True"),
        ({"name": "a", "of": "item", "at_request": True}, "at_request", "an event's feature", "True"),
        ({"name": "a", "kind": "categories", "at_request": True}, "at_request", "with one value", "True"),
        ({"name": "a", "intent": True, "at_request": True}, "at_request", "nothing to predict", "True"),
    ],
)
def test_a_features_error_names_its_key_and_not_the_whole_feature(
    feature: dict[str, Any], key: str, said: str, got: str
) -> None:
    message = refused({"events": "e", "features": [{"name": "first"}, feature]})
    assert message.startswith(f"data.features[1].{key}: ")
    assert said in message
    assert message.endswith(f", got {got}" if got else said)


def test_other_keys_are_named_where_they_stand() -> None:
    age = {"features": [AGE | {"bins": ["1d"]}]}
    assert refused({"time_unit": "position"} | age).startswith("data.features[0].kind: needs real times")
    assert refused({"time_unit": "position", "until": "2020-01-01"}).startswith("data.until: a log with time_unit posi")
    assert refused({"features": [{"name": "a", "bin": 3}]}).startswith(
        "unknown key 'data.features[0].bin'; allowed: at_request, bin_"
    )
    assert refused({"features": [{"kind": "number"}]}) == "key 'data.features[0].name' is missing"
    assert refused({"split": {"kind": "point_in_time"}}).startswith("data.split: split point_in_time needs both spans")
    two = refused({"min_item_count": 0, "min_user_events": "x"})
    assert two == "data.min_item_count: Input should be greater than or equal to 1, got 0 (and 1 more)"


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("name: a\ndata:\n  events: e\nname: b\n", 4, "name"),
        ("name: a\ndata:\n  events: e\n  items: i\n  events: f\n", 5, "events"),
        ("name: a\ndata:\n  features:\n    - name: x\n      kind: number\n      name: y\n", 6, "name"),
        ("name: a\ndata:\n  features: [{name: x}, {name: y, of: item, of: event}]\n", 3, "of"),
        ("name: a\ndata: {split: {'test': 1d, test: 2d}}\n", 2, "test"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path: Path, text: str, line: int, key: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        load_settings(Whole, tmp_path / "c.yaml")
    assert str(caught.value) == f"{tmp_path / 'c.yaml'}: line {line}: key {key!r} stands twice"


def test_a_key_that_replaces_a_merged_one_is_fine(tmp_path: Path) -> None:
    text = "base: {split: &split {kind: a, test: 1d}}\ndata: {split: {<<: *split, test: 2d}}\nlist: [{a: 1}, {a: 2}]\n"
    (tmp_path / "c.yaml").write_text(text)
    assert load_content(tmp_path / "c.yaml") == yaml.safe_load(text)


def test_an_override_with_a_key_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: a\n")
    with pytest.raises(InputError, match=r"override 'data=.*key 'items' stands twice"):
        load_settings(Whole, tmp_path / "c.yaml", ["data={items: a, items: b}"])


def test_overrides_take_the_keys_that_errors_name(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: a\ndata: {features: [{name: x}, {name: y}]}\n")
    for key in ("data.features[1].min_count", "data.features.1.min_count"):
        assert load_settings(Whole, tmp_path / "c.yaml", [f"{key}=7"]).data.features[1].min_count == 7


def test_a_file_that_is_no_config_is_told(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("name: caf\xe9\n".encode("latin-1"))
    (tmp_path / "list.yaml").write_text("- name\n")
    (tmp_path / "broken.yaml").write_text("name: [a\n")
    expected = {
        "": "is a folder; name a config file",
        "nowhere.yaml": "no such config file",
        "latin.yaml": "a config is UTF-8 text, but its byte 9 is not",
        "list.yaml": "a config is a mapping of keys to values, got list",
        "broken.yaml": "not valid YAML",
    }
    for name, said in expected.items():
        with pytest.raises(InputError) as caught:
            load_settings(Whole, tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {said}")
