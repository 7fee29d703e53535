"""A container without a program, as in a pod: its first process reaps and waits."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import ociruntime as oci

from ..support.fixture_types import Command, MakeBundle
from ..support.waiting import TIME_LIMIT, wait_until

pytestmark = pytest.mark.root


def children(container: oci.Container) -> list[str]:
    return Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()


@pytest.mark.parametrize("make", [oci.Container.create, oci.Container.run])
@pytest.mark.parametrize("supervise", [False, True])
def test_it_reaps_and_stops(
    bundle: oci.Bundle, state_root: Path, prefix: str, make: Callable[..., oci.Container], supervise: bool
) -> None:
    with make(
        prefix, bundle.with_args(["nothing-of-the-kind"]), state_root=state_root, supervise=supervise, empty_process=True
    ) as container:
        if container.status is oci.Status.CREATED:
            container.start()
        assert container.exec(["cat", "/proc/1/comm"], capture_output=True).stdout == b"oci-init\n"
        assert container.exec(["ls", "/proc/1/fd"], capture_output=True).stdout.split() == [b"0", b"1", b"2"]
        for _ in range(20):
            assert container.exec(["sh", "-c", "sleep 0.01 & exit 0"]).returncode == 0
        wait_until(lambda: not children(container), "the end of the orphans")
        assert container.status is oci.Status.RUNNING
        container.kill("USR1")
        container.pause()
        container.resume()
        container.kill("TERM")
        assert container.wait(TIME_LIMIT) == 0
        container.delete()
    assert oci.Container.list(state_root=state_root) == []


def test_it_needs_no_process_in_the_config(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    bundle = make_bundle(oci.RuntimeSpec.default().evolve(process=None))
    with pytest.raises(oci.SpecError, match="needed to start"):
        oci.Container.run(prefix, bundle, state_root=state_root)
    with oci.Container.run(prefix, bundle, state_root=state_root, empty_process=True) as container:
        assert container.exec(["/bin/echo", "hi"], capture_output=True).stdout == b"hi\n"
        container.kill("INT")
        assert container.wait(TIME_LIMIT) == 0


def test_it_on_the_command_line(bundle: oci.Bundle, state_root: Path, prefix: str, command: Command) -> None:
    for words in (("create", "--empty-process", "-b", bundle.path, prefix), ("start", prefix), ("exec", prefix, "true")):
        subprocess.run(command(*words), timeout=TIME_LIMIT, check=True, stdin=subprocess.DEVNULL)
    oci.Container.load(prefix, state_root=state_root).delete(force=True)
