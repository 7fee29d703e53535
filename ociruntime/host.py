"""`Host`: a frozen probe of the kernel and its configuration, for which plans are compiled.

And whose programs the kernel runs, and programs that run with the subordinate ids of the caller.
"""

from __future__ import annotations

import os
import pwd
import stat
import struct
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

import attrs

from .arguments import check_int, check_str
from .errors import UnsupportedError
from .files import needing_procfs, outer_uid, read_mounts

__all__ = ["Hierarchy", "Host", "map_by_helper", "runs_programs_of", "start_with_subordinate_ids"]


_PRIVILEGES: Final = 1 << 6 | 1 << 7 | 1 << 21
_CAP_NET_ADMIN: Final = 1 << 12
_CAP_SYS_ADMIN: Final = 1 << 21
_CAP_MKNOD: Final = 1 << 27
_CAP_BPF: Final = 1 << 39
_INITIAL_USER_NAMESPACE: Final = 0xEFFFFFFD
# PROC_USER_INIT_INO, the inode of the initial user namespace.


_BOOTED: Final = "/run/systemd/system"


@attrs.frozen
class Hierarchy:
    """One mounted cgroup hierarchy."""

    mountpoint: str
    version: int
    """1 or 2."""
    controllers: frozenset[str]
    """v1: its controllers; v2: the controllers that can be enabled below `base`. ``name=systemd`` has its prefix."""
    base: str | None = "/"
    """The cgroup below which this user may create others, as a path below the mount point: ``/`` for root, else the delegated
    cgroup near the caller's own, or None."""

    def holds(self, path: str) -> bool:
        """Return whether this user may create a cgroup at a path below the mount point."""
        return self.base is not None and (path + "/").startswith(self.base.rstrip("/") + "/")


@attrs.frozen
class Systemd:
    """The systemd that creates this user's scopes."""

    user: bool
    """Whether it is the user's own instead of the system's."""
    hierarchy: Hierarchy
    """The v2 hierarchy, or ``name=systemd`` if there is none; its ``base`` is the cgroup of that systemd."""


@attrs.frozen
class Host:
    """The kernel and its configuration. Plans depend on the host through this value alone.

    Use `Host.probe()`, or create one to see the plan for another host.
    """

    kernel: tuple[int, int]
    machine: str
    euid: int
    last_cap: int
    hierarchies: tuple[Hierarchy, ...]
    """The v1 hierarchies, then the v2 hierarchy."""
    lsms: frozenset[str] = frozenset()
    seccomp: bool = True
    capabilities: int = (1 << 64) - 1
    """The mask of the capabilities that this process can grant: the permitted ones."""
    keyrings: bool = True
    """Whether the kernel has session keyrings (keyrings(7))."""
    resctrl: str = ""
    """The mount point of the resctrl filesystem, or an empty string."""
    egid: int = 0
    idmap_helpers: tuple[str, str] | None = None
    """The paths of newuidmap and newgidmap, which map subordinate ids for an unprivileged user."""
    subuids: tuple[tuple[int, int], ...] = ()
    """First id and count of each range of subordinate ids in /etc/subuid that is mapped in this user namespace."""
    subgids: tuple[tuple[int, int], ...] = ()
    systemd: Systemd | None = None
    """None if no systemd is running, or this user has none."""
    booted: bool = False
    """Whether the host was booted with systemd (sd_booted(3))."""
    may_mknod: bool = True
    """Whether this process may create device nodes: with CAP_MKNOD, and in the initial user namespace."""
    may_setgroups: bool = True
    """False in a user namespace whose gid map an unprivileged user has written, and in all below it."""
    initial: bool = True
    """Whether this process is in the initial user namespace, whose capabilities apply to the whole kernel."""

    @staticmethod
    def probe() -> Host:
        """Probe this host, once for each cgroup that this process is in. Raises OSError: /proc is not a whole procfs."""
        with needing_procfs(), open("/proc/self/cgroup", "rb", buffering=0) as own:
            return _probe(own.read().decode("utf-8", "surrogateescape"))

    @property
    def may_create_cgroups(self) -> bool:
        """Whether this user may create cgroups in a hierarchy."""
        return any(hierarchy.base is not None for hierarchy in self.hierarchies)

    @property
    def privileged(self) -> bool:
        """Whether this process has CAP_SETGID, CAP_SETUID and CAP_SYS_ADMIN in its user namespace."""
        return self.capabilities & _PRIVILEGES == _PRIVILEGES

    def rules_devices(self, version: int) -> bool:
        """Return whether this process may set the device rules of a cgroup: by files on v1, by a BPF program on v2."""
        check_int("version", version, 1, 2)
        sufficient = (_CAP_SYS_ADMIN,) if version == 1 else (_CAP_SYS_ADMIN, _CAP_BPF | _CAP_NET_ADMIN)
        return self.initial and any(self.capabilities & mask == mask for mask in sufficient)

    @property
    def cgroup_mode(self) -> str:
        """``"v1"``, ``"hybrid"``, ``"v2"`` or ``"none"``."""
        versions = {h.version for h in self.hierarchies}
        return {frozenset({1}): "v1", frozenset({1, 2}): "hybrid", frozenset({2}): "v2"}.get(frozenset(versions), "none")

    def hierarchy(self, controller: str) -> Hierarchy | None:
        """Return the hierarchy with a controller, if any."""
        check_str("controller", controller)
        return next((h for h in self.hierarchies if controller in h.controllers), None)

    def has_controller(self, controller: str) -> bool:
        """Return whether a hierarchy has a controller."""
        return self.hierarchy(controller) is not None


