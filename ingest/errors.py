"""The one kind of error that is the user's to mend: shown as a single sentence, without a traceback."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: names the file, key or column, what it got and what is allowed.

    The command line prints its message and exits with status 2.
    """


class StorageError(InputError):
    """A storage that did not answer, or had no room, for as long as it was asked again: later it may."""


class DamagedShardError(InputError):
    """A prepared shard that is not what its manifest says; where the config says so, it is set aside and reported."""


class DamagedCheckpointError(InputError):
    """A checkpoint that is not what its marker says; it is set aside by name and the one before it taken."""
