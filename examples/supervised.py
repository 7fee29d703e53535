#!/usr/bin/env python3
"""Attach to a supervised container, follow its log and read its exit code."""

from __future__ import annotations

import os

from common import expect, place

import ociruntime as oci

SCRIPT = "echo ready; while read line; do echo served $line; done; echo closing >&2; exit 4"


def main() -> None:
    with place() as (rootfs, state):
        name = f"supervised-{os.getpid()}"
        bundle = oci.Bundle.from_dir(rootfs.parent).with_args(["sh", "-c", SCRIPT])
        oci.Container.create(name, bundle, state_root=state, supervise=True)
        container = oci.Container.load(name, state_root=state)  # any process can load it
        with container, container.attach(stderr=True) as attachment:  # deleted at the end
            container.start()
            for word in ("one", "two"):
                attachment.write(f"{word}\n".encode())
            with container.attach() as another:  # several clients can be attached
                another.write(b"three\n")
            for record in container.logs(follow=True):
                print(f"{record.stamp} {record.stream}: {record.text}")
                if record.text == "served three":
                    attachment.end_input()
            expect(attachment.readall(), b"ready\nserved one\nserved two\nserved three\n")
            expect(attachment.stderr.readall(), b"closing\n")
            expect(attachment.returncode, 4)
            expect((container.wait(), container.state.exit_desc), (4, "exited with code 4"))
            expect([record.text for record in container.logs(tail=1, stream="stdout")], ["served three"])
        expect(oci.Container.list(state_root=state), [])


if __name__ == "__main__":
    main()
