"""What a container may use, and what it uses: update, pause, resume, events."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

import ociruntime as oci

from ..errors import WrongStatus
from ..stats import Event


def update(options: Namespace) -> None:
    container = oci.Container.load(options.id, state_root=options.root)
    limits = {name: value for name in options.limits if (value := getattr(options, name)) is not None}
    if options.resources is None:
        container.update(**limits)
        return
    if limits:
        raise ValueError("--resources and single limits exclude each other")
    from ..spec import Resources

    text = sys.stdin.buffer.read() if options.resources == "-" else Path(options.resources).read_bytes()
    container.update(Resources.loads(text))


def pause(options: Namespace) -> None:
    oci.Container.load(options.id, state_root=options.root).pause()


def resume(options: Namespace) -> None:
    oci.Container.load(options.id, state_root=options.root).resume()


def events(options: Namespace) -> None:
    container = oci.Container.load(options.id, state_root=options.root)
    if options.stats:
        if not container.state.status.can_kill:
            raise WrongStatus(options.id, "measure", container.status, "running")
        print(json.dumps(Event("stats", 0, stats=container.stats()).to_dict(options.id)))
        return
    for event in container.events(options.interval):
        print(json.dumps(event.to_dict(options.id)), flush=True)
