"""The README's commands and configs, as its reader would copy them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)
    for kind, block in _BLOCKS
    if kind == "bash"
    for line in block.splitlines()
    if line.strip()
]
STAGES = [words for words in COMMANDS if words[0] == "intentrec" and words[1] not in ("submit", "jobs")]
"""The commands of the stages, in their order."""
(SHOP,) = [block for kind, block in _BLOCKS if kind == "yaml"]
"""The config of a shop's log."""
(EXTENSION,) = [block for kind, block in _BLOCKS if kind == "python"]
"""A module with kinds of one's own."""
