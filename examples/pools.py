#!/usr/bin/env python3
"""Run the same program on many inputs: in threads and in processes of `concurrent.futures`, and in joblib if it is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from common import expect, place

import ociruntime as oci

INPUTS = range(20)
AT_ONCE = 4


def double(rootfs: Path, state: Path, number: int) -> int:
    """Double a number, in a container."""
    args = ["sh", "-c", f"echo $((2 * {number}))"]
    return int(oci.run(rootfs, args, capture_output=True, text=True, check=True, state_root=state).stdout)


def pools(work: Callable[[int], int]) -> Iterator[tuple[str, list[int]]]:
    """Yield the name of each kind of pool, and the results of the work in it."""
    for pool in (ThreadPoolExecutor(AT_ONCE), ProcessPoolExecutor(AT_ONCE)):
        with pool:
            yield type(pool).__name__, list(pool.map(work, INPUTS))
    with suppress(ModuleNotFoundError):
        from joblib import Parallel, delayed

        yield "joblib", Parallel(n_jobs=AT_ONCE)(delayed(work)(number) for number in INPUTS)


def main() -> None:
    with place() as (rootfs, state):
        for name, results in pools(partial(double, rootfs, state)):
            expect(results, [2 * number for number in INPUTS])
            print(f"{name}: {len(results)} containers, {AT_ONCE} at once")
        expect(oci.Container.list(state_root=state), [])


if __name__ == "__main__":
    main()