def _hierarchies(own: str) -> tuple[Hierarchy, ...]:
    hierarchies: dict[str, Hierarchy] = {}
    mounts = [mount for mount in read_mounts() if mount.fstype in ("cgroup", "cgroup2")]
    with open("/proc/cgroups", encoding="ascii") as table:
        v1 = {line.split()[0] for line in table if not line.startswith("#")}
    inside = {names: path for _, names, path in (line.split(":", 2) for line in own.split("\n") if line)}
    for _, root, mountpoint, fstype, options in mounts:
        if fstype == "cgroup":
            names = frozenset(o for o in options.split(",") if o in v1 or o.startswith("name="))
            key = ",".join(sorted(names))
            own_path = next((path for listed, path in inside.items() if frozenset(listed.split(",")) == names), "/")
            hierarchies.setdefault(key, Hierarchy(mountpoint, 1, names, _base(mountpoint, [_below(own_path, root)])))
        else:
            own_path = _below(inside.get("", "/"), root)
            # Next to the caller first: a cgroup with processes, as the caller's own, cannot enable controllers for its children.
            base = _base(mountpoint, [os.path.dirname(own_path), own_path])
            controllers = frozenset(Path(mountpoint + (base or "/"), "cgroup.controllers").read_text().split())
            hierarchies.setdefault("2", Hierarchy(mountpoint, 2, controllers, base))
    return tuple(sorted(hierarchies.values(), key=lambda h: h.version))


def _below(path: str, root: str) -> str:
    """Return the path of a cgroup below a mount of the hierarchy's subtree ``root``, or ``/`` if it is outside of it."""
    if root == "/":
        return path
    return path[len(root) :] or "/" if (path + "/").startswith(root + "/") else "/"


def _systemd(hierarchies: tuple[Hierarchy, ...]) -> Systemd | None:
    hierarchy = next((h for h in reversed(hierarchies) if h.version == 2 or "name=systemd" in h.controllers), None)
    if hierarchy is None or not os.path.isdir(_BOOTED):
        return None
    uid = outer_uid()
    base = f"/user.slice/user-{uid}.slice/user@{uid}.service" if uid else "/"
    if not os.path.isdir(hierarchy.mountpoint + base):
        return None
    if hierarchy.version == 2:
        controllers = Path(hierarchy.mountpoint + base, "cgroup.controllers").read_text().split()
        hierarchy = attrs.evolve(hierarchy, controllers=frozenset(controllers))
    return Systemd(uid != 0, attrs.evolve(hierarchy, base=base))


def _permitted() -> int:
    with open("/proc/thread-self/status", encoding="ascii", errors="replace", newline="\n") as status:
        return next(int(line.split()[1], 16) for line in status if line.startswith("CapPrm:"))


def _base(mountpoint: str, candidates: list[str]) -> str | None:
    for path in ("/", *candidates):
        directory = mountpoint + path
        if all(os.access(name, os.W_OK, effective_ids=True) for name in (directory, f"{directory}/cgroup.procs")):
            return path
    return None


