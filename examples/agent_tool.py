#!/usr/bin/env python3
"""A tool for an agent: it runs the code that a model writes, within limits, and keeps its files until a reset."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from subprocess import STDOUT
from typing import Any

from common import expect, place

import ociruntime as oci

TOOL = {
    "name": "shell",
    "description": "Run a shell script in /work, which keeps its files between calls. It has no network.",
    "input_schema": {
        "type": "object",
        "properties": {"script": {"type": "string"}, "reset": {"type": "boolean", "description": "Begin with an empty /work."}},
    },
}
"""What the model is told."""


class Shell:
    """The tool: one sandbox for all calls of a conversation. Answers are text for the model, whatever the script does."""

    seconds = 2

    def __init__(self, image: Path, **options: Any) -> None:
        self.sandbox = oci.Sandbox(
            image,
            memory="64M",
            pids=32,
            disk="16M",
            network="none",
            max_output="1k",
            timeout=self.seconds,
            user="65534:65534" if os.geteuid() == 0 else None,  # a user's sandbox has no other rights than the user anyway
            limits="if possible",  # "required" is better, where the caller has cgroups
            **options,
        )
        self.clear()

    def clear(self) -> None:
        """Forget everything that scripts have written and started."""
        self.sandbox.reset()
        self.sandbox.mkdir("/work", mode=0o777, user=0)

    def __call__(self, script: str = "", reset: bool = False) -> str:
        """Run a script and return what it printed, and how it ended if that was not well."""
        if reset:
            self.clear()
        try:
            result = self.sandbox.shell(script, cwd="/work", text=True, stderr=STDOUT)
        except oci.ProcessTimeout as error:  # everything that the script has started is gone
            return self.answer(error.result, f"stopped after {self.seconds} s")
        if result.oom_killed:
            return self.answer(result, "killed: it needed more than 64 MiB of memory")
        return self.answer(result, f"exit status {result.returncode}" if result.returncode else "")

    def answer(self, result: oci.Result[str] | None, end: str) -> str:
        output = result.stdout if result is not None else ""
        notes = ["the output was longer"] if result is not None and result.truncated else []
        return output + "".join(f"[{note}]\n" for note in [*notes, end] if note)

    def collect(self, target: Path) -> list[str]:
        """Copy the files of the model to a directory of the host. Scripts can make links and files of any size."""
        self.sandbox.get("/work/.", target, max_size=1 << 20)
        return sorted(path.name for path in target.iterdir())


CONVERSATION: list[tuple[dict[str, Any], str]] = [
    ({"script": "echo 'print the sum' > plan; seq 1 10 > numbers"}, ""),
    ({"script": "awk '{ sum += $1 } END { print sum }' numbers"}, "55\n"),
    ({"script": "cat missing"}, "cat: can't open 'missing': No such file or directory\n[exit status 1]\n"),
    ({"script": "echo thinking; while :; do :; done"}, "thinking\n[stopped after 2 s]\n"),
    ({"script": "(setsid sleep 1000 &) ; sleep 1000"}, "[stopped after 2 s]\n"),
    ({"script": "yes no | head -n 1000"}, "no\n" * 341 + "n[the output was longer]\n"),
    ({"script": "cat /proc/net/dev | wc -l"}, "3\n"),  # two lines of titles, and the loopback device
    ({"script": "test -e /home || echo nothing of the host"}, "nothing of the host\n"),
    ({"script": "cat plan"}, "print the sum\n"),
]
"""What a model might send, and what it gets."""


def main() -> None:
    warnings.simplefilter("ignore", oci.OCIRuntimeWarning)  # a user without cgroups has weaker limits: see the first line
    with place() as (rootfs, state):
        tool = Shell(rootfs, state_root=state)
        with tool.sandbox:
            print("limits:", dict(tool.sandbox.limits))
            for call, expected in CONVERSATION:
                answer = tool(**call)
                print(f"> {call['script']}", *answer.splitlines()[:2], sep="\n")
                expect(answer, expected)
            for greedy in ("dd if=/dev/zero of=/dev/null bs=200M count=1", "dd if=/dev/zero of=big bs=1M count=100"):
                expect("[" in tool(greedy), True)  # memory and disk
            expect(tool.sandbox.processes(), ())
            tool("rm -f big")
            results = rootfs.parent / "results"
            results.mkdir()
            expect(tool.collect(results), ["numbers", "plan"])
            expect(tool("ls", reset=True), "")
        expect(oci.Container.list(state_root=state), [])


if __name__ == "__main__":
    main()
