"""Removing containers that have stopped or lost their caller, and what crashes have left."""

from __future__ import annotations

import os

from ..errors import BundleError, ContainerNotFound
from ..rootfs.bundles import prune_records
from ..state import StateStore, Status
from .delete import after_delete, read, sweep
from .orphans import has_caller, remove_orphans

_OVER = (Status.STOPPED, Status.CREATING)
"""``creating`` with nobody who holds the lock: its maker has died."""


def prune(*, root: str | os.PathLike[str] | None = None) -> tuple[str, ...]:
    """Remove all containers that nothing uses any more, and what crashes have left.

    These are containers that are stopped or damaged, those whose making was interrupted, and orphans: containers of `run` whose
    caller has ended, which are killed first. All others stay. Bundles that a process was mounting or unmounting when it was killed
    go too.

    Args:
        root: the state directory; ``/run/ociruntime`` for root by default.

    Returns:
        The ids of the containers that were removed.

    Raises:
        StateError, BundleError, OSError: something cannot be removed; the rest is removed all the same.
    """
    store = StateStore(root)
    removed, failures = remove_orphans(store)
    failure = next(iter(failures.values()), None)
    for entry in store.entries():
        try:
            with entry.locked(wait=False):
                document, status = read(entry, force=True)
                if status not in _OVER or has_caller(store, entry.id):
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
