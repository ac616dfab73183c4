"""Kinds of models: known by name, imported when asked for, and without torch; one of the test's own among them."""

from __future__ import annotations

import subprocess
import sys
from typing import Literal

import pytest

from ingest.errors import InputError
from trainer.models.registry import NeuralConfig, model_config, register


def test_reading_the_built_in_configs_imports_no_torch() -> None:
    """In a fresh process; each kind's file is imported when it is asked for."""
    code = """
import sys
from trainer.models.registry import model_config
assert not [name for name in sys.modules if name.startswith("trainer.models.") and not name.endswith("registry")]
for kind in ("intentrec", "deep", "sasrec"):
    assert model_config(kind)().kind == kind
    assert f"trainer.models.{kind}" in sys.modules
assert not {"torch", "torchrec", "ray"} & set(sys.modules), "heavy"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_kind_is_told_with_those_that_there_are() -> None:
    with pytest.raises(InputError, match=r"no model of kind 'gru4rec'; allowed: .*deep, .*intentrec, .*sasrec"):
        model_config("gru4rec")


def test_a_kind_that_is_taken_is_not_registered_again() -> None:
    sasrec = model_config("sasrec")

    class Other(NeuralConfig):
        kind: Literal["sasrec"] = "sasrec"

    with pytest.raises(ValueError, match=r"'sasrec' of .* is taken by trainer.models.sasrec"):
        register(Other)
    assert model_config("sasrec") is sasrec
