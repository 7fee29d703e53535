"""`Bundle`: a directory with config.json and a root filesystem (bundle.md), from a SIF image or as it is."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from .errors import BundleError
from .host import Host
from .interrupts import DeferredSignals, complete
from .lifecycle.umount import umount
from .options import check_choice
from .overrides import Overrides
from .plan.cgroups import MANAGERS
from .plan.compile import compile_create
from .plan.template import Template, is_usable
from .rootfs.bundles import is_mounted, locked
from .rootfs.mount import mount_image
from .rootfs.users import resolve
from .spec import RuntimeSpec

if TYPE_CHECKING:
    from .image import SifImage
    from .plan import Plan
    from .plan.cgroups import Manager

__all__ = ["Bundle"]

StrPath = str | os.PathLike[str]
_REMEMBERED = 8
"""How many changed configs of one bundle are kept."""


class Bundle:
    """A bundle directory. As a context manager one that was mounted by `from_sif` is unmounted and removed at the end.

    Whether it was mounted is recorded by the runtime, not in the bundle; any other directory is left alone, and so is the mount
    when a forked child leaves the block. Pickled or copied it is the path, and the config where that is not the one in
    config.json: a bundle of `with_args`, or one loaded with ``config=``.
    """

    def __init__(self, path: StrPath, *, config: bytes | None) -> None:
        self.path = Path(os.path.abspath(path))
        self._config = config  # None: not made yet of a spec
        self._saved = False  # whether the config is the one in config.json
        self._spec: RuntimeSpec | None = None
        self._template: tuple[tuple[object, ...], Template] | None = None
        self._changed: dict[object, Bundle] = {}
        self._owner = os.getpid()

    # ---- making ----

    @classmethod
    def load(cls, path: StrPath, *, config: StrPath | None = None) -> Self:
        """An existing bundle directory, with another file in the place of its config.json when ``config`` names one.

        Raises:
            BundleError: config.json does not exist.
            SpecError: it is a bad one; only when it is looked at.
        """
        path = Path(os.path.abspath(path))
        file = Path(config) if config is not None else path / "config.json"
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            raise BundleError(f"{path} is not a bundle: {file} does not exist") from None
        except NotADirectoryError:
            raise BundleError(f"{path} is not a bundle: it is not a directory") from None
        bundle = cls(path, config=content)
        bundle._saved = config is None
        return bundle

    @classmethod
    def from_dir(cls, path: StrPath, spec: RuntimeSpec | None = None) -> Self:
        """Make a bundle of a directory with a ``rootfs`` in it by writing its config.json, the default config by default.

        Raises:
            BundleError: rootfs does not exist, or config.json exists already.
        """

        path = Path(os.path.abspath(path))
        if not (path / "rootfs").is_dir():
            raise BundleError(f"{path} has no rootfs directory")
        if (path / "config.json").exists():
            raise BundleError(f"{path} has a config.json already: use Bundle.load()")
        with DeferredSignals() as signals:
            (spec or RuntimeSpec.default()).save(path / "config.json")
            bundle = cls.load(path)
            signals.undo = (path / "config.json").unlink
        return bundle

    @classmethod
    def from_sif(cls, image: StrPath, path: StrPath, *, writable: bool = True, spec: RuntimeSpec | None = None) -> Self:
        """Mount a SIF image as a bundle: ``config.json``, ``rootfs``, ``overlay`` and ``volumes`` in a new directory of mode 0700.

        The layers are mounted ``nosuid`` and ``nodev``. What interrupts the call, KeyboardInterrupt for example, leaves nothing
        behind.

        Args:
            image: the SIF file.
            path: the bundle directory; it must not exist, or be empty.
            writable: put an overlay over the image's squashfs; what is written lies in ``overlay/upper`` and goes with the bundle.
            spec: the config; by default the default config with what the image's ``oci-config.json`` says.

        Raises:
            SifError: the file is not a valid SIF image.
            BundleError: the directory cannot be used.
            OSError: the kernel refuses a mount. In every case nothing is left behind.
        """
        from .image.sif import SifImage

        path = Path(os.path.abspath(path))
        with DeferredSignals() as signals, SifImage.open(image) as sif:
            made = _make(path)
            with locked(path) as directory:
                if os.listdir(directory.fd):
                    raise BundleError(f"{path} is not empty: choose another directory, or umount the bundle there")
                mode = None if made else stat.S_IMODE(os.fstat(directory.fd).st_mode)
                try:
                    directory.begin()
                    os.fchmod(directory.fd, 0o700)
                    fill(Path(directory.real), sif, writable=writable, spec=spec)
                    directory.commit()
                    bundle = cls.load(path)
                except BaseException:
                    directory.take_back(mode)
                    raise
            signals.undo = lambda: _take_back(path, mode)
        return bundle

    # ---- using ----

    @property
    def rootfs(self) -> Path:
        """The root filesystem's directory. Raises SpecError for a bad config."""
        root = self.spec.root
        return Path(os.path.normpath(self.path / (root.path if root else "rootfs")))

    @property
    def config_bytes(self) -> bytes:
        """config.json as it was read, or as it would be written."""
        if self._config is None:
            self._config = self.spec.to_json().encode()
        return self._config

    @property
    def spec(self) -> RuntimeSpec:
        """The config. Setting it writes config.json. Raises SpecError."""

        if self._spec is None:
            self._spec = RuntimeSpec.load(self.config_bytes)
        return self._spec

    @spec.setter
    def spec(self, spec: RuntimeSpec) -> None:
        spec.save(self.path / "config.json")
        self._config = (self.path / "config.json").read_bytes()
        self._spec, self._saved = spec, True
        self._changed.clear()

    def with_args(self, args: Sequence[str]) -> Bundle:
        """This bundle with another program; config.json stays as it is."""

        return self.with_overrides(Overrides(args=args))

    def with_process(self, **changes: Any) -> Bundle:
        """This bundle with members of its process changed; config.json stays as it is."""
        return self._memoized(("process", *changes.items()), lambda: self._with_process(**changes))

    def _with_process(self, **changes: Any) -> Bundle:
        if self.spec.process is None:
            raise BundleError(f"{self.path}: the config has no process to change")
        return self._with_spec(self.spec.evolve(process=self.spec.process.evolve(**changes)))

    def with_overrides(self, overrides: Overrides) -> Bundle:
        """This bundle with a config that is changed for one container; config.json stays as it is. Raises as `Overrides.apply`."""
        if isinstance(overrides.user, str | int):
            return self._with_overrides(overrides)  # by the files of the root filesystem, which may change
        return self._memoized((overrides.key(), os.getcwd()), lambda: self._with_overrides(overrides))

    def _with_overrides(self, overrides: Overrides) -> Bundle:
        changed = overrides.apply(self.spec, self.rootfs)
        return self if changed is self.spec else self._with_spec(changed)

    def _memoized(self, key: object, make: Callable[[], Bundle]) -> Bundle:
        """The same bundle for the same change, with all that was found out about it: who runs many containers pays once."""
        try:
            found = self._changed.get(key)
        except TypeError:
            return make()  # not hashable
        if found is None:
            found = make()
            while len(self._changed) >= _REMEMBERED:
                self._changed.pop(next(iter(self._changed)), None)
            self._changed[key] = found
        return found

    def _with_spec(self, spec: RuntimeSpec) -> Bundle:
        changed = Bundle(self.path, config=None)
        changed._spec = spec
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
        """Every kernel operation that a container of this bundle takes, before anything runs.

        Raises:
            SpecError, UnsupportedError: the config cannot be carried out (on this host).
        """

        check_choice("cgroup_manager", cgroup_manager, MANAGERS)
        where = host or Host.probe()
        if empty_process or not is_usable(self.spec, cgroup_manager):
            return compile_create(
                self.spec,
                where,
                bundle=str(self.path),
                container_id=container_id,
                gate=gate,
                manager=cgroup_manager,
                die_with_parent=die_with_parent,
                empty=empty_process,
            )
        key = (self.spec, where, gate, cgroup_manager, die_with_parent)
        if self._template is None or any(a is not b and a != b for a, b in zip(self._template[0], key, strict=True)):
            template = Template(
                self.spec, where, bundle=str(self.path), gate=gate, manager=cgroup_manager, die_with_parent=die_with_parent
            )
            self._template = key, template
        return self._template[1].plan(container_id)

    def umount(self, *, force: bool = False, state_root: StrPath | None = None) -> None:
        """Undo `from_sif`: unmount the root filesystem and remove the directory, with all that was written there.

        Files that `from_sif` did not make keep the directory. First everything is unmounted, then removed: when the unmount
        fails, nothing has been removed.

        Args:
            force: kill the containers that use the bundle, which stay as stopped ones, and unmount it under any other process that
                does: such a process keeps the files that it has open, but what it writes is lost.
            state_root: the state directory of the containers to look for; by default ``/run/ociruntime`` for root. Containers
                elsewhere are noticed as processes.

        Raises:
            BundleError: this is not a mounted SIF image, or it is in use, and ``force`` was not given; the message names by whom.
        """

        umount(self.path, force=force, state_root=state_root)

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[Path] | tuple[Path, bytes]]:
        if self._saved:
            return type(self).load, (self.path,)
        return type(self)._changed_of, (self.path, self.config_bytes)

    @classmethod
    def _changed_of(cls, path: Path, config: bytes) -> Self:
        """A bundle whose config is not the one in config.json."""
        return cls(path, config=config)

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


