"""Private networks: user-mode networking for the network namespace of one container, by pasta or slirp4netns.

The program runs in the network namespace of the caller and has a tap device in that of the container. What the container sends
leaves the host as connections of the program. The container has the same addresses with both programs.

A *guard* is the parent of the program: the first process of a pid namespace, which waits for the end of the container's init
process. However the guard ends, the kernel kills the program with it. So nothing is left when the caller, the container or the
guard is killed, at any time.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import shutil
import socket
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Final, NamedTuple, Self

from ..arguments import shown, wrong_type
from ..errors import UnsupportedError
from ..files import OwnDescriptor, forking, socket_path, start_time
from ..host import Host
from ..interrupts import waiting
from ..plan import ops
from ..plan.model import NO_SLOT, Plan, PlanBuilder, encode
from ..plan.namespaces import Port, PrivateNetwork
from ..plan.ops import Report
from .launch import Init
from .processes import abandon, ended_within

ADDRESS: Final = "10.0.2.100"
"""The address of every container with a private network."""
_PREFIX, _GATEWAY, _RESOLVER = "24", "10.0.2.2", "10.0.2.3"
_DEVICE: Final = "tap0"
_TUN: Final = "/dev/net/tun"
_START_TIMEOUT: Final = 20.0
"""Seconds for a program to connect the network."""
_API_TIMEOUT: Final = 5.0
_POLL: Final = 0.005


# ---- ports ----


def parse_ports(ports: object) -> tuple[Port, ...]:
    """Return published ports, as callers write them.

    Args:
        ports: a mapping of ports of the host to ports of the container, or a sequence of ``[ADDRESS:]HOST:CONTAINER[/PROTOCOL]``.

    Raises:
        TypeError, ValueError: one is not valid, or given twice. The message begins with ``ports``.
    """
    if ports is None:
        return ()
    if isinstance(ports, Mapping):
        found = [_parse_pair(host, container) for host, container in ports.items()]
    elif isinstance(ports, Iterable) and not isinstance(ports, str | bytes):
        found = [port if isinstance(port, Port) else _parse_port(port) for port in ports]
    else:
        raise wrong_type("ports", ports, "a mapping such as {8080: 80}, or a sequence of strings such as '8080:80',")
    for index, port in enumerate(found):
        if any(port[:2] == other[:2] and port.protocol == other.protocol for other in found[:index]):
            raise ValueError(f"ports: {port.at} is given twice")
    return tuple(found)


def _parse_pair(host: object, container: object) -> Port:
    if type(host) not in (int, str):
        raise TypeError(f"ports: {shown(host)} is not a port of the host: 8080, '127.0.0.1:8080' or '8080/udp' is needed")
    if type(container) not in (int, str):
        raise TypeError(f"ports: {shown(container)} is not a port of the container: 80 or '80/udp' is needed")
    what = f"{shown(host)}: {shown(container)}"
    place, _, protocol = str(host).partition("/")
    inside, _, other = str(container).partition("/")
    if protocol and other and protocol != other:
        raise ValueError(f"ports: {what} has two protocols")
    return _make_port(what, place, inside, protocol or other)


def _parse_port(text: object) -> Port:
    if not isinstance(text, str):
        raise TypeError(f"ports contains {shown(text)}: a string such as '8080:80' is needed")
    rest, _, protocol = text.partition("/")
    place, colon, container = rest.rpartition(":")
    if not colon:
        raise ValueError(f"ports: {shown(text)} needs a port of the host and one of the container, as in '8080:80'")
    return _make_port(shown(text), place, container, protocol)


def _make_port(what: str, place: str, container: str, protocol: str) -> Port:
    address, _, number = place.rpartition(":")
    if (protocol or "tcp") not in ("tcp", "udp"):
        raise ValueError(f"ports: {what}: the protocol is {shown(protocol)}; tcp or udp is needed")
    try:
        socket.inet_pton(socket.AF_INET, address or "127.0.0.1")
    except (OSError, ValueError):
        more = "; IPv6 is not supported" if ":" in address else ""
        raise ValueError(f"ports: {what}: {shown(address)} is not an IPv4 address{more}") from None
    return Port(address or "127.0.0.1", _number(what, number), _number(what, container), protocol or "tcp")


def _number(what: str, text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else 0
    if not 1 <= number <= 65535:
        begin, _, end = text.partition("-")
        if begin.isdigit() and end.isdigit():
            raise ValueError(f"ports: {what}: ranges of ports are not supported; give each port")
        raise ValueError(f"ports: {what}: {shown(text)} is not a port; a number from 1 to 65535 is needed")
    return number


# ---- choosing the program ----


class NetworkPrograms(NamedTuple):
    """The programs for private networks, each the path or an empty string, and what the host offers them."""

    pasta: str
    slirp4netns: str
    routed: bool = True
    """Whether the network of the caller has a default route, which pasta needs."""
    device: str = ""
    """Why /dev/net/tun cannot be opened; empty if it can."""

    @classmethod
    def find(cls) -> Self:
        """Find the programs in the caller's PATH."""
        device = ""
        if not os.access(_TUN, os.R_OK | os.W_OK, effective_ids=True):
            device = f"{_TUN} {'cannot be opened' if os.path.exists(_TUN) else 'does not exist'}"
        return cls(shutil.which("pasta") or "", shutil.which("slirp4netns") or "", _has_default_route(), device)

    @property
    def obstacle(self) -> tuple[str, str]:
        """Why this user can have no private network, and what helps; empty strings if nothing prevents one."""
        if self.device:
            return self.device, "load the module tun, and let this user open the device"
        if self.slirp4netns or (self.pasta and self.routed):
            return "", ""
        if self.pasta:
            return _NO_ROUTE, "install slirp4netns, which works without one"
        return "neither pasta nor slirp4netns is in PATH", "install the package passt or slirp4netns"

    def choose(self) -> tuple[str, str]:
        """Return the program to use, and why it is not the better one. Raises UnsupportedError: there is none."""
        problem, remedy = self.obstacle
        if problem:
            raise UnsupportedError(f"network 'private': {problem}; {remedy}")
        if self.pasta and self.routed:
            return self.pasta, ""
        return self.slirp4netns, _NO_ROUTE if self.pasta else "pasta is not in PATH"


