#!/usr/bin/env python3
"""Use the asyncio API: many containers at once, live output, events, and cancelling a task."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from subprocess import PIPE

from common import expect, place

import ociruntime as oci
from ociruntime import aio


async def sandboxes(bundle: oci.Bundle, state: Path) -> None:
    runs = [
        aio.run(bundle, ["sh", "-c", f"sleep 0.2; echo {n}"], capture_output=True, text=True, state_root=state) for n in range(30)
    ]
    results = await asyncio.gather(*runs)
    print(f"{len(results)} sandboxes at once, the longest took {max(result.duration for result in results):.2f} s")
    expect([result.stdout for result in results], [f"{number}\n" for number in range(30)])


async def live(bundle: oci.Bundle, state: Path) -> None:
    async with aio.Container.run(f"asyncio-{os.getpid()}", bundle.with_args(["sleep", "1000"]), state_root=state) as container:
        async with container.popen(
            ["sh", "-c", "for i in 1 2 3; do echo line $i; sleep 0.1; done"], stdout=PIPE, text=True
        ) as process:
            async for line in process:
                print("live:", line, end="")

        async def look_on() -> list[str]:
            return [event.kind async for event in container.events()]

        looking = asyncio.create_task(look_on())
        await asyncio.sleep(0.1)
        await container.kill("KILL")
        kinds = await looking
        print(f"events: {', '.join(kinds)}")
        expect(kinds[-1], "exit")


async def cancelled(bundle: oci.Bundle, state: Path) -> None:
    task = asyncio.create_task(aio.run(bundle, ["sleep", "1000"], state_root=state))
    await asyncio.sleep(0.3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    print("containers after cancelling:", oci.Container.list(state_root=state))
    expect(oci.Container.list(state_root=state), [])


async def main() -> None:
    with place() as (rootfs, state):
        bundle = oci.Bundle.from_dir(rootfs.parent)
        for part in (sandboxes, live, cancelled):
            await part(bundle, state)


if __name__ == "__main__":
    asyncio.run(main())
