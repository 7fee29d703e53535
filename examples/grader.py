#!/usr/bin/env python3
"""Grade 100 solutions, some of which hang, print without end, fork without end or read what they should not."""

from __future__ import annotations

import asyncio
import os
import time
import warnings
from collections import Counter

from common import expect, place

import ociruntime as oci
from ociruntime import aio

COUNT = 100
USER = "65534:65534" if os.geteuid() == 0 else None
"""A user without rights, in place of root. What a user's sandbox runs has no other rights than that user."""
SOLUTIONS = (
    "read a; read b; echo $((a + b))",
    "read a; read b; echo $((a - b))",
    "sleep 1000",
    "yes",
    "while :; do (sleep 100 &) ; done",
    "cat /etc/shadow || exit 1",
)
"""Programs that should print the sum of two numbers."""


async def grade(pool: aio.SandboxPool, number: int) -> str:
    """Run one solution in a sandbox of its own, and return the verdict."""
    async with pool.get() as sandbox:
        await sandbox.files.write_text("/solution.sh", SOLUTIONS[number % len(SOLUTIONS)])
        try:
            result = await sandbox.run(
                ["sh", "/solution.sh"], input=f"{number}\n1\n", text=True, timeout=2, user=USER, max_output="1k"
            )
        except oci.ProcessTimeout as error:
            return "too much output" if error.result is not None and error.result.truncated else "too slow"
        if result.oom_killed:
            return "too much memory"
        if result.returncode != 0:
            return "failed"
        return "right" if result.stdout == f"{number + 1}\n" else "wrong"


async def main() -> None:
    warnings.simplefilter("ignore", oci.OCIRuntimeWarning)  # a user without cgroups has weaker limits
    with place() as (rootfs, state):
        options = {"pids": 32, "disk": "8M", "limits": "if possible", "state_root": state}
        async with aio.SandboxPool(rootfs, size=8, **options) as pool:
            limit = asyncio.Semaphore(16)

            async def one(number: int) -> str:
                async with limit:
                    return await grade(pool, number)

            began = time.monotonic()
            verdicts = Counter(await asyncio.gather(*map(one, range(COUNT))))
            print(f"{COUNT} solutions in {time.monotonic() - began:.1f} s: {dict(verdicts)}")
        expect(verdicts["right"], len(range(0, COUNT, len(SOLUTIONS))))
        expect(verdicts["wrong"], len(range(1, COUNT, len(SOLUTIONS))))
        expect(oci.Container.list(state_root=state), [])


if __name__ == "__main__":
    asyncio.run(main())
