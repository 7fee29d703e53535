"""What the supervisor knows of its container, in a file of its own that nobody else writes: state.json needs no lock for it.

The file has its full size from the beginning and is written in place, so that a full disk cannot keep an exit code from being told.
"""

from __future__ import annotations

import json
import os

NAME = "supervisor.json"
SIZE = 4096


class Record:
    """The supervisor's side. Raises OSError when the file cannot be made."""

    def __init__(self, directory: str) -> None:
        self._facts: dict[str, object] = {}
        self._fd = os.open(f"{directory}/{NAME}", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.posix_fallocate(self._fd, 0, SIZE)
        self.put()

    def put(self, **facts: object) -> None:
        """Add facts; those that are there already change."""
        self._facts.update(facts)
        raw = json.dumps(self._facts).encode()
        if len(raw) > SIZE:
            raise ValueError(f"the record has {len(raw)} bytes, more than {SIZE}")
        os.pwrite(self._fd, raw.ljust(SIZE), 0)


def read(directory: str | os.PathLike[str]) -> dict[str, object]:
    """What the supervisor wrote down; empty without one. Raises ValueError when it cannot be understood."""
    for attempt in range(100):
        try:
            with open(f"{os.fspath(directory)}/{NAME}", "rb") as file:
                raw = file.read(SIZE)
        except FileNotFoundError:
            return {}
        try:
            facts: dict[str, object] = json.loads(raw)
        except ValueError:
            if attempt == 99:
                raise
            continue  # between two halves of a write
        return facts
    raise AssertionError("unreachable")
