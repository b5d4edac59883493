"""The one exception a user can cause and mend, and the mistake that many functions find."""

import os
from pathlib import Path


class InputError(ValueError):
    """A mistake of the user's: one sentence that names the offending value and the way out.

    The command line prints the sentence without a traceback and exits with 2; a notebook shows it as any ValueError.
    """


def local(path: str | os.PathLike) -> Path:
    """A path to write to, on this machine. Raises InputError for one in a bucket: only trainings write there."""
    if "://" in os.fspath(path):
        raise InputError(f"only trainings write to {os.fspath(path)}: mount the bucket (gcsfuse), and give that path")
    return Path(path)