def _helpers() -> tuple[str, str] | None:
    """Return newuidmap and newgidmap from the directories of distributions, unless other users could have changed them."""
    for directory in ("/usr/bin", "/bin"):
        paths = (f"{directory}/newuidmap", f"{directory}/newgidmap")
        try:
            infos = [os.stat(path) for path in paths]
        except FileNotFoundError:
            continue
        if all(stat.S_ISREG(info.st_mode) and info.st_uid == 0 and not info.st_mode & 0o022 for info in infos):
            return paths
    return None


def _subids(path: str, uid: int) -> tuple[tuple[int, int], ...]:
    """Return the ranges of subordinate ids of a user (subuid(5)): rows of ``name or uid:first:count``."""
    try:
        text = Path(path).read_text()
    except FileNotFoundError:
        return ()
    rows = [row for line in text.splitlines() if len(row := line.strip().split(":")) == 3 and (row[1] + row[2]).isdigit()]
    if not rows:
        return ()
    try:
        owners = {str(uid), pwd.getpwuid(uid).pw_name}
    except KeyError:  # the helpers do not support a user without a name
        return ()
    return tuple((int(row[1]), int(row[2])) for row in rows if row[0] in owners)


def _mapped(ranges: tuple[tuple[int, int], ...], table: str) -> tuple[tuple[int, int], ...]:
    """Return the ranges that can be mapped in a child of this user namespace."""
    if not ranges:
        return ()
    mapped = [tuple(map(int, line.split())) for line in Path(table).read_text().splitlines()]
    return tuple((first, n) for first, n in ranges if any(a <= first and first + n <= a + size for a, _, size in mapped))


@lru_cache(maxsize=4)
def _probe(own: str) -> Host:
    name = os.uname()
    major, minor = name.release.split(".")[:2]
    try:
        lsms = frozenset(Path("/sys/kernel/security/lsm").read_text().split(","))
    except OSError:
        lsms = frozenset()  # securityfs is not mounted, so no LSM can be used
    hierarchies = _hierarchies(own)
    capabilities = _permitted()
    initial = os.stat("/proc/self/ns/user").st_ino == _INITIAL_USER_NAMESPACE
    host = Host(
        kernel=(int(major), int("".join(c for c in minor if c.isdigit()))),
        machine=name.machine,
        euid=os.geteuid(),
        last_cap=int(Path("/proc/sys/kernel/cap_last_cap").read_text()),
        hierarchies=hierarchies,
        lsms=lsms,
        seccomp=Path("/proc/sys/kernel/seccomp/actions_avail").exists(),
        capabilities=capabilities,
        keyrings=Path("/proc/sys/kernel/keys").is_dir(),
        resctrl=next((mount.point for mount in read_mounts() if mount.fstype == "resctrl"), ""),
        egid=os.getegid(),
        subuids=_mapped(_subids("/etc/subuid", os.geteuid()), "/proc/self/uid_map"),
        subgids=_mapped(_subids("/etc/subgid", os.geteuid()), "/proc/self/gid_map"),
        systemd=_systemd(hierarchies),
        booted=os.path.isdir(_BOOTED),
        may_mknod=initial and bool(capabilities & _CAP_MKNOD),
        may_setgroups=initial or Path("/proc/self/setgroups").read_text() != "deny\n",
        initial=initial,
    )
    return host if host.privileged else attrs.evolve(host, idmap_helpers=_helpers())


# ---- subordinate ids ----

_HELPER_TIMEOUT: Final = 30.0
"""Seconds for a helper, which may query a directory service."""


def map_by_helper(helper: str, pid: int, text: str) -> None:
    """Write an id mapping by newuidmap or newgidmap (newuidmap(1)), for a user without privileges.

    Args:
        helper: the path of the helper.
        pid: the process, which waits for its mapping.
        text: the mapping, as in /proc/PID/uid_map.

    Raises:
        UnsupportedError: the helper failed; with its message.
    """
    import subprocess  # costs more than a short command does with it

    command = [helper, str(pid), *text.split()]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={},
            timeout=_HELPER_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UnsupportedError(f"{helper} took more than {_HELPER_TIMEOUT:.0f} s") from None
    if done.returncode != 0:
        raise UnsupportedError(f"{helper} failed: {done.stderr.strip() or f'exit code {done.returncode}'}")


_WAIT: Final = 'echo; read -r mapped && exec "$@"'
"""Waits for the id mappings of its user namespace, and becomes a program."""


