"""Removing containers that have stopped or lost their caller, and what crashes have left."""

from __future__ import annotations

from ..errors import BundleError, ContainerNotFound
from ..overrides import StrPath
from ..rootfs.bundles import prune_records
from ..state import StateStore, Status
from .delete import after_delete, read, sweep
from .orphans import has_caller, remove_orphans

_OVER = (Status.STOPPED, Status.CREATING)
"""``creating`` while no process has the lock: the process that was creating it has died."""


def prune(*, state_root: StrPath | None = None) -> tuple[str, ...]:
    """Remove all containers that nothing uses any more, and what crashes have left.

    These are containers that are stopped or damaged, those whose making was interrupted, and orphans: containers of `run` whose
    caller has ended, which are killed first. All others stay. Bundles that a process was mounting or unmounting when it was killed
    go too.

    Args:
        state_root: the state directory; by default ``/run/ociruntime`` for root.

    Returns:
        The ids of the containers that were removed.

    Raises:
        StateError, BundleError, OSError: something cannot be removed; the rest is removed all the same.
    """
    store = StateStore(state_root)
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
            continue  # another process is at work on it, or has removed it
        except Exception as error:
            failure = failure or error
    try:
        prune_records()
    except (BundleError, OSError) as error:
        failure = failure or error
    if failure is not None:
        raise failure
    return tuple(removed)