def _make(path: Path) -> bool:
    """Make a directory; whether it was not there. Raises BundleError."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return False
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"{path} cannot be made: {error.strerror}") from error
    return True


def _take_back(path: Path, mode: int | None) -> None:
    """Undo `Bundle.from_sif`. See `BundleDirectory.take_back`."""

    with locked(path) as directory:
        directory.take_back(mode)


def fill(path: Path, sif: SifImage, *, writable: bool = True, spec: RuntimeSpec | None = None) -> None:
    """Make the content of a bundle in an empty directory. What is there after an error is for the caller to remove."""

    rootfs = path / "rootfs"
    rootfs.mkdir()
    overlay = _overlay(path) if writable else None
    (path / "volumes").mkdir(mode=0o700)
    mount_image(sif, rootfs, overlay)
    (spec or _spec_of(sif, path)).save(path / "config.json")


def _overlay(path: Path) -> Path:
    overlay = path / "overlay"
    overlay.mkdir(mode=0o700)
    (overlay / "upper").mkdir(mode=0o755)
    (overlay / "work").mkdir(mode=0o700)
    return overlay


def _spec_of(sif: SifImage, path: Path) -> RuntimeSpec:
    """Return the default configuration with that of the image, whose volumes become directories of the bundle."""

    config = sif.oci_config_json
    if sif.oci_config() is None or config is None:  # oci_config() raises for a wrong one, and names the object of the file
        return RuntimeSpec.default()
    numbers = itertools.count()

    def make_volume(destination: str) -> str:
        source = path / "volumes" / str(next(numbers))
        source.mkdir(mode=0o755)
        return str(source)

    return RuntimeSpec.from_image_config(config, user=lambda name: resolve(name, path / "rootfs"), volumes=make_volume)
