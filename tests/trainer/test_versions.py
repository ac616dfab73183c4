"""The trio torch, torchrec, fbgemm."""

from __future__ import annotations

import pytest

from ingest.errors import InputError
from trainer import versions


@pytest.mark.parametrize("trio", [("2.13.0+cpu", "1.8.0", "1.8.0"), ("2.11.1", "1.6.0+cu128", "1.6.2")])
def test_a_matching_trio_passes(trio: tuple[str, str, str]) -> None:
    versions.check_versions(*trio)


def test_what_is_installed_here_passes() -> None:
    versions.check_installed_versions()


@pytest.mark.parametrize("trio", [("2.13.0", "1.6.0", "1.8.0"), ("2.1.3", "1.8.0", "1.8.0"), ("2.13.0", "1.8.0", None)])
def test_a_mismatch_is_one_sentence_with_the_versions(trio: tuple[str, str, str | None]) -> None:
    with pytest.raises(InputError) as error:
        versions.check_versions(*trio)
    message = str(error.value)
    for name, version in zip(("torch", "torchrec", "fbgemm"), trio, strict=True):
        assert f"{name} {version or 'missing'}" in message
    assert "torch 2.13.x with torchrec 1.8.x and fbgemm 1.8.x" in message
    assert "\n" not in message


def test_two_builds_of_fbgemm_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "version", lambda name: "1.8.0")
    with pytest.raises(InputError, match=r"fbgemm-gpu 1\.8\.0 and fbgemm-gpu-cpu 1\.8\.0 are both installed"):
        versions.check_installed_versions()
