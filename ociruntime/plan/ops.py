"""The operations that the init can execute: one table, from which the C header is generated and the wire format follows.

Each operation is one kernel operation, or one closed question that only the running container can answer (whether a path exists, or
is a directory). It has neither branches nor loops nor variables: every decision is made when the plan is compiled.

The kinds of fields on the wire (each a multiple of 8 bytes, so that no structure has padding):

========  =====================  ============================================================================
kind      Python value           C member
========  =====================  ============================================================================
``slot``  int (``NO_SLOT``: none)  ``uint64_t``: index into the init's table of file descriptors
``num``   int                    ``uint64_t`` (negative numbers as two's complement)
``str``   str or bytes           ``struct ref`` to bytes that end in NUL and hold no other
``data``  bytes                  ``struct ref`` to bytes
``list``  sequence of str        ``struct ref`` and a count: strings that end in NUL, one after the other
========  =====================  ============================================================================
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

NO_SLOT: Final = 0xFFFFFFFF
"""The value of a ``slot`` field without a file descriptor (the path is absolute, or the field is not used)."""
MAX_SLOTS: Final = 1024
"""Size of the init's table of file descriptors. A plan that needs more is refused when it is compiled."""
MAGIC: Final = 0x0C1_1218
"""The first word of an encoded plan, which changes with the wire format."""


class Report(IntEnum):
    """The kind of a report from the init (``struct report``)."""

    ERROR = 1
    """The step failed with ``value`` as errno; the kernel's message may follow."""
    SYNC = 2
    """The init waits for one byte before it continues; ``value`` is the token of the `sync` step (`Sync`)."""
    FORKED = 3
    """The next steps run in a new process, after the host's steps between them. The report has its pidfd, or else ``value`` is its
    pid and it is a child of the caller."""
    FD = 4
    """The report has the descriptor that the step hands out (see `WAITING`)."""
    HOOK = 5
    """A hook failed: ``value`` is its status from wait(2), with 65536 added after a timeout, or a negative errno if it could not be
    executed. The report has the output of the hooks."""


WAITING: Final = frozenset({"handout", "socket"})
"""Operations that hand out a descriptor and wait for one byte, as later steps depend on its receiver."""

REPORTING: Final = {
    Report.SYNC: frozenset({"sync"}),
    Report.FORKED: frozenset({"fork", "fork_last"}),
    Report.FD: frozenset({"handout", "socket", "console", "gate", "give"}),
    Report.HOOK: frozenset({"hook"}),
}
"""The operations that send each kind of report. Every operation can send `Report.ERROR`."""


class Sync(IntEnum):
    """The event that the init waits for at a `sync` step."""

    HOST = 0
    """The host's steps after it in the plan are done."""
    CREATED = 1
    """The caller has written the state: the container is created."""


class Target(IntFlag):
    """The requirements for a mount point: ``kind`` of a `target` step."""

    FILE = 1
    """It is not a directory, and is created as a file; without this flag it is a directory. A mount in ``like`` decides instead."""
    NO_LINK = 2
    """The last component of the path is not followed if it is a symbolic link."""
    IN_PROC = 4
    """It may be in a procfs; without this flag a path of the image must not lead into one."""
    LINK = 8
    """With `NO_LINK`: the mount point may be a symbolic link."""


class Call(IntEnum):
    """A request to the init in a `serve` step (``struct request``), by which the caller uses files with the init's rights.

    Each is one operation on the descriptor in ``slot``, and the names in it. It opens nothing but regular files and directories.
    """

    OPEN = 1
    """Open a path with ``flags``, ``mode`` and ``a`` (RESOLVE_*), as ``out``; answer with its status. Flags are those of O_PATH,
    O_DIRECTORY, or of O_CREAT and O_EXCL."""
    REOPEN = 2
    """Open the regular file or directory in ``slot`` with ``flags``, as ``out``; answer with its status."""
    CLOSE = 3
    READ = 4
    """Read up to ``a`` bytes; ``value`` is the length of the hole before them, if there is one, and nothing is read then."""
    WRITE = 5
    """Write the data."""
    SKIP = 6
    """Leave a hole of ``a`` bytes."""
    TRUNCATE = 7
    """End the file at its position, and set its size so."""
    LIST = 8
    """Read entries of a directory, as getdents64(2)."""
    MKDIR = 9
    REMOVE = 10
    """Remove a name, with the ``flags`` of unlinkat(2)."""
    SYMLINK = 11
    """Make a symbolic link, with the data as its target."""
    READLINK = 12
    CHMOD = 13
    TOUCH = 14
    """Set the time of the last change to ``a`` seconds and ``b`` nanoseconds: of the name, or of ``slot`` if it is empty."""
    LINK = 15
    """Make the name a hard link to the name in the data, which is in the directory in ``out``."""
    ATTRIBUTES = 16
    """Read the extended attribute with the name; without a name, the names of all, each of which ends in NUL."""
    SET_ATTRIBUTE = 17
    """Set the extended attribute with the name to the data."""
    CHOWN = 18
    """Give the name to the user ``a`` and the group ``b``. Links are not followed."""
    MKNOD = 19
    """Make a FIFO or a device ``a`` (as `kernel.makedev` returns it) with ``mode``."""
    CLONE = 20
    """Let the empty file in ``out`` share the content of the one in ``slot``, where the filesystem can do that."""
    COPY = 21
    """Copy the next ``a`` bytes at most, or the next hole, to the file in ``out``; ``value`` is their number, 0 at the end."""
    ENTRIES = 22
    """Read entries of a directory with the status of each; ``value`` is 0 at the end. An entry is its length, 1 if the names of the
    extended attributes are too long for it, both as 32-bit numbers, `STATUS` bytes of ``struct statx``, its name, and these names.
    Each name ends in NUL."""


