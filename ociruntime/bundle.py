"""`Bundle`: a directory with config.json and a root filesystem (bundle.md), made by the user or mounted from an image."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

import attrs
from typing_extensions import TypeIs

from ._lazy import HtmlRepr
from .arguments import check_bool, check_choice, check_str, check_type, optional, parse_path
from .engine.networks import NETWORK_FILES, private_network
from .errors import BundleError, naming
from .files import absolute_path, needing_procfs, read_file
from .host import Host
from .interrupts import complete, uninterruptible
from .lifecycle.prune import umount
from .options import ConfigurationKeywords, RunOptions, check_keywords
from .overrides import Args, Overlays, Overrides
from .plan.cgroups import MANAGERS
from .plan.compile import LAYER, STRATEGY, Template, compile_create, is_usable
from .plan.namespaces import is_mapped, mappings_of, with_default_mappings
from .rootfs.bundles import bundle_layers, is_mounted, locked, used_images
from .rootfs.layers import (
    Layers,
    OwnRoot,
    Strategy,
    attach,
    make_points,
    may_mount,
    parse_strategy,
    share,
    uncovered,
    with_choice,
    with_upper,
)
from .rootfs.mount import check_image, is_same_file, make_volume, open_image
from .rootfs.uppers import NONE, Lower, ReadOnlyImage, file_states, find_upper, own_layer, parse_overlay
from .rootfs.users import CALLER, ContainerRoot, resolve
from .spec import RuntimeSpec
from .spec.base import is_below
from .spec.codec import MAX_DOCUMENT

if TYPE_CHECKING:
    from .image import Image
    from .plan import Plan
    from .plan.cgroups import Manager
    from .plan.namespaces import Port, PrivateNetwork
    from .rootfs.users import MissingPoint
    from .spec import Linux

__all__ = ["Bundle"]

StrPath = str | os.PathLike[str]
CHOSEN = "reference and platform choose an image when it is opened: pass them to Image.open()"
_MAX_VARIANTS = 8
"""How many variants of one bundle, with changed configurations, are kept."""


class Bundle(HtmlRepr):
    """A bundle directory. As a context manager, a bundle that `from_image` mounted is unmounted and removed at the end.

    Any other directory is left alone: whether a bundle was mounted is recorded by the runtime, not in the bundle. A forked child
    that leaves the block unmounts nothing.

    A pickled or copied bundle is its path. It includes the configuration if that is not the one in config.json: in a bundle of
    `with_args`, or one loaded with ``config=``.
    """

    def __init__(self, path: StrPath, *, config: bytes | None) -> None:
        self.path = Path(absolute_path(parse_path("path", path)))
        optional(check_type, "config", config, bytes, "the text of a configuration as bytes")
        self._config = config  # None: not yet encoded from the spec
        self._saved = False  # whether the config is the one in config.json
        self._spec: RuntimeSpec | None = None
        self._root_view: ContainerRoot | None = None
        self._template: tuple[tuple[object, ...], Template] | None = None
        self._variants: dict[object, Bundle] = {}
        self._layers: Layers | None = None
        """What the containers mount, of a bundle without a record."""
        self._mounts: dict[str, tuple[Lower, ...]] = {}
        """The lower layers of the record, by their origin, which keep the programs that serve them. All variants share it."""
        self._lowers: dict[object, tuple[str | ReadOnlyImage, ...]] = {}
        """The read-only layers of the overlay of the record, by its choice, which keep their mounts. All variants share it."""
        self._has_caller = False
        """Whether the containers have the caller as a user, in passwd and group."""
        self._network = ""
        """The kind of network or the path of its namespace, if a call chose it; otherwise the configuration alone says it."""
        self._ports: tuple[Port, ...] = ()
        """The published ports of a private network."""
        self._private: PrivateNetwork | None = None
        """The private network of the container that is being created."""
        self._owner = os.getpid()

    # ---- making a bundle ----

    @classmethod
    @naming(lambda _cls, path, **_: f"cannot load bundle {path}")
    def load(cls, path: StrPath, *, config: StrPath | None = None) -> Self:
        """Return the bundle in an existing directory. Its configuration is not checked before it is used.

        Args:
            config: a file to use instead of the directory's config.json.

        Raises:
            BundleError: the directory or the file does not exist.
        """
        path = Path(absolute_path(parse_path("path", path)))
        file = Path(parse_path("config", config)) if config is not None else path / "config.json"
        try:
            content = read_file(file, MAX_DOCUMENT, regular=config is None)
        except FileNotFoundError:
            raise BundleError(f"{path} is not a bundle: {file} does not exist") from None
        except NotADirectoryError:
            raise BundleError(
                f"{path} is not a bundle: it is not a directory; an image becomes one by Bundle.from_image()"
            ) from None
        bundle = cls(path, config=content)
        bundle._saved = config is None
        return bundle

    @classmethod
    @naming(lambda _cls, path, *_, **_options: f"cannot make bundle {path}")
    def from_dir(cls, path: StrPath, spec: RuntimeSpec | None = None) -> Self:
        """Make a bundle of a directory with a ``rootfs`` in it by writing its config.json.

        Args:
            spec: the config. Default: the default config for this caller (``RuntimeSpec.default(host=Host.probe())``).

        Raises:
            BundleError: rootfs does not exist, or config.json exists already.
        """

        path = Path(absolute_path(parse_path("path", path)))
        optional(check_type, "spec", spec, RuntimeSpec, "a RuntimeSpec")
        if not has_file(path, "rootfs/"):
            raise BundleError(f"{path} has no rootfs directory")
        if has_file(path, "config.json"):
            raise BundleError(f"{path} has a config.json already: use Bundle.load()")

        @uninterruptible(undo=lambda bundle: (bundle.path / "config.json").unlink())
        def make(kind: type[Self]) -> Self:
            (spec or RuntimeSpec.default(host=Host.probe())).save(path / "config.json")
            return kind.load(path)

        return make(cls)

    @classmethod
    @naming(lambda _cls, image, path, **_: f"cannot mount {getattr(image, 'path', image)} as bundle {path}")
    def from_image(
        cls,
        image: StrPath | Image,
        path: StrPath,
        *,
        writable: bool = True,
        overlay: Overlays | None = None,
        spec: RuntimeSpec | None = None,
        reference: str | None = None,
        platform: str | None = None,
        strategy: str | None = None,
    ) -> Self:
        """Mount an image of any kind as a bundle: ``config.json``, ``rootfs``, ``overlay`` and ``volumes`` in a new directory.

        For root, ``rootfs`` is an overlay over the layers of the image, which all containers of the bundle share. For a user, it is
        the image alone, mounted read-only by FUSE. It is an empty directory if fusermount3 is missing, if fuse-overlayfs is and
        the image has several layers, if a layer is an erofs, and if the image is extracted to a cache. Each container of a user
        has an upper layer of its own, which is removed with it, and all files of the image belong to the user.

        The directory has mode 0700, and the layers are mounted ``nosuid`` and ``nodev``. Each volume of the image is a directory in
        ``volumes``, with a copy of what the image has at its path.

        A call that is interrupted, as by KeyboardInterrupt, leaves nothing behind.
        If a signal handler raises after the call has returned and before a ``with`` block has begun, the bundle stays mounted, as
        it does without a block; `umount` removes it.

        Args:
            image: a SIF or OCI-SIF file, an OCI image layout or archive, a docker archive, a file with a squashfs, ext2, ext3, ext4
                or erofs, a directory, or an `Image`, which stays open. A directory is not changed.
            path: the bundle directory; it must not exist, or be empty.
            writable: mount a writable overlay over the image. Changes are in ``overlay/upper`` and are removed with the bundle.
                False makes the root filesystem read-only, for a user by the configuration.
            overlay: an upper layer instead, or layers, as for `fresh`. Each container of the bundle mounts them itself. A directory
                or file is kept, and one container at a time uses it.
            spec: the configuration; by default the default one with the settings of the image's configuration.
            reference: which image of a layout or archive that holds several: one of its names, or the digest of its manifest.
            platform: the platform of which to take the image, such as ``linux/arm64``. Default: this machine's, or the only one.
            strategy: ``"kernel"``, ``"fuse"`` or ``"extraction"``: how the layers become files. Default: the first of them that can
                be used.

        Raises:
            ImageError: the image is damaged, or not an image.
            UnsupportedError: it cannot be mounted yet, this machine does not run its programs, or this user can neither mount nor
                extract it.
            BundleError: the directory or the overlay cannot be used, or a volume cannot be copied.
            OSError: the kernel refuses a mount. In every case nothing is left behind.
        """
        path = Path(absolute_path(parse_path("path", path)))
        check_bool("writable", writable)
        choice = parse_overlay(overlay)
        if choice and not writable:
            raise ValueError("writable=False conflicts with overlay: pass overlay='none' alone")
        optional(check_type, "spec", spec, RuntimeSpec, "a RuntimeSpec")
        chosen = parse_strategy(strategy)

        @uninterruptible(undo=lambda result: _take_back(path, result[1]))
        def mount() -> tuple[Self, int | None]:
            with opened_image(image, reference=reference, platform=platform, overlay=choice) as opened:
                find_upper(choice, privileged=may_mount())
                is_new = _make(path)
                with _emptied(path, is_new), locked(path) as directory:
                    if os.listdir(directory.fd):
                        raise BundleError(f"{path} is not empty: choose another directory, or umount the bundle there")
                    mode = None if is_new else stat.S_IMODE(os.fstat(directory.fd).st_mode)
                    try:
                        directory.begin()
                        os.fchmod(directory.fd, 0o700)
                        layers = fill(Path(directory.real), opened, writable=writable, spec=spec, strategy=chosen, overlay=choice)
                        directory.commit(layers)
                        bundle = cls.load(path)
                        bundle._with_mounts(layers)
                    except BaseException:
                        directory.take_back(mode)
                        raise
            return bundle, mode

        return mount()[0]

    @classmethod
    def from_sif(
        cls,
        image: StrPath,
        path: StrPath,
        *,
        writable: bool = True,
        overlay: Overlays | None = None,
        spec: RuntimeSpec | None = None,
        strategy: str | None = None,
    ) -> Self:
        """Mount a SIF image as a bundle, as `from_image` does."""
        return cls.from_image(image, path, writable=writable, overlay=overlay, spec=spec, strategy=strategy)

    # ---- using a bundle ----

    @property
    def rootfs(self) -> Path:
        """The directory of the root filesystem. Raises SpecError: the configuration is not valid."""
        return Path(self._rootfs)

    @property
    def _rootfs(self) -> str:
        root = self.spec.root
        return os.path.normpath(os.path.join(self.path, root.path if root else "rootfs"))

    @property
    def config_bytes(self) -> bytes:
        """The bytes of config.json, as read or as `spec` is encoded."""
        if self._config is None:
            self._config = self.spec.to_json().encode()
        return self._config

    @property
    def spec(self) -> RuntimeSpec:
        """The configuration. Setting it writes config.json. Raises SpecError: it is not valid."""

        if self._spec is None:
            self._spec = RuntimeSpec.load(self.config_bytes)
        return self._spec

    @spec.setter
    def spec(self, spec: RuntimeSpec) -> None:
        spec.save(self.path / "config.json")
        self._config = (self.path / "config.json").read_bytes()
        self._spec, self._saved, self._root_view = spec, True, None
        self._variants.clear()

    def with_args(self, args: Sequence[str]) -> Bundle:
        """Return this bundle with another command line. config.json is not changed."""
        return self.with_overrides(Overrides(args=args))

    def with_process(self, **changes: Any) -> Bundle:
        """Return this bundle with members of its process changed. config.json is not changed."""
        return self._memoized(("process", *changes.items()), lambda: self._with_process(**changes))

    def _with_process(self, **changes: Any) -> Bundle:
        if self.spec.process is None:
            raise BundleError(f"{self.path}: config.json has no process to change")
        return self._with_spec(self.spec.evolve(process=self.spec.process.evolve(**changes)))

    @property
    def _image_layers(self) -> tuple[str, ...]:
        """Directories of the host with the files of the root filesystem, without what containers of a user write to it.

        Raises:
            SpecError: the configuration is not valid.
        """
        layers = self._find_layers()
        return (self._rootfs,) if layers is None else layers.paths

    def fresh(self, *, overlay: Overlays | None = None) -> Bundle:
        """Return a handle to this bundle of which each container has an upper layer of its own.

        What a container writes to its root filesystem is seen by no other container, and is removed with it. The containers start
        from the files of the image; changes in the overlay of a bundle that `from_image` mounted for root are not among them. In a
        bundle that was not mounted they start from its root filesystem, which must not change while they run.

        Args:
            overlay: where the writes go. Default: a directory on disk, in ``TMPDIR`` or in the mounted bundle. ``"tmpfs"`` or
                ``"tmpfs:size=64M"``: memory, which counts for the memory limit of the container; by default the kernel limits it
                to half of the memory. ``"none"``: the root filesystem is read-only. A directory, whose content is kept: ``upper``
                and ``work`` are made in it. A file with an ext2, ext3 or ext4 filesystem, or a SIF file that has one as
                overlay: its content is kept, and only root can use it. A directory or file has one container at a time.

                With ``:ro`` behind it, such a path is a read-only layer: the container sees its content, and writes go to the
                default. So is any directory, or a file with a squashfs, also for users. A list has any number of read-only
                layers, each above those before it, and at most one for the writes: ``["a.sqfs:ro", "b.img:ro", "kept"]``.

        Raises:
            ValueError, BundleError: the overlay does not exist, or is not one.
            ImageError: the file has no ext filesystem.
            UnsupportedError: this user cannot use it.
        """
        choice = parse_overlay(overlay)
        return self._memoized(("overlay", choice, file_states(choice)), lambda: self._fresh(choice))

    def _fresh(self, choice: str) -> Bundle:
        layers = with_upper(self._private_layers(), find_upper(choice, privileged=may_mount()))
        spec = self.spec
        if own_layer(choice) == NONE and spec.root is not None:
            spec = spec.evolve(root=spec.root.evolve(readonly=True))
        changed = self._with_spec(spec)
        changed._layers = layers
        if spec is self.spec:
            changed._config = self._config
        return changed

    def _private_layers(self) -> Layers:
        """Return the layers below the upper layers of `fresh`. Raises BundleError, SpecError, OSError."""
        layers = self._layers or self._with_mounts(bundle_layers(self._recorded_path(self._rootfs)))
        if layers is None:
            return Layers((self._rootfs,), os.path.realpath(tempfile.gettempdir()))
        return uncovered(layers) if layers.shared else layers

    def _find_layers(self) -> Layers | None:
        """Return what each container mounts as its root filesystem; None if all share the directory."""
        if self._layers is not None:
            return None if self._layers.shared else self._layers
        privileged, rootfs = may_mount(), self._rootfs
        layers = self._recorded_layers(rootfs, privileged)
        if layers is None or layers.shared:
            return self._layers_for_points(rootfs, privileged)
        return layers

    def _recorded_path(self, rootfs: str) -> str:
        """Return the directory whose record has the layers: that of the root filesystem: config.json may be a copy elsewhere."""
        return os.path.dirname(rootfs) if rootfs.endswith("/rootfs") else str(self.path)

    def _recorded_layers(self, rootfs: str, privileged: bool) -> Layers | None:
        place = self._recorded_path(rootfs)
        if privileged and not os.path.lexists(f"{place}/overlay"):  # as in every mounted bundle
            return None
        layers = self._with_mounts(bundle_layers(place))
        if layers is not None and layers.upper.choice:
            upper = find_upper(layers.upper.choice, privileged=privileged)
            key = upper.choice, file_states(upper.choice)
            lowers = self._lowers.setdefault(key, upper.lowers)  # with the mounts that this process has already
            layers = with_upper(layers, upper._replace(lowers=lowers))
        return layers

    def _with_mounts(self, layers: Layers | None) -> Layers | None:
        """Return layers with the mounts that this process has of them already."""
        if layers is None:
            return None
        if layers.origin not in self._mounts:
            self._mounts.clear()
        return layers._replace(lowers=self._mounts.setdefault(layers.origin, layers.lowers))

    def _layers_for_points(self, rootfs: str, privileged: bool) -> Layers | None:
        """Return an upper layer for each container, if a mount point is missing that cannot be made in the root filesystem."""
        try:
            if (privileged and os.access(rootfs, os.W_OK)) or not os.path.isdir(rootfs):
                return None
            missing = self._missing_points(ContainerRoot(rootfs, mounts=self.spec.mounts or (), bundle=self.path))
        except (OSError, ValueError):
            return None  # a path that cannot exist: compiling or executing the plan says more
        return Layers((rootfs,), os.path.realpath(tempfile.gettempdir())) if missing else None

    def _missing_points(self, root: ContainerRoot) -> list[MissingPoint]:
        """Return the mount points that a container cannot make in the layers of its root filesystem."""
        linux = with_default_mappings(self.spec, Host.probe()).linux
        files = (("/etc/passwd", "/etc/group") if self._has_caller else ()) + self._network_files
        directories = (self.spec.process.cwd,) if self.spec.process is not None else ()
        return [point for point in root.missing_points(files, directories) if not _may_make(point.parent, linux)]

    @property
    def _network_files(self) -> tuple[str, ...]:
        """The files about the network that the container gets of the runtime: those that the configuration does not mount."""
        if not self._network:
            return ()
        mounts = self.spec.mounts or ()
        return tuple(
            path
            for path in NETWORK_FILES
            if not any(mount.destination != "/" and is_below(path, mount.destination) for mount in mounts)
        )

    def _make_points(self, layers: Layers, layer: str) -> None:
        """Make the mount points that the container could not make, in a new layer of it. Raises OSError."""
        if may_mount():
            return
        try:
            missing = self._missing_points(self._container_root())
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            return  # links of the image are a loop: executing the plan says for which of the config
        make_points(layers, layer, missing)

    @classmethod
    def _of_layers(cls, path: Path, spec: RuntimeSpec, layers: Layers) -> Self:
        """Return a bundle without a directory, of which each container mounts layers.

        Args:
            path: the image, which messages name.
        """
        bundle = cls(path, config=None)
        bundle._spec, bundle._layers = spec, layers
        return bundle

    def _with_layers(self, layers: Layers | None) -> Self:
        """Return this bundle, of which each container mounts layers, although it has no record. For a new ephemeral bundle."""
        self._layers = layers if layers is None else layers._replace(bundle="")
        return self

    def _with_own_layers(self, layers: Layers) -> Bundle:
        """Return a bundle with the same configuration, of which each container mounts these layers."""
        return Bundle._of_layers(self.path, self.spec, layers)

    @naming(lambda self, *_, **_options: f"cannot change the configuration of bundle {self.path}")
    def with_overrides(
        self, overrides: Overrides | None = None, *, args: Args = (), **changes: Unpack[ConfigurationKeywords]
    ) -> Bundle:
        """Return this bundle with changes of its configuration, for `Container.create`, for example. config.json is not changed.

        Args:
            overrides: all changes as one value, instead of the other arguments.
            args, changes: the keywords of `ociruntime.run` about the configuration: ``env``, ``cwd``, ``user``, ``preset``,
                ``mounts``, ``memory``, ``cpus``, ``pids``, ``network``, ``ports``, ``devices``, ``gpus``,
                ``read_only`` and ``hostname``. A preset, and ``user="caller"``, are those of the caller of this method.

        Raises:
            TypeError, ValueError, BundleError: a change cannot be made.
            SpecError: the configuration is not valid.
        """
        if overrides is None:
            check_keywords("with_overrides", changes, ConfigurationKeywords)
            overrides = RunOptions(args=args, **changes).overrides
        elif args or changes:
            raise ValueError("overrides conflicts with the other arguments: it has all changes")
        check_type("overrides", overrides, Overrides, "an Overrides")
        if isinstance(overrides.user, str | int) or overrides.devices or overrides.gpus:
            # Resolved by files of the root filesystem or of the host, or by the caller, which may change.
            return self._with_overrides(overrides)
        with needing_procfs():
            directory = os.readlink("/proc/self/cwd")
        return self._memoized((overrides.key(), directory), lambda: self._with_overrides(overrides))

    def _with_overrides(self, overrides: Overrides) -> Bundle:
        spec = overrides.apply(self.spec, lambda spec: self._with_spec(spec)._container_root())
        if spec is self.spec and overrides.network is None:
            return self
        changed = self._with_spec(spec)
        if overrides.user is not None:
            changed._has_caller = overrides.user == CALLER
        if overrides.network is not None:
            changed._network, changed._ports = overrides.network, overrides.ports
        return changed

    def _container_root(self) -> ContainerRoot:
        """Return the files that a container of the bundle will have."""
        if self._root_view is None:
            self._root_view = ContainerRoot(*self._image_layers, mounts=self.spec.mounts or (), bundle=self.path)
        return self._root_view

    def _memoized(self, key: object, make: Callable[[], Bundle]) -> Bundle:
        """Return the bundle that was made for an equal change, or make it.

        It keeps its compiled plan, so that a caller that runs many containers compiles once.
        """
        try:
            found = self._variants.get(key)
        except TypeError:
            return make()  # not hashable
        if found is None:
            found = make()
            self._variants[key] = found
            for oldest in list(self._variants)[:-_MAX_VARIANTS]:
                self._variants.pop(oldest, None)
        return found

    def _with_spec(self, spec: RuntimeSpec) -> Bundle:
        changed = Bundle(self.path, config=None)
        changed._spec, changed._layers, changed._has_caller, changed._mounts = spec, self._layers, self._has_caller, self._mounts
        changed._lowers = self._lowers
        changed._network, changed._ports, changed._private = self._network, self._ports, self._private
        return changed

    def plan(
        self,
        *,
        container_id: str = "ID",
        host: Host | None = None,
        gate: bool = True,
        cgroup_manager: Manager = "cgroupfs",
        die_with_parent: bool | None = False,
        empty_process: bool = False,
    ) -> Plan:
        """Return the plan of a container of this bundle: every kernel operation. Nothing is executed.

        Raises:
            SpecError: the configuration is not valid.
            UnsupportedError: this host cannot carry it out.
        """

        check_str("container_id", container_id)
        optional(check_type, "host", host, Host, "a Host")
        check_bool("gate", gate)
        optional(check_bool, "die_with_parent", die_with_parent)
        check_bool("empty_process", empty_process)
        check_choice("cgroup_manager", cgroup_manager, MANAGERS)
        found = self._find_layers()
        plan = self._plan(
            container_id=container_id,
            host=host or Host.probe(),
            gate=gate,
            cgroup_manager=cgroup_manager,
            die_with_parent=die_with_parent,
            empty_process=empty_process,
            own=None if found is None else OwnRoot(found, container_id),
        )
        layers = self._layers or bundle_layers(self._recorded_path(self._rootfs))
        if layers is not None and layers.shared and layers.note:
            plan = attrs.evolve(plan, notes=(*plan.notes, f"{STRATEGY} {layers.note}"))
        return plan

    def _plan(
        self,
        *,
        container_id: str,
        host: Host,
        gate: bool,
        cgroup_manager: Manager,
        die_with_parent: bool | None,
        empty_process: bool,
        own: OwnRoot | None,
        uncovered: Sequence[str] | None = None,
    ) -> Plan:
        """Return the plan of a container, as `plan` does.

        Args:
            own: the layers of its root filesystem, if it has an upper layer of its own.
            uncovered: as for `compile_create`.
        """
        network = self._private
        if network is None and self._network == "private":
            network = private_network(self._ports)
        if not is_usable(self.spec, cgroup_manager) or uncovered is not None:
            return compile_create(
                self.spec,
                host,
                bundle=str(self.path),
                container_id=container_id,
                gate=gate,
                manager=cgroup_manager,
                die_with_parent=die_with_parent,
                empty=empty_process,
                overlay=None if own is None else own.overlay(),
                network=network,
                uncovered=uncovered,
            )
        overlay = None if own is None else own._replace(name=LAYER).overlay()
        key = (self.spec, host, gate, cgroup_manager, die_with_parent, empty_process, overlay, network)
        if self._template is None or any(a is not b and a != b for a, b in zip(self._template[0], key, strict=True)):
            template = Template(
                self.spec,
                host,
                bundle=str(self.path),
                gate=gate,
                manager=cgroup_manager,
                die_with_parent=die_with_parent,
                empty=empty_process,
                overlay=overlay,
                network=network,
            )
            self._template = key, template
        return self._template[1].plan(container_id, "" if own is None else own.name)

    @naming(lambda self, **_: f"cannot unmount bundle {self.path}")
    def umount(self, *, force: bool = False, state_root: StrPath | None = None) -> None:
        """Undo `from_image`: unmount the root filesystem and remove the directory, with all changes in its overlay.

        Files that `from_image` did not make stay, and so does the directory if it has any. Nothing is removed before everything is
        unmounted, so a failed unmount has removed nothing.

        Args:
            force: kill the containers that use the bundle, and unmount it even if other processes use it. The containers stay, as
                stopped ones. Other processes keep their open files, but what they write is lost.
            state_root: the state directory of the containers to look for; by default ``/run/ociruntime`` for root. Containers
                elsewhere are noticed as processes.

        Raises:
            BundleError: this is not a mounted image; or it is in use, without ``force``. The message names the users.
        """

        check_bool("force", force)
        self._variants.clear()  # those of `fresh` may keep the image mounted
        self._mounts.clear()
        self._lowers.clear()
        umount(self.path, force=force, state_root=state_root)

    def __reduce__(self) -> tuple[Callable[..., Bundle], tuple[object, ...]]:
        if self._saved and self._layers is None:
            return type(self).load, (self.path,)
        choice = None if self._layers is None else self._layers.upper.choice
        return type(self)._variant, (self.path, self.config_bytes, choice, self._has_caller, self._network, self._ports)

    @classmethod
    def _variant(
        cls, path: Path, config: bytes, choice: str | None, has_caller: bool, network: str, ports: tuple[Port, ...]
    ) -> Bundle:
        """Return a bundle whose configuration may not be the one in config.json.

        Args:
            choice: the upper layer of `fresh`; None for a bundle of another kind.
        """
        bundle = cls(path, config=config)
        bundle._has_caller, bundle._network, bundle._ports = has_caller, network, ports
        return bundle if choice is None else bundle._fresh(choice)

    def __enter__(self) -> Self:
        try:
            self._owner = os.getpid()
        except BaseException:  # an interruption: the block does not begin, so it has no end
            complete(self._umount_own)
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        complete(self._umount_own)

    def _umount_own(self) -> None:
        if os.getpid() == self._owner and is_mounted(self.path):
            self.umount()

    def __repr__(self) -> str:
        return f"<Bundle {str(self.path)!r}>"


def _may_make(directory: str, linux: Linux | None) -> bool:
    """Return whether a container can make files in a directory of the host, as root of its user namespace if it has one."""
    if os.statvfs(directory).f_flag & os.ST_RDONLY:
        return False
    if may_mount() or os.access(directory, os.W_OK | os.X_OK):
        return True
    info = os.stat(directory)
    return is_mapped(mappings_of(linux, "uid"), info.st_uid) and is_mapped(mappings_of(linux, "gid"), info.st_gid)


def with_own_writes(bundle: Bundle) -> Bundle:
    """Return a bundle whose containers see what those of this one see, and share with them what an overlay of the bundle keeps.

    Other writes are removed with the container that makes them. Raises as `Bundle.fresh`.
    """
    if bundle._find_layers() is not None:
        return bundle  # each container has an upper layer of its own, or the overlay that was chosen
    return bundle._with_own_layers(bundle._private_layers()._replace(lowers=(str(bundle.rootfs),)))


def has_file(bundle: Path, name: str) -> bool:
    """Return whether a directory has a file of a bundle. A name that ends with a slash is that of a directory.

    Raises:
        BundleError: this user may not search the directory, or its path is too long, for example.
    """
    try:
        os.stat(f"{bundle}/{name}")
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise BundleError(f"cannot use {bundle}: {os.strerror(error.errno or errno.EIO).lower()}") from error
    return True


def _make(path: Path) -> bool:
    """Make a directory, and return whether it is new. Raises BundleError."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return False
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"cannot make the bundle {path}: {(error.strerror or '').lower()}") from error
    return True


