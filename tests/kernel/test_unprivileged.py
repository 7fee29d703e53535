"""Containers of a user with subordinate ids, as the user of the machine in tests/vm has."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci

from ..support.fixture_types import MakeBundle
from ..support.mounts import parse, tmpfs
from ..support.waiting import TIME_LIMIT

pytestmark = [pytest.mark.vm, pytest.mark.skipif(os.geteuid() == 0, reason="for a user without privileges")]
Run = Callable[..., str]


@pytest.fixture
def run(make_bundle: MakeBundle, state_root: Path, prefix: str) -> Run:
    """Runs a shell script in a container of the default config with a user namespace without mappings."""

    def run(
        script: str, *mounts: dict[str, Any], change: Callable[[dict[str, Any]], object] = lambda d: None, link: str = ""
    ) -> str:
        document: dict[str, Any] = oci.RuntimeSpec.default().to_dict()
        document["mounts"] += mounts
        document["linux"]["namespaces"].append({"type": "user"})
        document["linux"]["resources"] = {}
        change(document)
        bundle = make_bundle(oci.RuntimeSpec.load(document))
        if link:
            (bundle.rootfs / "link").symlink_to(link)
        args = ["sh", "-c", script]
        done = oci.run(bundle, args, capture_output=True, text=True, state_root=state_root, container_id=prefix, check=True)
        assert isinstance(done.stdout, str)
        return done.stdout

    return run


@pytest.mark.parametrize("user", [0, 5])
def test_maps_that_the_config_leaves_to_us(run: Run, user: int) -> None:
    host = oci.Host.probe()
    if not (host.idmap_helpers and host.subuids and host.subgids):
        pytest.skip("no newuidmap, or this user has no further ids")
    script = "cat /proc/self/uid_map; id -u; grep ^Groups /proc/self/status; stat -c %u /bin"
    out = run(script, change=lambda d: d["process"].update(user={"uid": user, "gid": user, "additionalGids": [7]}))
    rows = [list(map(int, line.split())) for line in out.splitlines() if len(line.split()) == 3]
    ((first, count),) = host.subuids
    expected = [[0, first, user], [user, host.euid, 1], [user + 1, first + user, count - user]]
    assert rows == [row for row in expected if row[2]]
    assert out.splitlines()[-3:] == [str(user), "Groups:\t7 ", str(user)]


def test_a_default_config(run: Run, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    out = run(
        "stat -c '%t:%T' /dev/null /dev/zero; cat /proc/interrupts /proc/keys; touch /proc/sys/x /link/new /in/x 2>/dev/null; ls /in;"
        "cat /proc/self/mountinfo",
        tmpfs("/link/made", "mode=755"), tmpfs("/in", "noexec,size=1m"), link=str(outside),
    )  # fmt: skip
    assert out.splitlines()[:3] == ["1:3", "1:5", "x"]
    table = parse(out)
    for point, fstype in (
        ("/proc", "proc"),
        ("/sys", "sysfs"),
        ("/dev/mqueue", "mqueue"),
        ("/dev/pts", "devpts"),
        ("/in", "tmpfs"),
    ):
        assert table[point].fstype == fstype
    assert {"ro"} <= table["/proc/sys"].options
    assert table["/dev/null"].fstype == table["/proc/keys"].fstype
    assert f"{outside}/made" in table
    assert list(outside.iterdir()) == []


def test_what_only_privileges_give(run: Run) -> None:
    def devices(d: dict[str, Any]) -> None:
        d["linux"]["devices"] = [{"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600}]

    with pytest.warns(oci.OCIRuntimeWarning, match=r"\$\.linux\.devices\[0\]: mode and owner stay"):
        assert run("stat -c %a /dev/null", change=devices) == "666\n"
    with pytest.raises(oci.UnsupportedError, match=r"\$\.linux\.uidMappings\[0\]: user \d+ may not map the host ids 0-0"):
        run("true", change=lambda d: d["linux"].update(uidMappings=[{"containerID": 0, "hostID": 0, "size": 1}]))
    with pytest.raises(oci.UnsupportedError, match=r"\$\.mounts\[6\].*needs root"):
        run("true", {"source": "/usr", "destination": "/x", "options": ["rbind", "idmap"]})
    with pytest.raises(oci.StepError, match=r"fsopen|fsconfig|fsmount"):
        run("true", {"type": "ext4", "source": "/dev/vda", "destination": "/x"})


def test_clocks(run: Run) -> None:
    def change(d: dict[str, Any]) -> None:
        d["linux"]["namespaces"].append({"type": "time"})
        d["linux"]["timeOffsets"] = {"boottime": {"secs": 1000000}}

    assert float(run("cat /proc/uptime", change=change).split()[0]) > 1000000


def test_a_supervised_container(run: Run, make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    """The supervisor may not change the owner of its pipes, but the user in the container can write to them."""
    document: dict[str, Any] = oci.RuntimeSpec.default().to_dict()
    document["linux"]["namespaces"].append({"type": "user"})
    document["linux"]["resources"] = {}
    document["process"].update(user={"uid": 5, "gid": 5}, args=["sh", "-c", "id -u; echo err >/proc/self/fd/2"])
    bundle = make_bundle(oci.RuntimeSpec.load(document))
    container = oci.Container.create(prefix, bundle, state_root=state_root, supervise=True)
    container.start()
    assert container.wait(TIME_LIMIT) == 0
    assert sorted(record.text for record in container.logs()) == ["5", "err"]
    container.delete()