SERVED: Final = 1 << 16
"""The most bytes that a request or its answer carries beside its structure."""
STATUS: Final = 144
"""The bytes of ``struct statx`` that `Call.ENTRIES` answers with."""


class Op:
    """One operation: its code on the wire, its name and its fields in order."""

    def __init__(self, code: int, name: str, fields: tuple[tuple[str, str], ...]) -> None:
        self.code = code
        self.name = name
        self.fields = fields


def _table(text: str) -> dict[str, Op]:
    table: dict[str, Op] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, rest = line.partition(":")
        fields = tuple((field, kind) for kind, field in (item.split() for item in rest.split(",") if item.strip()))
        table[name] = Op(len(table) + 1, name, fields)
    return table


OPS: Final = _table(
    """
    open: slot dir, str path, num flags, num mode, num resolve, slot out
    close: slot fd
    open_tree: slot dir, str path, num flags, slot out
    fsopen: str fstype, slot out
    fsconfig: slot fs, num cmd, str key, str value
    fsmount: slot fs, num attrs, slot out
    mount_setattr: slot fd, num flags, num set, num clear, num propagation, slot userns
    move_mount: slot mount, slot target
    target: slot root, str path, num kind, num mode, slot like, slot out
    pivot_root: slot root
    mask: slot root, str path, slot null
    readonly: slot root, str path
    prove_dev: slot fd, num mode, num dev
    prove_proc: slot fd
    mknod: slot dir, str name, num mode, num dev, num uid, num gid
    symlink: slot dir, str name, str target
    mkdir: slot dir, str name, num mode
    write: slot dir, str path, data data
    sethostname: str name
    setdomainname: str name
    rlimit: num resource, num soft, num hard
    unshare: num flags
    setns: slot fd, num flags
    fork: num flags
    setsid:
    keyring: str name
    setgroups: data gids, num optional
    setresgid: num gid
    setresuid: num uid
    bounding: num keep, num last
    capset: num effective, num permitted, num inheritable
    ambient: num caps
    prctl: num option, num a, num b
    umask: num mask
    personality: num persona
    chdir: str path, num create
    scheduler: data attr
    ioprio: num value
    affinity: data mask
    mempolicy: num mode, data nodes
    seccomp: num flags, data filter, slot out
    handout: slot fd
    socket: num family, num type, num protocol
    link_up: str name
    console: slot devpts, slot dev, num rows, num cols, num uid, num bind
    copyup: slot source, slot target
    lookup: slot root, list candidates
    sync: num token
    gate: slot listener
    exec: list candidates, list argv, list env
    reap: num childless
    fspick: slot dir, str path, num flags, slot out
    mode_like: slot root, str path, slot target
    join: slot fd, num type, slot own, str name
    die_with: slot parent
    setxattr: slot dir, str name, data value
    own_stdio: num uid
    chroot: slot root
    hook: slot cwd, str path, list argv, list env, slot state, slot output, num timeout
    detach: slot mount
    label: slot dir, str path, data data
    copy_link: slot mount, slot root, str path, slot dir, str name
    mount: str source, str place, str fstype, num flags, str data, slot out
    close_all:
    keep_page:
    fork_last:
    take_terminal:
    fsconfig_fds: slot fs, str key, data slots
    serve: slot peer, slot end, slot proc
    guard: slot ended
    give: slot fd
    inherit: slot fd, num number
    profile: num steps
    """
)


