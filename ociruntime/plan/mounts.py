"""Mounts: the steps that make each mount detached, and attach it in the container's root (config.md, Mounts).

`Mounts.prepare` makes every mount, in the order of the config, which is also how the kernel lists them; with a user namespace
`Mounts.sources` comes before it and copies what is bound from the host, while the caller's rights last. `Mounts.attach` puts
everything in its place, in the order of the config, when the host's tree is gone.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import Problem, SpecError, UnsupportedError
from ..spec.syntax import destination_in_root, is_below
from . import kernel as k
from .cgroup_mounts import CgroupMounts
from .id_mappings import IdMaps
from .model import NO_SLOT, Builder
from .mount_options import (
    PROPAGATION,
    SUPERBLOCK,
    Options,
    flags_of,
    names,
    one_by_one,
    parse_options,
    text_of,
    too_long,
)
from .ops import Target
from .rootfs import root_propagation, settled

if TYPE_CHECKING:
    from ..host import Host
    from ..spec import Mount, RuntimeSpec
    from .cgroups import Placement

_RO_BY_MOUNT: Final = frozenset({"sysfs", "mqueue", "tmpfs"})
# Read-only is the mount, not the filesystem: it may be the host's as well, or something is written to it first.
_NEEDS: Final = {"proc": ("pid", "/proc"), "mqueue": ("ipc", "/dev/mqueue")}
# In a user namespace: the namespace that a filesystem shows and that must be the container's too; what to bind otherwise.
_UNLABELLED: Final = frozenset({"proc", "sysfs", "cgroup", "cgroup2"})
_XATTR_LABEL: Final = "mqueue"


class Prepared(NamedTuple):
    """A mount that is ready to be attached."""

    destination: str
    fstype: str
    slot: int
    """Of the detached mount; NO_SLOT where there is none before it is attached."""
    attach: Callable[[int], int]
    """Writes the steps that attach it below the root in a slot; gives the slot of what was attached."""


class Wanted(NamedTuple):
    """An entry of the config, with its options sorted."""

    mount: Mount
    where: str
    destination: str
    fstype: str
    options: Options

    @property
    def change(self) -> bool:
        """Whether it changes a mount that is there: ``remount``, or nothing but a propagation type."""
        only = Options(propagation=self.options.propagation)
        return self.options.remount or (not self.fstype and bool(only.propagation) and self.options == only)


def _wanted(mount: Mount, where: str) -> Wanted:
    options = parse_options(mount.options or ())
    fstype = "" if mount.type in (None, "none") else str(mount.type)
    if fstype == "bind":
        options = options._replace(bind=True)
    return Wanted(mount, where, destination_in_root(mount.destination), fstype, options)


class Mounts:
    """The mounts of one container."""

    def __init__(
        self,
        b: Builder,
        spec: RuntimeSpec,
        host: Host,
        *,
        bundle: str,
        rootfs: str,
        own: Collection[str],
        placement: Placement,
    ) -> None:
        """Read the config.

        Args:
            rootfs: the absolute path of the root filesystem on the host.
            own: the types of the namespaces that the container does not share with the caller.
            placement: the container's cgroups.

        Raises:
            SpecError: a mount contradicts itself, or may not be where it is wanted.
            UnsupportedError: this host cannot do it.
        """
        self.b = b
        self._bundle, self._rootfs, self._own = bundle, rootfs, own
        self._propagation = root_propagation(spec)[0]
        self._label = (spec.linux.mount_label if spec.linux else None) or ""
        if self._label and "selinux" not in host.lsms:
            b.warn("$.linux.mountLabel: SELinux is not active on this host, so mounts have no labels")
            self._label = ""
        self._gids = (spec.linux.gid_mappings if spec.linux else None) or ()
        self._uids = (spec.linux.uid_mappings if spec.linux else None) or ()
        self._host = host
        self._own_tree = any(n.type == "mount" and not n.path for n in (spec.linux.namespaces if spec.linux else None) or ())
        self._idmaps = IdMaps(b, spec, host, own)
        self._cgroups = CgroupMounts(self, host, placement, namespaced="cgroup" in own)
        self._context = self._target = NO_SLOT
        self._wanted = [_wanted(mount, f"$.mounts[{index}]") for index, mount in enumerate(spec.mounts or ())]
        for wanted in self._wanted:
            if wanted.options.bind and not wanted.change and (words := wanted.options.unheard()):
                b.warn(f"{wanted.where}.options: {', '.join(words)}: a bind mount changes no filesystem, so this has no effect")
        self._ready: dict[int, Prepared] = {}

    @property
    def prepared(self) -> list[Prepared]:
        """All mounts in the order of the config, as far as they are ready."""
        return [self._ready[index] for index in sorted(self._ready)]

    def binds(self, destination: str) -> bool:
        """Whether something of the host is bound at a place."""
        return any(wanted.destination == destination and wanted.options.bind and not wanted.change for wanted in self._wanted)

    # ---- while the host's tree is in sight ----

    def sources(self, *, early: bool = False) -> None:
        """The steps that copy the mounts of the host that are bound, before the others.

        Args:
            early: the init is still in the caller's mount namespace, whose tree is not settled for the container.
        """
        for index, wanted in enumerate(self._wanted):
            if wanted.options.bind and not wanted.change:
                self._ready[index] = self._bind(wanted, early=early)

    def prepare(self) -> None:
        """The steps that make every mount that is not ready yet, detached."""
        for index, wanted in enumerate(self._wanted):
            if index in self._ready:
                continue
            if wanted.change:
                self._ready[index] = self._change(wanted)
            elif wanted.options.bind:
                self._ready[index] = self._bind(wanted, early=False)
            elif wanted.fstype in ("cgroup", "cgroup2"):
                self._ready[index] = Prepared(wanted.destination, wanted.fstype, *self._cgroups.prepare(wanted))
            elif "user" in self._own and wanted.fstype == "sysfs" and "network" not in self._own:
                self._ready[index] = self._sys(wanted)
            else:
                self._ready[index] = self._filesystem(wanted)

    def _bind(self, wanted: Wanted, *, early: bool) -> Prepared:
        mount, where, destination, _, options = wanted
        source = posixpath.normpath(posixpath.join(self._bundle, mount.source or ""))
        userns = self._idmaps.of(mount, options, where)
        if is_below(source, self._rootfs) and userns == NO_SLOT:
            return self._bind_inside(source, destination, options)
        slot = self.clone(source, destination, options, early=early, userns=userns)
        return Prepared(destination, "bind", slot, self._binder(slot, source, destination, options))

    def _binder(self, slot: int, source: str, destination: str, options: Options) -> Callable[[int], int]:
        """What attaches a bind mount."""
        if "copy-symlink" not in options.links or is_below(destination, "/proc"):
            return self.attacher(slot, destination, "bind", shown=source, on_link="dest-nofollow" in options.links)

        def attach(root: int) -> int:
            place, name = posixpath.split(destination)
            directory = self.target(root, place, Target(0), NO_SLOT)
            text = f"{source} -> {destination}, or a link like it"
            self.b.init("copy_link", slot, root, destination, directory, name, text=text)
            return slot

        return attach

    def _bind_inside(self, source: str, destination: str, options: Options) -> Prepared:
        """What lies in the image is opened in the image, when the mounts before it are there."""
        slot = self.b.slot()

        def attach(root: int) -> int:
            self._clone_in(root, source, destination, options, slot)
            self._attributes(slot, options, destination, bind=True)
            return self._binder(slot, source, destination, options)(root)

        return Prepared(destination, "bind", slot, attach)

    def _clone_in(self, root: int, source: str, destination: str, options: Options, slot: int) -> None:
        """Copy what lies in the image, without leaving it."""
        flags, text = _tree(source, destination, options)
        inside, name = "." + source[len(self._rootfs) :], ""
        if options.follow or inside == ".":
            flags = flags & ~k.AT_SYMLINK_NOFOLLOW | k.AT_EMPTY_PATH
        else:
            inside, name = posixpath.split(inside)
        in_root = k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS
        self.b.init("open", root, inside, k.O_PATH, 0, in_root, slot, text=f"{source}, in the root")
        self.b.init("open_tree", slot, name, flags, slot, text=text)

    def clone(self, source: str, destination: str, options: Options, *, early: bool = False, userns: int = NO_SLOT) -> int:
        """The steps that copy a mount of the host, or a part of one; gives the slot of the copy, which is not attached."""
        slot = self.b.slot()
        if is_below(source, self._rootfs):
            self.b.init("open", NO_SLOT, self._rootfs, k.O_PATH, 0, 0, slot, text=f"{self._rootfs}, to stay in it")
            self._clone_in(slot, source, destination, options, slot)
        else:
            flags, text = _tree(source, destination, options)
            self.b.init("open_tree", NO_SLOT, source, flags, slot, text=text)
        if early:
            settled(self.b, self._propagation, slot, f"what goes to {destination}")
        if userns != NO_SLOT:
            recursive = k.AT_RECURSIVE if options.idmap == "ridmap" else 0
            text = f"ids mapped on what goes to {destination}{' and all below it' if recursive else ''}"
            self.b.init("mount_setattr", slot, recursive, k.MOUNT_ATTR_IDMAP, 0, 0, userns, text=text)
        self._attributes(slot, options, destination, bind=True)
        return slot

    def _sys(self, wanted: Wanted) -> Prepared:
        """In a user namespace a sysfs is for who owns the network namespace; others get the host's, read-only (as with crun)."""
        _, where, destination, _, options = wanted
        if not options.of_one_mount().set & k.MOUNT_ATTR_RDONLY:
            raise UnsupportedError(
                f"{where}: a writable sysfs in a user namespace needs a network namespace of its own: add one, or the option ro"
            )
        bits = options.of_one_mount().set & ~k.MOUNT_ATTR_ATIME
        bound = Options(recursive_set=bits, bind=True, recursive_bind=True, propagation=options.propagation)
        slot = self.clone("/sys", destination, bound)
        attach = self.attacher(slot, destination, "sysfs", shown="the host's /sys")
        cgroups = posixpath.join(destination, "fs/cgroup")

        def attach_and_hide(root: int) -> int:
            attach(root)
            if all(other.destination != cgroups for other in self._wanted):
                self.b.init("mask", root, cgroups, NO_SLOT, text=f"{cgroups}: the host's cgroups")
            return slot

        return Prepared(destination, "sysfs", slot, attach_and_hide)

    def _filesystem(self, wanted: Wanted) -> Prepared:
        mount, where, destination, fstype, options = wanted
        self._idmaps.refuse(mount, options, where)
        if "user" in self._own:
            self._check_user_namespace(wanted)
        options = options.of_one_mount()
        # A tmpfs has the mode of the directory that it hides, unless the config says otherwise.
        mode_like = fstype == "tmpfs" and all(key != "mode" for key, _ in options.data)
        late = options.set & k.MOUNT_ATTR_RDONLY if options.copy_up or mode_like else 0
        early = options._replace(set=options.set & ~late)
        slot = self.filesystem(fstype, mount.source or "none", destination, early, where)

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

    def _check_user_namespace(self, wanted: Wanted) -> None:
        _, where, _, fstype, options = wanted
        needed, source = _NEEDS.get(fstype, ("", ""))
        if needed and needed not in self._own:
            raise UnsupportedError(
                f"{where}: {fstype} in a user namespace needs a {needed} namespace of its own: add one, or bind {source} instead"
            )
        problems = []
        for key, maps in (("uid", self._uids), ("gid", self._gids)):
            for name, value in options.data:
                if name == key and value and value.isdigit() and maps:
                    number = int(value)
                    if not any(entry.container_id <= number < entry.container_id + entry.size for entry in maps):
                        message = f"{key} {number} is not mapped in the user namespace"
                        problems.append(Problem(f"{where}.options", message, "config-linux.md#user-namespace-mappings"))
        if problems:
            raise SpecError(problems)

    def filesystem(self, fstype: str, source: str, destination: str, options: Options, where: str) -> int:
        """The steps that make a filesystem; gives the slot of its mount, which is not attached."""
        data = one_by_one(fstype, options.data, self._host)
        superblock = tuple(w for w in options.superblock if SUPERBLOCK[w][1] and not (w == "ro" and fstype in _RO_BY_MOUNT))
        if self._label and fstype not in _UNLABELLED and fstype != _XATTR_LABEL:
            data = (*data, ("context", self._label))
        if key := too_long((("source", source), *data)):
            return self._whole(fstype, source, destination, options._replace(superblock=superblock, data=tuple(data)), where, key)
        b = self.b
        if self._context == NO_SLOT:
            self._context = b.slot()
        fs, slot = self._context, b.slot()
        b.init("fsopen", fstype, fs, text=f"{fstype}, for {destination}")
        for key, value in (("source", source), *((word, None) for word in superblock), *data):
            self._configure(fs, key, value)
        b.init("fsconfig", fs, k.FSCONFIG_CMD_CREATE, "", "", text=f"create the {fstype}")
        flags = names(options.set) or "no flags"
        b.init("fsmount", fs, options.set, slot, text=f"{fstype}, not attached yet ({flags})")
        if self._label and fstype == _XATTR_LABEL:
            text = f"{self._label} on what goes to {destination}"
            b.init("setxattr", slot, "security.selinux", self._label.encode() + b"\0", text=text)
        self._attributes(slot, options._replace(set=0, clear=0), destination)
        return slot

    def _whole(self, fstype: str, source: str, destination: str, options: Options, where: str, key: str) -> int:
        """The same for options with a value that is too long for fsconfig(2)."""
        why = f"{where}: the value of {key} is long, and such a filesystem"
        if not self._own_tree:
            raise UnsupportedError(f"{why} needs a new mount namespace, where it can hang for a moment")
        if self._propagation == k.MS_SHARED:
            raise UnsupportedError(f"{why} would show up on the host for a moment: choose another rootfsPropagation")
        slot = self.b.slot()
        data = text_of(options.data, where)
        text = f"{fstype}, for {destination}, not attached but for a moment: {data}"
        self.b.init("mount", source, "/proc", fstype, flags_of(options.superblock), data, slot, text=text)
        self._attributes(slot, options, destination)
        return slot

    def _configure(self, fs: int, key: str, value: str | None) -> None:
        if value is None:
            self.b.init("fsconfig", fs, k.FSCONFIG_SET_FLAG, key, "", text=key)
        else:
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
        if not options.propagation and self._propagation == k.MS_SHARED and bind:
            # The copy of a shared mount is its peer, and what is mounted on it would show up on the host.
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

    def target(self, root: int, path: str, kind: Target, like: int, *, shown: str = "") -> int:
        """The steps that find a mount point in a root or make it; gives its slot, which the next one takes over."""
        slot = self.scratch()
        self.b.init("target", root, path, kind, 0o755, like, slot, text=f"{shown or path}, made where missing")
        return slot

    def attacher(self, slot: int, destination: str, fstype: str, *, shown: str = "", on_link: bool = False) -> Callable[[int], int]:
        """What attaches a mount without more ado; with ``on_link`` over a symbolic link itself."""

        def attach(root: int) -> int:
            target = self._find(root, slot, destination, fstype, slot, on_link=on_link)
            self.b.init("move_mount", slot, target, text=f"{shown or fstype} -> {destination}")
            return slot

        return attach

    def _find(self, root: int, slot: int, destination: str, fstype: str, like: int, *, on_link: bool = False) -> int:
        """The mount point of a mount that is about to be attached; gives its slot."""
        kind = Target.NO_LINK | Target.LINK if on_link else Target(0)
        if destination == "/proc":
            kind = Target.IN_PROC
            if fstype != "proc":
                self.b.init("prove_proc", slot, text="what goes to /proc is the root of a procfs")
        elif is_below(destination, "/proc"):
            kind, like = Target.IN_PROC | Target.FILE, NO_SLOT
        if fstype in ("proc", "sysfs") or destination == "/proc":
            kind |= Target.NO_LINK
        return self.target(root, destination, kind, like)

    def _change(self, wanted: Wanted) -> Prepared:
        """Change a mount that is there (mount(8), ``remount``): with ``bind`` the mount alone, else its filesystem as well."""
        _, where, destination, _, options = wanted

        def attach(root: int) -> int:
            slot = self.b.slot()
            in_root = k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS
            self.b.init("open", root, destination, k.O_PATH, 0, in_root, slot, text=destination)
            if options.remount and not options.bind and (options.superblock or options.data):
                if self._context == NO_SLOT:
                    self._context = self.b.slot()
                self.b.init("fspick", slot, "", k.FSPICK_EMPTY_PATH, self._context, text=f"the filesystem of {destination}")
                if key := too_long(options.data):
                    raise UnsupportedError(f"{where}.options: the value of {key} is too long to change a filesystem")
                for key, value in (*((word, None) for word in options.superblock), *options.data):
                    self._configure(self._context, key, value)
                text = f"change the filesystem of {destination}"
                self.b.init("fsconfig", self._context, k.FSCONFIG_CMD_RECONFIGURE, "", "", text=text)
            self._attributes(slot, options, destination)
            return slot

        return Prepared(destination, "remount", NO_SLOT, attach)


def _tree(source: str, destination: str, options: Options) -> tuple[int, str]:
    """The flags of open_tree(2) for a source, and what they mean."""
    recursive = options.recursive_bind
    flags = k.OPEN_TREE_CLONE | (k.AT_RECURSIVE if recursive else 0) | (0 if options.follow else k.AT_SYMLINK_NOFOLLOW)
    return flags, f"{source}{' with all below it' if recursive else ''}, for {destination}"