def start_with_subordinate_ids(
    host: Host, command: Sequence[str], *, stderr: int, pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a program as root of a user namespace that has the caller's subordinate ids. Its stdout is a pipe.

    The caller's own ids are 0 there and the subordinate ones follow from 1 on, as in a container that runs as root. If there can be
    no user namespace, the program that was started says so on stderr and fails.

    Raises:
        UnsupportedError: a helper failed.
        OSError: no process can be started.
    """
    mappings = [(0, host.euid, host.egid, 1)]
    for (uid, uids), (gid, gids) in zip(host.subuids, host.subgids, strict=False):
        mappings.append((sum(count for *_, count in mappings), uid, gid, min(uids, gids)))
    process = subprocess.Popen(
        ["unshare", "--user", "--", "sh", "-c", _WAIT, "sh", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        pass_fds=pass_fds,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if process.stdout.readline():
            for helper, column in zip(host.idmap_helpers or (), (1, 2), strict=True):
                map_by_helper(helper, process.pid, "".join(f"{row[0]} {row[column]} {row[3]}\n" for row in mappings))
            process.stdin.write(b"\n")
        process.stdin.close()
        process.stdin = None
    except BaseException:
        process.kill()
        process.wait()
        process.stdout.close()
        raise
    return process


# ---- programs of other architectures ----

_BINFMT: Final = "/proc/sys/fs/binfmt_misc"
_LITTLE: Final = "<"
_BIG: Final = ">"
_ELF: Final = {
    # architecture: class (1 for 32 bits, 2 for 64), byte order, e_machine of elf(5)
    "386": (1, _LITTLE, 3),
    "amd64": (2, _LITTLE, 62),
    "arm": (1, _LITTLE, 40),
    "arm64": (2, _LITTLE, 183),
    "ppc64": (2, _BIG, 21),
    "ppc64le": (2, _LITTLE, 21),
    "mips": (1, _BIG, 8),
    "mipsle": (1, _LITTLE, 8),
    "mips64": (2, _BIG, 8),
    "mips64le": (2, _LITTLE, 8),
    "s390x": (2, _BIG, 22),
    "riscv64": (2, _LITTLE, 243),
    "loong64": (2, _LITTLE, 258),
}
_COMPATIBLE: Final = {("amd64", "386"), ("arm64", "arm"), ("mips64", "mips"), ("mips64le", "mipsle")}
"""Machines, and the 32-bit architectures whose programs their kernels run."""


def runs_programs_of(architecture: str, machine: str) -> bool:
    """Return whether a machine of one architecture runs programs of another, natively or by an emulator in binfmt_misc.

    Args:
        architecture, machine: the names that OCI images use, such as ``arm64``.
    """
    if architecture == machine or (machine, architecture) in _COMPATIBLE:
        return True
    return architecture in _ELF and _is_registered(_header(*_ELF[architecture]))


def _header(bits: int, order: str, machine: int) -> bytes:
    """Return the beginning of an ELF program, up to the machine."""
    executable = 2
    return struct.pack(f"{order}4s3B9x2H", b"\x7fELF", bits, 1 if order == _LITTLE else 2, 1, executable, machine)


def _is_registered(header: bytes) -> bool:
    """Return whether an enabled entry of binfmt_misc takes a program that begins with a header."""
    if not _read_binfmt("status").startswith("enabled"):
        return False  # disabled as a whole, or not mounted
    names = set(os.listdir(_BINFMT)) - {"register", "status"}
    return any(_takes(_read_binfmt(name), header) for name in names)


def _takes(entry: str, header: bytes) -> bool:
    """Return whether an entry (Documentation/admin-guide/binfmt-misc.rst of the kernel) is enabled and takes a program."""
    lines = entry.splitlines()
    fields = {name: value for name, _, value in (line.partition(" ") for line in lines[1:])}
    if lines[:1] != ["enabled"] or "magic" not in fields:
        return False
    offset, magic = int(fields["offset"]), bytes.fromhex(fields["magic"])
    mask = bytes.fromhex(fields["mask"]) if "mask" in fields else b"\xff" * len(magic)
    part = header[offset : offset + len(magic)]
    differing = int.from_bytes(part) ^ int.from_bytes(magic)
    return len(part) == len(magic) and not differing & int.from_bytes(mask)


def _read_binfmt(name: str) -> str:
    try:
        with open(f"{_BINFMT}/{name}", encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""  # it was removed meanwhile, or is not mounted
