"""The recovery record of a container: what ``delete --force`` needs when state.json is damaged or missing.

It is a file of lines, each a JSON object; the members of all of them together are the record. Only the creator of the container
appends lines, always before the same facts go to state.json, and the record is complete before the container's process runs.
A line without its newline was being written when the creator was killed, and does not count.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Final

from .files import write_all

NAME: Final = "recovery"
MEMBERS: Final = ("bundle", "rootfs", "annotations", "hooks", "cgroups", "undo", "supervisor", "ephemeral", "pid", "pid_start")
"""Members of `StateRecord` that are recorded."""
_RESERVE: Final = 128
"""Bytes that are kept free for the line with the pid, so that no lack of space can prevent it."""


class Recovery:
    """The creator's side of a recovery record.

    Args:
        directory: the container's directory.
    """

    def __init__(self, directory: str) -> None:
        self._path = f"{directory}/{NAME}"
        self._recorded: dict[str, object] = {}
        self._end = 0

    def add(self, document: Mapping[str, object]) -> None:
        """Append what a state document has and the record does not have yet. Raises OSError."""
        facts = {name: document[name] for name in MEMBERS if name in document and self._recorded.get(name) != document[name]}
        if not facts:
            return
        line = json.dumps(facts).encode() + b"\n"
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(fd, self._end, len(line) + (0 if "pid" in facts else _RESERVE))
            os.lseek(fd, self._end, os.SEEK_SET)
            write_all(fd, line)
        finally:
            os.close(fd)
        self._recorded.update(facts)
        self._end += len(line)


def read(directory: str) -> dict[str, object] | None:
    """Return the record of a container: empty while it has no complete line, None without a file.

    Raises:
        ValueError: the record is damaged.
    """
    try:
        with open(f"{directory}/{NAME}", "rb") as file:
            *lines, _ = file.read().split(b"\n")
    except FileNotFoundError:
        return None
    facts: dict[str, object] = {}
    for line in lines:
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError(f"{values!r} is not an object")
        facts.update(values)
    return facts
