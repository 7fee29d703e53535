"""Network devices move into the container and come back when its creation fails (config-linux.md#network-devices).

Everything happens in a network namespace that the test made, by an interpreter of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ..support.fixture_types import MakeBundle
from ..support.waiting import TIME_LIMIT

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not all(map(shutil.which, ("ip", "unshare"))), reason="needs ip and unshare (Debian: iproute2, util-linux)"),
]

START = """
import json, os, subprocess, sys
import ociruntime as oci
bundle, root, name, devices = oci.Bundle.load(sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
def ip(*args): return subprocess.run(["ip", *args], check=True, capture_output=True, text=True).stdout
def links(): return sorted(link["ifname"] for link in json.loads(ip("-j", "link")))
def addresses(name):
    found = json.loads(ip("-j", "addr", "show", name))[0]
    return found["flags"], sorted((a["local"], a["prefixlen"]) for a in found["addr_info"] if a["scope"] == "global")
ip("link", "set", "lo", "up")
ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")
for address in ("10.1.2.3/24", "10.1.2.4/32", "fd00::5/64"): ip("addr", "add", address, "dev", "v0")
ip("link", "set", "v0", "up")
spec = bundle.spec.at.linux.net_devices.set({old: oci.spec.NetDevice(name=new) for old, new in devices.items()})
"""


@pytest.fixture
def apart(make_bundle: MakeBundle, state_root: Path, prefix: str) -> Callable[[str, str], str]:
    """Runs Python text in a network namespace of its own, where v0 and v1 are a pair; ``devices`` are the config's netDevices."""
    try:
        subprocess.run(
            ["unshare", "-n", "ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1"], check=True, capture_output=True
        )
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this kernel makes no veth devices: {error.stderr.decode()}")

    def run(devices: str, text: str) -> str:
        arguments = [str(make_bundle().path), str(state_root), prefix, devices]
        command = ["unshare", "-n", sys.executable, "-P", "-c", START + text, *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIME_LIMIT, env=os.environ | {"PYTHONWARNINGS": "error"}
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


RUNS = """
bundle.spec = spec
with oci.Container.run(name, bundle, state_root=root) as container:
    assert "v0" not in links(), links()
    pid = str(container.pid)
    def within(*args):
        return subprocess.run(["nsenter", "-n", "-t", pid, "ip", "-j", *args], check=True, capture_output=True, text=True).stdout
    found = {link["ifname"]: link for link in json.loads(within("addr"))}
    print(sorted(found))
    new = found[sys.argv[4].split('"')[3].replace("%d", "0")]
    assert "UP" in new["flags"], new
    print(sorted((a["local"], a["prefixlen"]) for a in new["addr_info"] if a["scope"] == "global"))
"""


@pytest.mark.parametrize(("new", "names"), [("eth0", "eth0"), ("v0", "v0"), ("net%d", "net0")])
def test_a_device_moves_with_its_addresses(apart: Callable[[str, str], str], new: str, names: str) -> None:
    printed = apart(f'{{"v0": "{new}"}}', RUNS).splitlines()
    assert printed == [str(sorted(["lo", names])), "[('10.1.2.3', 24), ('10.1.2.4', 32), ('fd00::5', 64)]"]


FAILS = """
before = addresses("v0"), links()
bundle.spec = spec.at.process.args.set(("no-such-program",))
try: oci.Container.create(name, bundle, state_root=root)
except oci.StepError as error: assert error.op == "lookup", error
else: raise SystemExit("it was created")
assert (addresses("v0"), links()) == before, (addresses("v0"), links(), before)
assert oci.Container.list(state_root=root) == []
"""


def test_a_failure_brings_it_back(apart: Callable[[str, str], str]) -> None:
    apart('{"v0": "eth0"}', FAILS)


REFUSED = """
bundle.spec = spec
before = addresses("v0"), links()
try: oci.Container.create(name, bundle, state_root=root)
except oci.StepError as error: print(error)
else: raise SystemExit("it was created")
assert (addresses("v0"), links()) == before
assert oci.Container.list(state_root=root) == []
"""


@pytest.mark.parametrize(
    ("devices", "error"),
    [
        ('{"v0": "a", "nothing": "b"}', "network device nothing as b: no such network device"),
        ('{"v0": "lo"}', "network device v0 as lo: the container has a network device of this name"),
        ('{"v0": "a", "lo": "b"}', "network device lo as b: this network device cannot be moved"),
    ],
)
def test_what_cannot_move(apart: Callable[[str, str], str], devices: str, error: str) -> None:
    printed = apart(devices, REFUSED)
    assert "netdev_move" in printed
    assert error in printed