_NO_ROUTE: Final = "pasta needs a default route, and this host has none"


def _has_default_route() -> bool:
    with open("/proc/thread-self/net/route", encoding="ascii") as table:
        rows = [line.split() for line in table][1:]
    return any(row[1] == row[7] == "00000000" and int(row[3], 16) & 1 for row in rows)


def private_network(ports: Sequence[Port]) -> PrivateNetwork:
    """Return the private network of a container on this host. Raises UnsupportedError: it offers no program for one."""
    found = NetworkPrograms.find()
    program, reason = found.choose()
    remedy = "give the host a default route, with which pasta is used" if found.pasta else "install the package passt"
    for port in ports:
        if port.protocol == "udp" and port.address.startswith("127.") and os.path.basename(program) != "pasta":
            raise UnsupportedError(
                f"ports: {port.at}: slirp4netns does not pass answers by UDP to the loopback device; publish the port at another "
                f"address of the host, or {remedy}"
            )
    servers, local, options = _host_resolvers()
    forwards, warning = False, ""
    if not servers and local:
        forwards = os.path.basename(program) == "pasta"
        servers = [_RESOLVER] if forwards else []
        if not forwards:
            warning = (
                f"names are not resolved in the container: the resolver of the host, {local}, is on its loopback device, to which "
                f"slirp4netns would open every port; {remedy}"
            )
    return PrivateNetwork(program, reason, tuple(ports), tuple(servers), tuple(options), forwards, warning)


