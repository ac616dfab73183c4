"""torch, torchrec and fbgemm belong together: a mismatch is one sentence at the start, not a crash later."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from ingest.errors import InputError

TRIOS = (("2.13", "1.8", "1.8"), ("2.11", "1.6", "1.6"))
"""Releases of torch, torchrec and fbgemm-gpu (or fbgemm-gpu-cpu) that belong together, newest first."""


def installed(*names: str) -> str | None:
    """The version of the first of `names` that is installed."""
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def check_versions(torch: str | None, torchrec: str | None, fbgemm: str | None) -> None:
    """Raise `InputError` unless the three versions are one of `TRIOS`."""
    found = (torch, torchrec, fbgemm)
    if not any(all(_matches(have, want) for have, want in zip(found, trio, strict=True)) for trio in TRIOS):
        allowed = ", or ".join("torch {}.x with torchrec {}.x and fbgemm {}.x".format(*trio) for trio in TRIOS)
        raise InputError(
            f"torch {torch or 'missing'}, torchrec {torchrec or 'missing'} and fbgemm {fbgemm or 'missing'} "
            f"do not belong together: install {allowed}"
        )


def check_installed_versions() -> None:
    """`check_versions` of what is installed here, and that only one build of fbgemm is."""
    cuda, cpu = installed("fbgemm-gpu"), installed("fbgemm-gpu-cpu")
    if cuda and cpu:
        raise InputError(
            f"fbgemm-gpu {cuda} and fbgemm-gpu-cpu {cpu} are both installed and share one folder: "
            "uninstall both, then install the one for your machine (fbgemm-gpu-cpu without a GPU)"
        )
    check_versions(installed("torch"), installed("torchrec"), cuda or cpu)


def _matches(have: str | None, want: str) -> bool:
    return have is not None and have.split("+")[0].split(".")[:2] == want.split(".")
