#!/usr/bin/env python3
"""Run many containers from a pool of threads, and many programs in one container."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

from common import expect, place

import ociruntime as oci

COUNT = 40


def main() -> None:
    with place() as (rootfs, state):
        bundle = oci.Bundle.from_dir(rootfs.parent)

        def sandbox(number: int) -> str:
            script = ["sh", "-c", "echo $((NUMBER * NUMBER))"]
            return str(
                oci.run(bundle, script, env={"NUMBER": str(number)}, capture_output=True, text=True, state_root=state).stdout
            )

        with ThreadPoolExecutor(4) as pool:
            began = time.monotonic()
            squares = list(pool.map(sandbox, range(COUNT)))
            print(f"{COUNT} containers: {COUNT / (time.monotonic() - began):.0f} a second")
            expect(squares, [f"{number * number}\n" for number in range(COUNT)])

            with oci.Container.run(f"shared-{os.getpid()}", bundle.with_args(["sleep", "1000"]), state_root=state) as container:
                began = time.monotonic()
                results = list(pool.map(lambda number: container.exec(["sh", "-c", f"exit {number}"]), range(COUNT)))
                print(f"{COUNT} programs in one container: {COUNT / (time.monotonic() - began):.0f} a second")
            expect([result.returncode for result in results], list(range(COUNT)))
        expect(oci.Container.list(state_root=state), [])


if __name__ == "__main__":
    main()
