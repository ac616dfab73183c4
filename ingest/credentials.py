"""Credentials: how one is known in a text, so that none is kept, printed or sent.

They come from the environment alone, or from the file that AWS's clients read. Known are the values of this process's
variables that are named like credentials, those of that file, and URLs that carry a user, a password or a signature.
"""

from __future__ import annotations

import configparser
import functools
import os
import re
from contextlib import suppress

SECRET_NAME = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|PRIVATE_KEY|API_KEY|ACCESS_KEY", re.IGNORECASE)
SHORTEST = 8
"""Letters of a value that is looked for: a shorter one would be found in any text."""
_AWS_FILE = "AWS_SHARED_CREDENTIALS_FILE"
USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")
_IN_URL = re.compile(
    USER_IN_URL.pattern + r"|://\S*[?&](X-Amz-(Signature|Credential|Security-Token)|Signature|sig)=", re.I
)


def secrets() -> dict[str, str]:
    """The credentials that are known, the longest first: value -> name of its variable or key."""
    path, named = os.path.expanduser(os.environ.get(_AWS_FILE, "~/.aws/credentials")), [*os.environ.items()]
    with suppress(OSError):  # no file, or one that the clients can not read either
        named += _in_file(path, os.stat(path).st_mtime_ns)
    secret = [(value, name) for name, value in named if SECRET_NAME.search(name) and name != _AWS_FILE]
    found = {value: name for value, name in secret if len(value) >= SHORTEST}
    return dict(sorted(found.items(), key=lambda pair: len(pair[0]), reverse=True))


@functools.lru_cache(maxsize=1)
def _in_file(path: str, changed: int) -> tuple[tuple[str, str], ...]:
    """The names and values of AWS's file of credentials, which was `changed` at that time."""
    found = configparser.RawConfigParser()
    with suppress(UnicodeDecodeError, configparser.Error), open(path) as file:
        found.read_file(file)
    return tuple((name, value) for section in found.values() for name, value in section.items())


def found_in(text: str) -> str | None:
    """Which credential `text` has, in words without it; None where it has none."""
    if _IN_URL.search(text):
        return "a URL with a user, a password or a signature"
    return next((f"the value of {name}" for value, name in secrets().items() if value in text), None)


def hidden(text: str) -> str:
    """`text` without the credentials that are known."""
    for value in secrets():
        text = text.replace(value, "***")
    return text
