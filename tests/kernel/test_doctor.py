"""`ociruntime doctor` as root and as an unprivileged user: what it says is what the runtime does, and it leaves nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci

from ..support.fixture_types import Script
from ..support.private_users import COUNT, STATE, UID, new_user
from .test_user_images import NEEDED

pytestmark = pytest.mark.root


def findings(output: str) -> dict[str, dict[str, str]]:
    document: dict[str, Any] = json.loads(output)
    assert document["usable"] is True
    return {finding["subject"]: finding for finding in document["findings"]}


@pytest.mark.parametrize("able", [pytest.param(True, marks=NEEDED, id="all helpers"), pytest.param(False, id="none")])
def test_as_a_user(user_python: str, busybox_rootfs: Path, able: bool) -> None:
    with new_user(user_python, subordinate=able, fuse=able) as user:
        mounts = user.mounts()
        path = os.environ["PATH"] if able else "/nowhere"
        found = findings(user.command("doctor", "--format", "json", PATH=path).stdout)
        assert found["privileges"]["detail"].startswith(f"uid {UID} ")
        assert found["state directory"]["detail"] == STATE
        if able:
            assert found["SIF images"]["detail"].startswith("fuse: ")
            assert found["subordinate ids"]["detail"].startswith(f"{COUNT} user ids")
        else:
            assert found["FUSE"]["status"] == found["subordinate ids"]["status"] == "missing"
            library = importlib.util.find_spec("PySquashfsImage")  # extracts images without any program
            assert found["SIF images"]["status"] == ("missing" if library is None else "limited")
            assert f"u{UID}:" in found["subordinate ids"]["remedy"]
        assert not os.path.exists(STATE)
        assert (user.mounts(), user.processes(), list(user.home.iterdir())) == (mounts, [], [])
        # It says that containers can run.
        shutil.copytree(busybox_rootfs, user.home / "rootfs", symlinks=True)
        shown = user.run("-c", "import ociruntime as oci\nprint(oci.doctor().usable, oci.run('rootfs', ['true']).returncode)")
        assert shown.stdout == "True 0\n"


def test_as_root_and_as_a_table(script: Script, tmp_path: Path) -> None:
    state = tmp_path / "state"
    done = script(f"from ociruntime.cli import main\nprint(main(['--root', {str(state)!r}, 'doctor']))")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["SUBJECT", "STATUS", "DETAIL"]
    assert lines[-2:] == ["Containers can run here.", "0"]
    assert f"state directory  ok       {state}" in lines
    assert not state.exists()
    assert str(oci.doctor(state_root=state)).splitlines() == lines[:-1]


def test_exit_status_where_containers_cannot_run(user_script: Script) -> None:
    text = f"become({UID})\nfrom ociruntime.cli import main\nprint(main(['--root', '/sbin/state', 'doctor']))"
    lines = user_script(text).stdout.splitlines()
    assert lines[-2:] == ["Containers cannot run here: state directory.", "1"]
    assert not os.path.exists("/sbin/state")