@contextmanager
def _emptied(path: Path, is_new: bool) -> Iterator[None]:
    """Remove a new directory that is still empty when an exception leaves the block."""
    try:
        yield
    except BaseException:
        if is_new:
            with suppress(OSError):  # it has been removed, or is not empty
                path.rmdir()
        raise


def _take_back(path: Path, mode: int | None) -> None:
    """Undo `Bundle.from_image`. See `BundleDirectory.take_back`."""

    with locked(path) as directory:
        directory.take_back(mode)


def is_image(value: object) -> TypeIs[Image]:
    """Return whether a value is an open image. The models of images, which take time to import, are not imported for a path."""
    if isinstance(value, str | os.PathLike | Bundle):
        return False
    from .image import Image

    return isinstance(value, Image)


@contextmanager
def opened_image(
    image: StrPath | Image, *, reference: str | None = None, platform: str | None = None, overlay: str = ""
) -> Iterator[Image]:
    """Open an image for the block, and check that it can be used here. One that is open already stays open.

    Raises:
        ValueError: the image is closed, or reference and platform are given for an open one. And as `Image.status`, `open_image`.
    """
    if not is_image(image):
        with open_image(parse_path("image", image), reference=reference, platform=platform, overlay=overlay) as opened:
            yield opened
        return
    if reference is not None or platform is not None:
        raise ValueError(CHOSEN)
    image.status()
    check_image(image, own_overlay=is_same_file(image.path, overlay))
    yield image