def c_header() -> str:
    """Return the C header: structures, codes, and the shapes by which the init checks an encoded plan."""
    lines = [
        "/* Generated from ociruntime/plan/ops.py; do not edit. */",
        "#ifndef OCIRUNTIME_OPS_H",
        "#define OCIRUNTIME_OPS_H",
        "#include <stdint.h>",
        "",
        f"#define NO_SLOT {NO_SLOT:#x}u",
        f"#define MAX_SLOTS {MAX_SLOTS}u",
        f"#define PROGRAM_MAGIC {MAGIC:#x}u",
        *(f"#define REPORT_{report.name} {report.value}" for report in Report),
        *(f"#define TARGET_{flag.name} {flag.value}" for flag in Target),
        *(f"#define CALL_{call.name} {call.value}" for call in Call),
        f"#define SERVED {SERVED}",
        f"#define STATUS {STATUS}",
        "",
        "struct ref { uint32_t off, len; };",
        "struct list { struct ref text; uint64_t count; };",
        "struct head { uint16_t len, code; uint32_t step; };",
        "struct program { uint32_t magic, len, ops, inputs; };",
        "struct report { uint32_t kind, step; int32_t value; uint32_t reserved; };",
        "struct progress { uint32_t step; int32_t error; int32_t forked; uint32_t reserved; int64_t stamps[]; };",
        "struct request { uint32_t call, slot, out, flags, mode, name; uint64_t a, b; };",
        "struct answer { int32_t error; uint32_t status; uint64_t value; };",
        "",
    ]
    ctype = {"slot": "uint64_t", "num": "uint64_t", "str": "struct ref", "data": "struct ref", "list": "struct list"}
    for op in OPS.values():
        members = " ".join(f"{ctype[kind]} {name};" for name, kind in op.fields)
        lines.append(f"#define OP_{op.name.upper()} {op.code}")
        lines.append(f"struct op_{op.name} {{ struct head head; {members} }};")
    lines.append("")
    lines.append("enum kind { END, SLOT, NUM, STR, DATA, LIST };")
    longest = max(len(op.fields) for op in OPS.values()) + 1
    lines.append(f"static const unsigned char SHAPES[{len(OPS) + 1}][{longest}] = {{")
    for op in OPS.values():
        kinds = ", ".join(kind.upper() for _, kind in op.fields)
        lines.append(f"    [OP_{op.name.upper()}] = {{ {kinds or 'END'} }},")
    lines += ["};", f"#define OP_LAST {len(OPS)}", "#endif", ""]
    return "\n".join(lines)


# ---- constants of the kernel's uapi headers that plans contain, the same on every architecture unless noted ----

CLONE_NEW: Final = {
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "network": 0x40000000,
    "time": 0x00000080,
}
NAMESPACE_FILES: Final = {
    "mount": "mnt",
    "cgroup": "cgroup",
    "uts": "uts",
    "ipc": "ipc",
    "user": "user",
    "pid": "pid",
    "network": "net",
    "time": "time",
}

AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000
OPEN_TREE_CLONE: Final = 1

O_WRONLY: Final = 1
O_PATH: Final = 0o10000000
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_IN_ROOT: Final = 0x10

FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_CMD_CREATE: Final = 6
FSCONFIG_CMD_RECONFIGURE: Final = 7
FSPICK_EMPTY_PATH: Final = 8

MOUNT_ATTR_RDONLY: Final = 0x01
MOUNT_ATTR_NOSUID: Final = 0x02
MOUNT_ATTR_NODEV: Final = 0x04
MOUNT_ATTR_NOEXEC: Final = 0x08
MOUNT_ATTR_ATIME: Final = 0x70
MOUNT_ATTR_NOATIME: Final = 0x10
MOUNT_ATTR_STRICTATIME: Final = 0x20
MOUNT_ATTR_NODIRATIME: Final = 0x80
MOUNT_ATTR_IDMAP: Final = 0x100000
MOUNT_ATTR_NOSYMFOLLOW: Final = 0x200000

MS_UNBINDABLE: Final = 1 << 17
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20


CLONE_PARENT: Final = 0x8000
CLONE_PARENT_SETTID: Final = 0x100000
MSG_NOSIGNAL: Final = 0x4000
TIOCSCTTY: Final = 0x540E

SECCOMP_FILTER_FLAG_NEW_LISTENER: Final = 1 << 3

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_KEEPCAPS: Final = 8
PR_SET_NO_NEW_PRIVS: Final = 38

S_IFCHR: Final = 0o020000
S_IFBLK: Final = 0o060000
S_IFIFO: Final = 0o010000

RLIMITS: Final = {
    "RLIMIT_CPU": 0,
    "RLIMIT_FSIZE": 1,
    "RLIMIT_DATA": 2,
    "RLIMIT_STACK": 3,
    "RLIMIT_CORE": 4,
    "RLIMIT_RSS": 5,
    "RLIMIT_NPROC": 6,
    "RLIMIT_NOFILE": 7,
    "RLIMIT_MEMLOCK": 8,
    "RLIMIT_AS": 9,
    "RLIMIT_LOCKS": 10,
    "RLIMIT_SIGPENDING": 11,
    "RLIMIT_MSGQUEUE": 12,
    "RLIMIT_NICE": 13,
    "RLIMIT_RTPRIO": 14,
    "RLIMIT_RTTIME": 15,
}
"""The asm-generic numbers (x86, arm, riscv, s390, powerpc). mips and sparc, which differ, are not supported."""


def makedev(major: int, minor: int) -> int:
    """Return a device number as operations have it: the major number in the upper half, the minor in the lower."""
    return major << 32 | minor


AF_INET, AF_INET6, AF_NETLINK = 2, 10, 16
SOCK_STREAM, SOCK_RAW = 1, 3
NETLINK_ROUTE: Final = 0