# ---- resolv.conf and hosts ----

RESOLV_CONF: Final = "/etc/resolv.conf"
HOSTS: Final = "/etc/hosts"
NETWORK_FILES: Final = (RESOLV_CONF, HOSTS)
"""The files of a container that tell of its network."""
_UPSTREAM: Final = "/run/systemd/resolve/resolv.conf"
"""Where systemd-resolved has the resolvers that it uses, if resolv.conf names itself."""


def _host_resolvers() -> tuple[list[str], str, list[str]]:
    """Return the resolvers of the host that a container can reach, one on the loopback device if any, and further lines."""
    servers: list[str] = []
    local, options = "", list[str]()
    for path in (RESOLV_CONF, _UPSTREAM):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                rows = [line.split() for line in file]
        except OSError:
            continue
        if path == RESOLV_CONF:
            options = [" ".join(row) for row in rows if row and row[0] in ("search", "domain", "options")]
        for row in rows:
            if len(row) < 2 or row[0] != "nameserver" or not _is_address(row[1]):
                continue
            if row[1].startswith("127."):
                local = local or row[1]
            else:
                servers.append(row[1])
        if servers:
            break
    return list(dict.fromkeys(servers)), local, options


def _is_address(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET, text)
    except OSError:
        return False
    return True


def resolv_conf(network: PrivateNetwork) -> str:
    """Return the content of resolv.conf for a private network."""
    return "".join(f"{line}\n" for line in (*(f"nameserver {one}" for one in network.nameservers), *network.resolver_options))


def hosts(hostname: str = "") -> str:
    """Return the content of the hosts file of a container: of one without a network if there is no hostname."""
    return "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n" + (f"{ADDRESS}\t{hostname}\n" if hostname else "")


# ---- starting the program ----

