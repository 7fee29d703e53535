#!/usr/bin/env python3
"""Run programs that exceed a timeout or a memory limit, and read their output."""

from __future__ import annotations

from common import expect, place

import ociruntime as oci


def main() -> None:
    with place() as (rootfs, state):
        slow = ["sh", "-c", "trap '' TERM; echo begun; sleep 1000 & sleep 1000"]
        try:
            oci.run(rootfs, slow, capture_output=True, text=True, timeout=0.5, state_root=state)
        except oci.ProcessTimeout as error:
            print(f"too slow: {error}; {error.stdout=}")
            expect(error.stdout, "begun\n")
        else:
            expect("no error", "a ProcessTimeout")

        big = ["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]
        try:
            result = oci.run(rootfs, big, capture_output=True, text=True, memory="32M", state_root=state)
        except oci.UnsupportedError as error:
            print(f"no limits for this user: {error}")
        else:
            print(f"too big: {result.oom_killed=}, {result.returncode=}, at most {result.usage.peak_memory >> 20} MiB")
            expect((result.oom_killed, result.returncode), (True, -9))

        try:
            oci.run(rootfs, ["sh", "-c", "echo no such thing >&2; exit 3"], capture_output=True, check=True, state_root=state)
        except oci.ProcessError as error:
            print(f"checked: {error}")
        else:
            expect("no error", "a ProcessError")
        expect(oci.Container.list(state_root=state), [])


if __name__ == "__main__":
    main()