def fill(
    path: Path,
    image: Image,
    *,
    writable: bool = True,
    spec: RuntimeSpec | None = None,
    strategy: Strategy | None = None,
    overlay: str = "",
    private: bool = False,
    volumes: bool = True,
) -> Layers:
    """Make the content of a bundle in an empty directory. What is there after an error is for the caller to remove.

    Args:
        overlay: the upper layer that each container mounts; an empty string for the usual one.
        private: whether each container mounts the image, also where this user may mount it on the host.
        volumes: as for `spec_of`.
    """
    (path / "rootfs").mkdir()
    (path / "volumes").mkdir(mode=0o700)
    layers = attach(image, path, used_images(), strategy, private=private)
    if overlay:
        layers = with_choice(layers, overlay)
    if may_mount() and not (private or overlay):
        layers = share(layers, path, writable=writable)
    else:
        (path / "overlay").mkdir(mode=0o700)
    if spec is None:
        root = ContainerRoot(*((path / "rootfs",) if layers.shared else layers.paths))
        spec = spec_of(image, path, root, volumes=volumes)
    if (own_layer(overlay) == NONE or not (layers.shared or writable)) and spec.root is not None:
        spec = spec.evolve(root=spec.root.evolve(readonly=True))
    spec.save(path / "config.json")
    return layers


def spec_of(image: Image, path: Path, root: ContainerRoot, *, volumes: bool = True) -> RuntimeSpec:
    """Return the default configuration with the settings of the image.

    Args:
        volumes: whether its volumes become directories of the bundle. Otherwise they are directories of the root filesystem.
    """

    config = image.config_json
    if image.config() is None or config is None:  # config() raises ImageError for an invalid one
        return RuntimeSpec.default(host=Host.probe())
    numbers = itertools.count()

    def volume(destination: str) -> str:
        source = path / "volumes" / str(next(numbers))
        make_volume(root, destination, source, privileged=may_mount())
        return str(source)

    user = partial(resolve, root=root)
    return RuntimeSpec.from_image_config(config, user=user, volumes=volume if volumes else None, host=Host.probe())
