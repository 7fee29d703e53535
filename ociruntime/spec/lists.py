"""Lists of CPUs and memory nodes as the kernel writes them: ``0-3,7``."""

from __future__ import annotations

from typing import Final

_MAX: Final = 1 << 16


def ranges(text: str) -> list[tuple[int, int]]:
    """First and last number of each range. Raises ValueError: it is no such list, or has numbers of 65536 and above."""
    found = []
    for part in text.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        last = last if dash else first
        if not all(word.isascii() and word.isdigit() for word in (first, last)) or not int(first) <= int(last) < _MAX:
            raise ValueError(f"{text!r} is not a list such as 0-3,7")
        found.append((int(first), int(last)))
    return found