_SIOCGSKNS: Final = 0x894C
_NS_GET_USERNS: Final = 0xB701
_NOBODY: Final = 65534
_PR_SET_KEEPCAPS: Final = 8
_CAPABILITIES: Final = 1 << 8 | 1 << 10 | 1 << 12 | 1 << 21
"""CAP_NET_BIND_SERVICE, for ports below 1024; CAP_NET_ADMIN and CAP_SYS_ADMIN, for the device; CAP_SETPCAP, with which the programs
drop all of these."""
_ENVIRONMENT: Final = ("LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
_API: Final = "network.sock"
"""The socket in the state directory of the container by which slirp4netns learns the ports, until it knows them."""
_SHOWN: Final = 400


class NetworkHelper:
    """A program that connects the network of a container, with its guard.

    Args:
        init: the init process of the container, which has sent a netlink socket of its network namespace.
        program: the path of pasta or slirp4netns.
        ports: the values of `Port`.
        forwards_dns: as in `PrivateNetwork`.
        directory: the state directory of the container.
        deadline: when to give up, by `time.monotonic`.

    Raises:
        UnsupportedError: the program failed, with its messages.
        TimeoutError: it has not connected the network in time.
        OSError: a port is taken, or this user may not publish it.
    """

    def __init__(
        self,
        init: Init,
        program: str,
        ports: Sequence[tuple[str, int, int, str]],
        forwards_dns: bool,
        *,
        directory: str,
        deadline: float | None,
    ) -> None:
        self._program = program
        self._ports = [Port(*values) for values in ports]
        self._directory = directory
        limit = time.monotonic() + _START_TIMEOUT
        self._deadline = limit if deadline is None else min(limit, deadline)
        self._guard: Init | None = None
        self._output = b""
        for port in self._ports:
            _check_free(port)
        with ExitStack() as stack:
            try:
                self._launch(stack, init, forwards_dns)
            except BaseException:
                self.kill()
                raise
        guard = self._running
        self.pid, self.start = guard.pid, start_time(guard.pid)

    @property
    def _running(self) -> Init:
        assert self._guard is not None, "it was launched"
        return self._guard

    def kill(self) -> None:
        """Kill the guard, and the program with it. A second call has no effect."""
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.kill()

    def release(self) -> None:
        """Leave the guard to the end of the container. As a child of this process it is reaped later."""
        guard, self._guard = self._guard, None
        if guard is not None:
            abandon(guard.release())

    def _launch(self, stack: ExitStack, init: Init, forwards_dns: bool) -> None:
        network = fcntl.ioctl(init.files["socket"], _SIOCGSKNS)
        stack.callback(os.close, network)
        owner = fcntl.ioctl(network, _NS_GET_USERNS)
        stack.callback(os.close, owner)
        log, log_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        stack.enter_context(log)
        log.setblocking(False)
        with forking:
            ready, end = os.pipe()
            ready_end = OwnDescriptor(end)
        stack.callback(os.close, ready)
        with log_end, ready_end:
            inputs = [init.pidfd, owner]
            plan = self._plan(init.pid, owner, ready_end.fd, forwards_dns)
            self._guard = Init.launch(
                encode([(number, step.op, step.values) for number, step in plan.init_steps()], len(inputs)),
                flags=plan.clone_flags,
                stdio=(network, ready_end.fd if self._is_pasta else log_end.fileno(), log_end.fileno()),
                inputs=inputs,
            )
        self._follow(plan, log)
        self._wait_ready(ready, log)
        if not self._is_pasta:
            self._forward_ports()
        for port in self._ports:
            if not _is_taken(port):
                raise self._failure(f"{port.at} was not published", log)

    @property
    def _is_pasta(self) -> bool:
        return os.path.basename(self._program) == "pasta"

    # ---- the plan of the guard ----

    def _plan(self, pid: int, owner: int, ready: int, forwards_dns: bool) -> Plan:
        """Return the plan that makes the guard and the program.

        Args:
            pid: the container's process.
            owner: the user namespace that owns the network.
            ready: the pipe that becomes readable when pasta is ready.
        """
        host, builder = Host.probe(), PlanBuilder()
        ended = builder.add_input("pidfd", "the container's process")
        space = builder.add_input("userns", "the user namespace of the container")
        joins = not os.path.samestat(os.fstat(owner), os.stat("/proc/self/ns/user")) and not host.privileged
        if joins:
            own = builder.new_slot()
            builder.add("open", NO_SLOT, "/proc/self/ns", ops.O_PATH, 0, 0, own, text="/proc/self/ns")
            builder.add("join", space, ops.CLONE_NEW["user"], own, "user", text="user namespace of the container")
            builder.add("fork", ops.CLONE_NEW["pid"], text="guard in a new pid namespace")
        builder.add("chdir", "/", 0, text="working directory /")
        builder.add("setsid", text="new session")
        builder.add("guard", ended, text="guard of the program")
        builder.add("bounding", _CAPABILITIES, host.last_cap, text="bounding set of the program")
        drops_uid = self._is_pasta and host.privileged and host.initial and bool(os.stat(_TUN).st_mode & stat.S_IWOTH)
        if drops_uid:
            os.fchown(ready, _NOBODY, -1)  # which pasta opens again
            builder.add("prctl", _PR_SET_KEEPCAPS, 1, 0, text="keep the capabilities for another user")
            builder.add("setgroups", b"", 0, text="no supplementary groups")
            builder.add("setresgid", _NOBODY, text=f"gid {_NOBODY}")
            builder.add("setresuid", _NOBODY, text=f"uid {_NOBODY}")
        builder.add("capset", _CAPABILITIES, _CAPABILITIES, _CAPABILITIES, text="capabilities of the program")
        builder.add("ambient", _CAPABILITIES, text="ambient capabilities of the program")
        if not self._is_pasta:
            builder.add("chdir", self._directory, 0, text=f"working directory {self._directory}, for the socket")
        is_root = not drops_uid and (_is_root_of(pid) if joins else os.geteuid() == 0)
        arguments = self._pasta(forwards_dns, is_root=is_root) if self._is_pasta else self._slirp4netns(sandbox=is_root)
        builder.add("exec", (self._program,), (self._program, *arguments), _ENVIRONMENT, text=self._program)
        return builder.build("network", clone_flags=0 if joins else ops.CLONE_NEW["pid"])

    def _pasta(self, forwards_dns: bool, *, is_root: bool) -> Iterator[str]:
        """Yield the arguments of pasta. It is in the right user namespace, and its stdin is the network namespace.

        Args:
            is_root: whether it has the uid 0, which it would change before it has opened the namespace.
        """
        yield from ("--foreground", "--quiet", "--pid", "/proc/self/fd/1", "--netns-only", "--netns", "/proc/self/fd/0")
        yield from ("--no-netns-quit", "--config-net", "--ns-ifname", _DEVICE, "--ipv4-only", "--no-map-gw", "--no-dhcp")
        yield from ("--address", ADDRESS, "--netmask", _PREFIX, "--gateway", _GATEWAY)
        yield from ("--dns-forward", _RESOLVER) if forwards_dns else ("--dns", "none")
        yield from ("--tcp-ns", "none", "--udp-ns", "none")
        if is_root:
            yield from ("--runas", "0:0")
        for option, protocol in (("--tcp-ports", "tcp"), ("--udp-ports", "udp")):
            ports = [port for port in self._ports if port.protocol == protocol]
            for port in ports:
                yield from (option, f"{port.address}/{port.number}:{port.container_port}")
            if not ports:
                yield from (option, "none")

    def _slirp4netns(self, *, sandbox: bool) -> Iterator[str]:
        """Yield the arguments of slirp4netns.

        Args:
            sandbox: whether it can leave the files of the host, for which it must have the uid 0.
        """
        yield from ("--configure", "--netns-type=path", "--disable-host-loopback", "--disable-dns", "--enable-seccomp")
        if sandbox:
            yield "--enable-sandbox"
        yield from (f"--api-socket={_API}", "/proc/self/fd/0", _DEVICE)

    # ---- waiting for it ----

    def _follow(self, plan: Plan, log: socket.socket) -> None:
        """Take the guard's reports until the program is executed. Raises UnsupportedError, TimeoutError: a step failed."""
        guard = self._running
        while True:
            with waiting():
                guard.wait(lambda: self._check_time(log))
            try:
                message = guard.receive()
            except ConnectionAbortedError:
                break
            if message is None:
                break
            if message.kind is Report.FORKED:
                guard.follow(message.fd)
                guard.go()
            else:
                raise self._step_failure(plan, message.step, message.value, log)
        step, error, _ = guard.progress
        if error or step < len(plan.steps):
            raise self._step_failure(plan, step, error or errno.ECHILD, log)

    def _step_failure(self, plan: Plan, number: int, code: int, log: socket.socket) -> UnsupportedError:
        text = plan.steps[max(number, 1) - 1].text
        return self._failure(f"{text}: {os.strerror(code).lower()}", log)

    def _wait_ready(self, ready: int, log: socket.socket) -> None:
        """Wait until the network is connected. Raises UnsupportedError, TimeoutError: the program has ended, or takes too long."""
        guard, poller = self._running, select.poll()
        poller.register(ready if self._is_pasta else guard.pidfd, select.POLLIN)
        while True:
            with waiting():
                found = poller.poll(1000 * _POLL)
            self._read(log)
            if self._is_pasta and found and os.read(ready, 64):
                return
            if ended_within(guard.pidfd, 0):
                raise self._failure("it has ended", log)
            if not self._is_pasta and self._answers():
                return
            self._check_time(log)

    def _check_time(self, log: socket.socket) -> None:
        if time.monotonic() > self._deadline:
            failure = self._failure(f"it did not connect the network within {_START_TIMEOUT:.0f} s", log)
            raise TimeoutError(errno.ETIMEDOUT, str(failure))

    def _read(self, log: socket.socket) -> None:
        """Keep what the program says."""
        while True:
            try:
                data = log.recv(4096)
            except BlockingIOError:
                return
            self._output = (self._output + data)[-4 * _SHOWN :]

    def _failure(self, what: str, log: socket.socket) -> UnsupportedError:
        self._read(log)
        lines = (line.strip() for line in self._output.decode(errors="replace").splitlines())
        message = "; ".join(line for line in lines if line and not _is_noise(line))[-_SHOWN:]
        name = os.path.basename(self._program)
        return UnsupportedError(f"network 'private': {name} failed: {what}" + (f" ({message})" if message else ""))

    # ---- the API of slirp4netns ----

    def _answers(self) -> bool:
        """Return whether slirp4netns serves the network: it answers requests only then."""
        try:
            self._request("list_hostfwd")
        except (FileNotFoundError, ConnectionError):
            return False
        return True

    def _request(self, name: str, **arguments: object) -> object:
        """Send a request to slirp4netns, and return its answer. Raises OSError."""
        request = {"execute": name, **({"arguments": arguments} if arguments else {})}
        with socket.socket(socket.AF_UNIX) as peer, socket_path(self._directory, _API) as path:
            peer.settimeout(_API_TIMEOUT)
            peer.connect(path)
            peer.sendall(json.dumps(request).encode())
            peer.shutdown(socket.SHUT_WR)
            answer = b""
            while part := peer.recv(4096):
                answer += part
        return json.loads(answer)

    def _forward_ports(self) -> None:
        """Tell slirp4netns the ports, and remove its socket. Raises UnsupportedError, OSError."""
        for port in self._ports:
            answer = self._request(
                "add_hostfwd",
                proto=port.protocol,
                host_addr=port.address,
                host_port=port.number,
                guest_addr=ADDRESS,
                guest_port=port.container_port,
            )
            if not isinstance(answer, dict) or "return" not in answer:
                raise _taken(port)
        os.unlink(f"{self._directory}/{_API}")


_NOISE: Final = (
    "Failed to send ",
    "No external routable interface for IPv6",
    "WARNING: Support for",
    "Starting",
    "*",
    "sent ",
    "received ",
)


def _is_noise(line: str) -> bool:
    """Return whether a message of a program says nothing about a failure."""
    return line.startswith(_NOISE)


def _is_root_of(pid: int) -> bool:
    """Return whether this user is root of the user namespace of a process."""
    with open(f"/proc/{pid}/uid_map", encoding="ascii") as table:
        return any(line.split()[:2] == ["0", str(os.geteuid())] for line in table)


# ---- ports of the host ----


def _check_free(port: Port) -> None:
    """Check that a port can be published. Raises OSError: it is taken, or this user may not, or the address is not of this host."""
    try:
        _bind(port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _taken(port) from error
        if error.errno == errno.EACCES:
            why = "ports below 1024 need root, or a lower net.ipv4.ip_unprivileged_port_start"
        elif error.errno == errno.EADDRNOTAVAIL:
            why = "no network device of this host has this address"
        else:
            why = os.strerror(error.errno or errno.EIO).lower()
        raise OSError(error.errno, f"{port.at} cannot be published: {why}") from error


def _taken(port: Port) -> OSError:
    return OSError(errno.EADDRINUSE, f"{port.at} cannot be published: the port is taken; choose another one")


def _is_taken(port: Port) -> bool:
    try:
        _bind(port)
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False


def _bind(port: Port) -> None:
    """Bind a socket to a port for a moment. Raises OSError: EADDRINUSE when it is taken."""
    kind = socket.SOCK_DGRAM if port.protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as probe:
        if kind is socket.SOCK_STREAM:  # connections that have ended do not count
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((port.address, port.number))
