"""Which containers there are: list."""

from __future__ import annotations

import argparse
import json
from typing import Final

import ociruntime as oci

from ..errors import ContainerNotFound
from .common import (
    Parser,
    Verb,
    format_argument,
    table,
    when,
)


def _list(sub: Parser) -> None:
    format_argument(sub)
    sub.add_argument("--quiet", "-q", action="store_true", help="ids only")


def list_(o: argparse.Namespace) -> None:
    states = []
    for container in oci.Container.list(root=o.root):
        try:
            states.append(container.state)
        except ContainerNotFound:
            continue  # deleted meanwhile
    if o.quiet:
        for entry in states:
            print(entry.id)
    elif o.format == "json":
        print(json.dumps([{**entry.to_dict(), "pid": entry.pid, "created": when(entry.created_at)} for entry in states]))
    else:
        rows = [("ID", "PID", "STATUS", "BUNDLE", "CREATED")]
        rows += [(s.id, str(s.pid), str(s.status), s.bundle, when(s.created_at)) for s in states]
        table(rows)


VERBS: Final = {
    "list": Verb(list_, "list containers", _list),
}
