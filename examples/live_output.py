#!/usr/bin/env python3
"""Read the output of a program line by line while it runs, and answer it."""

from __future__ import annotations

import os
from subprocess import PIPE

from common import expect, place

import ociruntime as oci

SCRIPT = "for word in one two three; do echo $word; read answer; done; echo the last answer was $answer"


def main() -> None:
    with place() as (rootfs, state):
        bundle = oci.Bundle.from_dir(rootfs.parent)
        with oci.Container.run(f"live-{os.getpid()}", bundle.with_args(["sleep", "1000"]), state_root=state) as container:
            with container.popen(["sh", "-c", SCRIPT], stdin=PIPE, stdout=PIPE, text=True, bufsize=1) as process:
                lines = []
                for line in process:
                    print("the program says:", line, end="")
                    lines.append(line)
                    if len(lines) <= 3:
                        process.stdin.write(f"answer {len(lines)}\n")
            expect(process.returncode, 0)
            expect(lines[-1], "the last answer was answer 3\n")
        expect(oci.Container.list(state_root=state), [])


if __name__ == "__main__":
    main()
