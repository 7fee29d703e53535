"""Published ports as callers write them, the choice of the program, the files about the network, and the plan."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.cli import main
from ociruntime.engine import networks
from ociruntime.engine.networks import NetworkPrograms, parse_ports, private_network
from ociruntime.errors import UnsupportedError
from ociruntime.plan.namespaces import Port

LOCAL = Port("127.0.0.1", 8080, 80)


@pytest.mark.parametrize(
    ("ports", "found"),
    [
        (None, ()),
        ({}, ()),
        ({8080: 80}, (LOCAL,)),
        ({"8080": "80"}, (LOCAL,)),
        ({"127.0.0.1:8080/tcp": 80}, (LOCAL,)),
        ({8080: "80/tcp"}, (LOCAL,)),
        (["8080:80"], (LOCAL,)),
        (("127.0.0.1:8080:80/tcp",), (LOCAL,)),
        ((LOCAL,), (LOCAL,)),
        ({"0.0.0.0:8080": 80, "5353/udp": 53}, (Port("0.0.0.0", 8080, 80), Port("127.0.0.1", 5353, 53, "udp"))),
        (["8080:80", "8080:80/udp"], (LOCAL, LOCAL._replace(protocol="udp"))),
    ],
)
def test_ports(ports: object, found: tuple[Port, ...]) -> None:
    assert parse_ports(ports) == found


@pytest.mark.parametrize(
    ("ports", "kind", "message"),
    [
        ("8080:80", TypeError, "ports is '8080:80': a mapping such as {8080: 80}"),
        (8080, TypeError, "ports is 8080: a mapping"),
        ([8080], TypeError, "ports contains 8080: a string such as '8080:80' is needed"),
        ({8080: 80.0}, TypeError, "ports: 80.0 is not a port of the container"),
        ({True: 80}, TypeError, "ports: True is not a port of the host"),
        ({8080: None}, TypeError, "ports: None is not a port of the container"),
        (["80"], ValueError, "ports: '80' needs a port of the host and one of the container"),
        ([""], ValueError, "ports: '' needs a port of the host"),
        ({0: 80}, ValueError, "ports: 0: 80: '0' is not a port; a number from 1 to 65535 is needed"),
        ({8080: 65536}, ValueError, "'65536' is not a port"),
        ({8080: -1}, ValueError, "'-1' is not a port"),
        (["8080:٨٠"], ValueError, "is not a port"),
        (["8080:80/sctp"], ValueError, "the protocol is 'sctp'; tcp or udp is needed"),
        ({"8080/tcp": "80/udp"}, ValueError, "'8080/tcp': '80/udp' has two protocols"),
        (["[::1]:8080:80"], ValueError, "'[::1]' is not an IPv4 address; IPv6 is not supported"),
        (["8000-8010:8000-8010"], ValueError, "ports: '8000-8010:8000-8010': ranges of ports are not supported; give each port"),
        ({"8000-8010": 80}, ValueError, "ranges of ports are not supported"),
        (["localhost:8080:80"], ValueError, "'localhost' is not an IPv4 address"),
        (["\0:8080:80"], ValueError, "is not an IPv4 address"),
        (["8080:80", "127.0.0.1:8080:81"], ValueError, "ports: 127.0.0.1:8080/tcp is given twice"),
    ],
)
def test_wrong_ports(ports: object, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        parse_ports(ports)
    assert str(caught.value).startswith("ports")
    assert message in str(caught.value)


def test_ports_need_a_private_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for network in (None, "none", "host", "/run/netns/blue"):
        with pytest.raises(ValueError, match="ports needs network='private', and network is"):
            oci.run("image", ["true"], network=network, ports={8080: 80})
    for wrong in ("bridge", "", "run/netns/blue", True, 7):
        with pytest.raises(ValueError, match=r"^network is .*: 'none' or False .*'private'"):
            oci.run("image", ["true"], network=wrong)  # type: ignore[arg-type]
    (tmp_path / "image").mkdir()
    assert main(["--root", str(tmp_path), "run", "-p", "8080:80", str(tmp_path / "image"), "true"]) != 0
    assert "--publish needs --network private" in capsys.readouterr().err


def test_the_choice_of_the_program() -> None:
    both = NetworkPrograms("/bin/pasta", "/bin/slirp4netns")
    assert both.choose() == ("/bin/pasta", "")
    assert both._replace(pasta="").choose() == ("/bin/slirp4netns", "pasta is not in PATH")
    assert both._replace(routed=False).choose() == ("/bin/slirp4netns", "pasta needs a default route, and this host has none")
    for programs, message in (
        (NetworkPrograms("", ""), "neither pasta nor slirp4netns is in PATH; install the package passt or slirp4netns"),
        (NetworkPrograms("/bin/pasta", "", routed=False), "has none; install slirp4netns"),
        (both._replace(device="/dev/net/tun does not exist"), "/dev/net/tun does not exist; load the module tun"),
    ):
        with pytest.raises(UnsupportedError, match=r"^network 'private': ") as caught:
            programs.choose()
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("own", "upstream", "program", "servers", "forwards"),
    [
        ("nameserver 192.0.2.1\nnameserver 192.0.2.2\n", None, "slirp4netns", ("192.0.2.1", "192.0.2.2"), False),
        ("nameserver 127.0.0.53\n", "nameserver 192.0.2.3\n", "slirp4netns", ("192.0.2.3",), False),
        ("nameserver 127.0.0.1\nnameserver 192.0.2.4\n", None, "pasta", ("192.0.2.4",), False),
        ("nameserver 127.0.0.1\n", None, "pasta", ("10.0.2.3",), True),
        ("nameserver 127.0.0.1\n", None, "slirp4netns", (), False),
        ("nameserver fd00::1\nnameserver\nnameserver what\n", None, "pasta", (), False),
        (None, None, "pasta", (), False),
    ],
)
def test_resolvers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str | None, upstream: str | None, program: str, servers: object, forwards: bool
) -> None:  # fmt: skip
    for name, content in (("RESOLV_CONF", own), ("_UPSTREAM", upstream)):
        if content is not None:
            (tmp_path / name).write_text(f"# comment\n{content}search a.example b.example\noptions ndots:2\n")
        monkeypatch.setattr(networks, name, str(tmp_path / name))
    found = NetworkPrograms("/bin/pasta" if program == "pasta" else "", "/bin/slirp4netns")
    monkeypatch.setattr(NetworkPrograms, "find", lambda: found)
    network = private_network([LOCAL])
    assert (network.nameservers, network.forwards_dns) == (servers, forwards)
    assert bool(network.warning) is (program == "slirp4netns" and not servers)
    lines = networks.resolv_conf(network).splitlines()
    assert lines == [*(f"nameserver {one}" for one in network.nameservers), *network.resolver_options]
    assert network.resolver_options == (("search a.example b.example", "options ndots:2") if own is not None else ())


def test_udp_at_the_loopback_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NetworkPrograms, "find", lambda: NetworkPrograms("", "/bin/slirp4netns"))
    with pytest.raises(UnsupportedError, match=r"^ports: 127\.0\.0\.1:8080/udp: slirp4netns does not pass answers"):
        private_network([LOCAL._replace(protocol="udp")])
    assert private_network([LOCAL._replace(protocol="udp", address="0.0.0.0")]).program == "/bin/slirp4netns"


def test_bundles_keep_their_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change, a fresh upper layer and a pickle keep it; another choice replaces it."""
    monkeypatch.setattr(NetworkPrograms, "find", lambda: NetworkPrograms("/bin/pasta", ""))
    (tmp_path / "rootfs").mkdir()
    private = oci.Bundle.from_dir(tmp_path).with_overrides(network="private", ports={8080: 80})
    for bundle in (private, private.with_args(["id"]), private.fresh(), pickle.loads(pickle.dumps(private))):
        steps = [step for step in bundle.plan().steps if step.op in ("socket", "network")]
        assert [step.op for step in steps] == ["socket", "network"]
        assert steps[1].text == "user-mode networking by /bin/pasta; 127.0.0.1:8080/tcp -> 80"
    for network in ("none", "host", os.path.realpath("/proc/self/ns") + "/net"):
        other = private.with_overrides(network=network)
        assert not any(step.op == "network" for step in other.plan().steps), network
    monkeypatch.setattr(NetworkPrograms, "find", lambda: NetworkPrograms("", ""))
    with pytest.raises(UnsupportedError, match="passt or slirp4netns"):
        private.plan()
