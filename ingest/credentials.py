"""Credentials: how one is known in a text, so that none is kept, printed or sent. They come from the environment alone.

Known are the values of this process's variables that are named like credentials, and URLs that carry a user, a password
or a signature.
"""

from __future__ import annotations

import os
import re

SECRET_NAME = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|PRIVATE_KEY|API_KEY|ACCESS_KEY", re.IGNORECASE)
SHORTEST = 8
"""Letters of a value that is looked for: a shorter one would be found in any text."""
USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")
_IN_URL = re.compile(
    USER_IN_URL.pattern + r"|://\S*[?&](X-Amz-(Signature|Credential|Security-Token)|Signature|sig)=", re.I
)


def secrets() -> dict[str, str]:
    """The credentials of this process's environment, the longest first: value -> name of its variable."""
    found = {value: name for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= SHORTEST}
    return dict(sorted(found.items(), key=lambda pair: len(pair[0]), reverse=True))


def found_in(text: str) -> str | None:
    """Which credential `text` has, in words without it; None where it has none."""
    if _IN_URL.search(text):
        return "a URL with a user, a password or a signature"
    return next((f"the value of {name}" for value, name in secrets().items() if value in text), None)


def hidden(text: str) -> str:
    """`text` without the credentials of this process's environment."""
    for value in secrets():
        text = text.replace(value, "***")
    return text
