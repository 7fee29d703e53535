"""What a container may use: pause, resume."""

from __future__ import annotations

import argparse
from typing import Final

import ociruntime as oci

from .common import (
    Verb,
    container_argument,
)


def pause(o: argparse.Namespace) -> None:
    oci.Container.load(o.id, root=o.root).pause()


def resume(o: argparse.Namespace) -> None:
    oci.Container.load(o.id, root=o.root).resume()


VERBS: Final = {
    "pause": Verb(pause, "freeze every process", container_argument),
    "resume": Verb(resume, "thaw every process", container_argument),
}
