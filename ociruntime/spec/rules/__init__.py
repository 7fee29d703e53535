"""Rules of the runtime spec about documents, by area: what its text says beyond the schema, and what a host supports.

Here are the findings that rules collect, and the checks that several of them share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...arguments import shown
from ..base import Problem, parse_ranges

if TYPE_CHECKING:
    from collections.abc import Sequence


class Findings:
    """Problems of a document, in the order in which the rules find them."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def error(self, path: str, message: str, section: str) -> None:
        """Report what the spec forbids, or what no kernel can do."""
        self.problems.append(Problem(path, message, section))

    def warn(self, path: str, message: str, section: str) -> None:
        """Report what the spec advises against, or what is ignored."""
        self.problems.append(Problem(path, message, section, "warning"))

    def check_absolute(self, path: str, value: str | None, section: str) -> None:
        """Report an error unless the value is an absolute path, or absent."""
        if value is not None and not value.startswith("/"):
            self.error(path, f"{shown(value)} is not an absolute path", section)

    def check_text(self, path: str, value: str | Sequence[str] | None, section: str) -> None:
        """Report an error for a string, or each of several, that no system call takes."""
        items = [(path, value)] if isinstance(value, str) else [(f"{path}[{i}]", text) for i, text in enumerate(value or ())]
        for where, text in items:
            if "\0" in text:
                self.error(where, "a NUL byte cannot be passed to the kernel", section)
            if not text.isascii() and any("\ud800" <= c < "\udc80" or "\udd00" <= c <= "\udfff" for c in text):
                self.error(where, "half of a surrogate pair has no bytes", section)

    def check_ranges(self, path: str, text: str | None, section: str, prefix: str = "") -> None:
        """Report an error unless the value is a list such as ``0-3,7``, or absent or empty. The message begins with the prefix."""
        if text and text.strip():
            try:
                parse_ranges(text)
            except ValueError as error:
                self.error(path, f"{prefix}{error}", section)

    def check_environment(self, path: str, env: Sequence[str], section: str) -> None:
        """Warn about entries that are not ``NAME=value``, and about names that appear twice."""
        seen: set[str] = set()
        for index, entry in enumerate(env):
            name, equals, _ = entry.partition("=")
            if not equals or not name:
                self.warn(f"{path}[{index}]", f"{entry[:40]!r} is not NAME=value", section)
            elif name in seen:
                self.warn(f"{path}[{index}]", f"{name} appears twice; the last one counts", section)
            seen.add(name)


def version_numbers(version: str) -> tuple[int, int, int] | None:
    """Return major, minor and patch of a SemVer 2.0.0 version, or None if the text is not one."""
    numbers = version.partition("+")[0].partition("-")[0].split(".")
    if len(numbers) != 3 or not all(n.isascii() and n.isdigit() and (n == "0" or n[0] != "0") for n in numbers):
        return None
    return int(numbers[0]), int(numbers[1]), int(numbers[2])
