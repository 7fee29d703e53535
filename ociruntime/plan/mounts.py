"""Mounts: the steps that make each mount detached, and attach it in the container's root (config.md, Mounts).

Two passes: `Mounts.prepare` while the host's tree is in sight, `Mounts.attach` in the order of the config when it no longer is.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import Problem, SpecError, UnsupportedError
from . import kernel as k
from .model import NO_SLOT, Builder
from .mount_options import PROPAGATION, SUPERBLOCK, Options, names, parse_options
from .ops import Target
from .paths import below, destination_in_root
from .rootfs import root_propagation

if TYPE_CHECKING:
    from ..spec import Mount, RuntimeSpec

_SECTION: Final = "config.md#mounts"
_LONGEST_VALUE: Final = 255
# What fsconfig(2) takes for one value.
_RO_BY_MOUNT: Final = frozenset({"sysfs", "mqueue", "tmpfs"})
# Read-only is the mount, not the filesystem: it may be the host's as well, or something is written to it first.


class Prepared(NamedTuple):
    """A mount that is ready to be attached."""

    destination: str
    fstype: str
    slot: int
    """Of the detached mount; NO_SLOT where there is none before it is attached."""
    attach: Callable[[int], int]
    """Writes the steps that attach it below the root in a slot; gives the slot of what was attached."""


class Mounts:
    """The mounts of one container."""

    def __init__(self, b: Builder, spec: RuntimeSpec, *, bundle: str, rootfs: str) -> None:
        self.b = b
        self._shared = root_propagation(spec)[0] == k.MS_SHARED
        self._mounts = tuple(spec.mounts or ())
        self._bundle = bundle
        self._rootfs = rootfs
        self._context = self._target = NO_SLOT
        self._ready: dict[int, Prepared] = {}

    @property
    def prepared(self) -> tuple[Prepared, ...]:
        """What is ready so far, in the order of the config."""
        return tuple(self._ready[index] for index in sorted(self._ready))

    # ---- while the host's tree is in sight ----

    def prepare_binds(self) -> None:
        """The steps that open what comes from the host, detached: in a user namespace, only its caller's ids may reach it.

        Raises:
            SpecError, UnsupportedError: a mount cannot be made.
        """
        self._prepare_all(binds=True)

    def prepare(self) -> None:
        """The steps that make every other mount, detached; who makes a filesystem owns it. Raises SpecError, UnsupportedError."""
        self._prepare_all(binds=False)

    def _prepare_all(self, *, binds: bool) -> None:
        for index, mount in enumerate(self._mounts):
            if (mount.is_bind or mount.type == "bind") is binds:
                self._ready[index] = self._prepare(mount, f"$.mounts[{index}]")

    def _prepare(self, mount: Mount, where: str) -> Prepared:
        options = parse_options(mount.options or ())
        destination = destination_in_root(mount.destination)
        fstype = "" if mount.type in (None, "none") else str(mount.type)
        if fstype == "bind":
            options = options._replace(bind=True)
        self._check_proc(fstype, destination, options, where)
        if options.idmap or mount.uid_mappings or mount.gid_mappings:
            raise UnsupportedError(f"{where}: id-mapped mounts are not supported yet")
        if options.remount:
            return self._change(destination, options)
        if options.bind:
            return self._bind(mount, destination, options, where)
        if not fstype and options == Options(propagation=options.propagation) and options.propagation:
            return self._change(destination, options)
        if not fstype:
            raise SpecError([Problem(f"{where}.type", "a mount that is no bind mount needs a type", _SECTION)])
        if fstype in ("cgroup", "cgroup2"):
            raise UnsupportedError(f"{where}: cgroup mounts in a container are not supported yet")
        return self._filesystem(fstype, mount.source or "none", destination, options, where)

    def _check_proc(self, fstype: str, destination: str, options: Options, where: str) -> None:
        """Only a procfs may come to lie on /proc, and only single files below it: what is read there must be the kernel's."""
        problem = ""
        if below(destination, "/proc") and not options.remount:
            if destination == "/proc" and fstype != "proc" and not options.bind:
                problem = "only procfs may be mounted on /proc"
            elif destination != "/proc" and not options.bind:
                problem = "only single files may be bound below /proc"
        if problem:
            raise SpecError([Problem(f"{where}.destination", problem, "config-linux.md#default-filesystems")])

    def _bind(self, mount: Mount, destination: str, options: Options, where: str) -> Prepared:
        if not mount.source:
            raise SpecError([Problem(f"{where}.source", "a bind mount needs a source", _SECTION)])
        if options.copy_up:
            raise SpecError([Problem(f"{where}.options", "tmpcopyup is for a tmpfs", _SECTION)])
        source = posixpath.normpath(posixpath.join(self._bundle, mount.source))
        flags = k.OPEN_TREE_CLONE | (k.AT_RECURSIVE if options.recursive_bind else 0)
        text = f"{source}{' with all below it' if options.recursive_bind else ''}, for {destination}"
        slot = self.b.slot()
        inside = below(source, self._rootfs)

        def attach(root: int) -> int:
            if inside:
                # What the image says about this path must not lead out of the image.
                self.b.init(
                    "open", root, "." + source[len(self._rootfs) :], k.O_PATH, 0, k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS, slot,
                    text=f"{source}, in the root",
                )  # fmt: skip
                self.b.init("open_tree", slot, "", flags | k.AT_EMPTY_PATH, slot, text=text)
                self._attributes(slot, options, destination, bind=True)
            target = self._find(root, slot, destination, "bind", like=slot)
            self.b.init("move_mount", slot, target, text=f"{source} -> {destination}")
            return slot

        if not inside:
            self.b.init("open_tree", NO_SLOT, source, flags, slot, text=text)
            self._attributes(slot, options, destination, bind=True)
        return Prepared(destination, "bind", slot, attach)

    def _filesystem(self, fstype: str, source: str, destination: str, options: Options, where: str) -> Prepared:
        if options.copy_up and fstype != "tmpfs":
            raise SpecError([Problem(f"{where}.options", "tmpcopyup is for a tmpfs", _SECTION)])
        options = options.of_one_mount()
        # A tmpfs has the mode of the directory that it hides, unless the config says otherwise.
        mode_like = fstype == "tmpfs" and all(key != "mode" for key, _ in options.data)
        late = options.set & k.MOUNT_ATTR_RDONLY if options.copy_up or mode_like else 0
        slot = self.filesystem(fstype, source, destination, options._replace(set=options.set & ~late), where)

        def attach(root: int) -> int:
            target = self._find(root, slot, destination, fstype, NO_SLOT)
            if options.copy_up:
                self.b.init("copyup", target, slot, text=f"the image's {destination} into the tmpfs")
            if mode_like:
                self.b.init("mode_like", target, slot, text=f"the mode of the image's {destination} for the tmpfs")
            if late:
                self.b.init("mount_setattr", slot, 0, late, 0, 0, NO_SLOT, text=f"{names(late)} on what goes to {destination}")
            self.b.init("move_mount", slot, target, text=f"{fstype} -> {destination}")
            return slot

        return Prepared(destination, fstype, slot, attach)

    def filesystem(self, fstype: str, source: str, destination: str, options: Options, where: str) -> int:
        """The steps that make a filesystem; gives the slot of its mount, which is not attached."""
        b = self.b
        if self._context == NO_SLOT:
            self._context = b.slot()
        fs, slot = self._context, b.slot()
        b.init("fsopen", fstype, fs, text=f"{fstype}, for {destination}")
        self._configure(fs, "source", source, where)
        for word in options.superblock:
            if SUPERBLOCK[word][1] and not (word == "ro" and fstype in _RO_BY_MOUNT):
                self._configure(fs, word, None, where)
        for key, value in options.data:
            self._configure(fs, key, value, where)
        b.init("fsconfig", fs, k.FSCONFIG_CMD_CREATE, "", "", text=f"create the {fstype}")
        flags = names(options.set) or "no flags"
        b.init("fsmount", fs, options.set, slot, text=f"{fstype}, not attached yet ({flags})")
        self._attributes(slot, options._replace(set=0, clear=0), destination)
        return slot

    def _configure(self, fs: int, key: str, value: str | None, where: str) -> None:
        if value is None:
            self.b.init("fsconfig", fs, k.FSCONFIG_SET_FLAG, key, "", text=key)
            return
        if len(value.encode("utf-8", "surrogateescape")) > _LONGEST_VALUE:
            message = f"{where}: the kernel takes no value of more than {_LONGEST_VALUE} bytes, as that of {key} is"
            raise UnsupportedError(message)
        self.b.init("fsconfig", fs, k.FSCONFIG_SET_STRING, key, value, text=f"{key}={value}")

    def _attributes(self, slot: int, options: Options, destination: str, *, bind: bool = False) -> None:
        # What nobody names stays as it is: the flags of the source that a user namespace has locked, too.
        for flags, on, off, what in (
            (0, options.set, options.clear, ""),
            (k.AT_RECURSIVE, options.recursive_set, options.recursive_clear, " and all below it"),
        ):
            if on or off:
                text = f"{names(on) or 'flags'} on what goes to {destination}{what}"
                self.b.init("mount_setattr", slot, flags, on, off, 0, NO_SLOT, text=text)
        if not options.propagation and self._shared and bind:
            # The clone of a shared mount is its peer, and what is mounted on it would show up on the host.
            text = f"private: what goes to {destination} and all below it"
            self.b.init("mount_setattr", slot, k.AT_RECURSIVE, 0, 0, k.MS_PRIVATE, NO_SLOT, text=text)
        for name in options.propagation:
            bits, recursive = PROPAGATION[name]
            text = f"propagation {name} on what goes to {destination}"
            self.b.init("mount_setattr", slot, k.AT_RECURSIVE if recursive else 0, 0, 0, bits, NO_SLOT, text=text)

    # ---- in the container's root ----

    def attach(self, root: int, *, pivot: bool = True) -> tuple[int, dict[str, int]]:
        """The steps that attach every mount in the order of the config; gives the root and the slots by the destinations.

        A mount on ``/`` becomes the root: at once with ``pivot``, else by what the caller does with the slot.
        """
        attached: dict[str, int] = {}
        for mount in self.prepared:
            slot = attached[mount.destination] = mount.attach(root)
            if mount.destination == "/" and mount.slot != NO_SLOT:
                if pivot:
                    self.b.init("pivot_root", slot, text=f"the {mount.fstype} is / from here on")
                root, attached = slot, {}
        return root, attached

    def scratch(self) -> int:
        """The slot of a descriptor that the next mount point takes over."""
        if self._target == NO_SLOT:
            self._target = self.b.slot()
        return self._target

    def target(self, root: int, destination: str, kind: Target, like: int) -> int:
        """The steps that find a mount point in the root or make it; gives its slot, which the next one takes over."""
        slot = self.scratch()
        self.b.init("target", root, destination, kind, 0o755, like, slot, text=f"{destination}, made where missing")
        return slot

    def _find(self, root: int, slot: int, destination: str, fstype: str, like: int) -> int:
        """The mount point of a mount that is about to be attached; gives its slot."""
        kind = Target(0)
        if destination == "/proc":
            kind = Target.IN_PROC
            if fstype != "proc":
                self.b.init("prove_proc", slot, text="what goes to /proc is the root of a procfs")
        elif below(destination, "/proc"):
            kind, like = Target.IN_PROC | Target.FILE, NO_SLOT
        if fstype in ("proc", "sysfs") or destination == "/proc":
            kind |= Target.NO_LINK
        return self.target(root, destination, kind, like)

    def _change(self, destination: str, options: Options) -> Prepared:
        """Change a mount that is there (mount(8), ``remount``): with ``bind`` the mount alone, else its filesystem as well."""

        def attach(root: int) -> int:
            slot = self.b.slot()
            in_root = k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS
            self.b.init("open", root, destination, k.O_PATH, 0, in_root, slot, text=destination)
            if options.remount and not options.bind and (options.superblock or options.data):
                if self._context == NO_SLOT:
                    self._context = self.b.slot()
                self.b.init("fspick", slot, "", k.FSPICK_EMPTY_PATH, self._context, text=f"the filesystem of {destination}")
                for word in options.superblock:
                    self._configure(self._context, word, None, destination)
                for key, value in options.data:
                    self._configure(self._context, key, value, destination)
                text = f"change the filesystem of {destination}"
                self.b.init("fsconfig", self._context, k.FSCONFIG_CMD_RECONFIGURE, "", "", text=text)
            self._attributes(slot, options, destination)
            return slot

        return Prepared(destination, "remount", NO_SLOT, attach)
