"""JSON files with a checksum of their content, by which one that was damaged or cut is known.

Imports no torch.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

from ingest.errors import DamagedCheckpointError, InputError
from ingest.storage import read_text, write_text

_KEY = "checksum"


def write_checked(url: str, content: dict[str, Any]) -> None:
    """Write `content` as JSON, with its checksum (CRC-32) beside its own keys."""
    write_text(url, json.dumps(content | {_KEY: _checksum(content)}))


def read_checked(url: str) -> dict[str, Any]:
    """What `write_checked` was given. Raises `DamagedCheckpointError` where the file is gone or something else."""
    return check(url, read_object(url))


def read_object(url: str) -> dict[str, Any]:
    """The JSON object in `url`, whose checksum is still to be compared."""
    try:
        content = json.loads(read_text(url))
    except FileNotFoundError:
        raise DamagedCheckpointError(f"{url}: is gone") from None
    except InputError:
        raise
    except ValueError as error:  # no JSON, or no UTF-8
        raise DamagedCheckpointError(f"{url}: is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise DamagedCheckpointError(f"{url}: is no JSON object")
    return content


def check(url: str, content: dict[str, Any]) -> dict[str, Any]:
    """The `content` of `url` without its checksum. Raises `DamagedCheckpointError` where that is another."""
    rest = {key: value for key, value in content.items() if key != _KEY}
    expected, found = content.get(_KEY), _checksum(rest)
    if found != expected:
        raise DamagedCheckpointError(f"{url}: its content has checksum {found}, and {expected} was expected")
    return rest


def _checksum(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content).encode())
