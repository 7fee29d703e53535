"""Removing the containers that nobody needs any more, and what crashes have left."""

from __future__ import annotations

import os

from ..errors import BundleError, ContainerNotFound
from ..rootfs.bundles import prune_records
from ..state import StateStore, Status
from .delete import after_delete, read, sweep

_OVER = (Status.STOPPED, Status.CREATING)
"""``creating`` with nobody who holds the lock: its maker has died."""


def prune(*, root: str | os.PathLike[str] | None = None) -> tuple[str, ...]:
    """Remove every container that is stopped, damaged, or was being made by somebody who died; gives their ids.

    Containers that are being made, run, or wait for their start stay. Bundles that a process was mounting or unmounting when it
    was killed go too. Raises OSError or BundleError when something cannot be removed; the rest is removed all the same.

    Args:
        root: the state directory; ``/run/ociruntime`` for root by default.
    """
    removed: list[str] = []
    failure: Exception | None = None
    for entry in StateStore(root).entries():
        try:
            with entry.locked(wait=False):
                document, status = read(entry, force=True)
                if status not in _OVER:
                    continue
                sweep(entry, document)
            removed.append(entry.id)
            after_delete(document)
        except (BlockingIOError, ContainerNotFound):
            continue  # somebody is at work on it, or was faster
        except Exception as error:
            failure = failure or error
    try:
        prune_records()
    except (BundleError, OSError) as error:
        failure = failure or error
    if failure is not None:
        raise failure
    return tuple(removed)
