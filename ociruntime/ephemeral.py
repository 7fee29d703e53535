"""`run`: a program in a container of its own, from launch to clean-up in one call."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, TypeAlias, Unpack, overload

import attrs

from .arguments import Duration, parse_path
from .bundle import CHOSEN, Bundle, fill, has_file, is_image, opened_image, spec_of
from .engine import cgroup
from .engine.processes import KILL_TIMEOUT, ended_within
from .errors import BundleError, ContainerNotFound, LaunchTimeout, naming, traced
from .files import absolute_path
from .host import Host
from .interrupts import DeferredSignals, time_limit
from .lifecycle.create import EphemeralBundle, create
from .lifecycle.delete import delete, discard
from .lifecycle.prune import CallerLock, clear_orphans
from .lifecycle.status import out_of_memory
from .options import CreateOptions, OutputFunction, RunKeywords, RunOptions, SandboxOptions, check_keywords
from .overrides import Args, Env, Mounts, Network, Overlays, Overrides, Ports, StrPath, UserLike, with_default_limits
from .presets import HostFiles, Preset
from .process import Deadline, LaunchedProcess, Result, finish
from .rootfs.layers import Layers, Strategy, may_mount, shared_mounts
from .rootfs.mount import SEPARATOR, ephemeral_name, identity, is_same_file
from .rootfs.uppers import find_upper
from .rootfs.users import ContainerRoot
from .spec import Root
from .stats import Recorder
from .store import StateStore
from .streams import Stdio, Streams

if TYPE_CHECKING:
    from .image import Image
    from .options import Misspelt
    from .plan.cgroups import Manager

__all__ = ["close_images", "run"]

ImageLike: TypeAlias = "Image | Bundle | StrPath"
"""An open image, a bundle, or the path of an image, of a bundle or of a directory with a root filesystem."""


@overload
def run(image: ImageLike, args: Args = ..., *, text: Literal[True], **options: Unpack[RunKeywords]) -> Result[str]: ...
@overload
def run(
    image: ImageLike, args: Args = ..., *, encoding: str, errors: str | None = ..., **options: Unpack[RunKeywords]
) -> Result[str]: ...
@overload
def run(image: ImageLike, args: Args = ..., *, errors: str, **options: Unpack[RunKeywords]) -> Result[str]: ...
@overload
def run(
    image: ImageLike, args: Args = ..., *, text: Literal[False] | None = ..., **options: Unpack[RunKeywords]
) -> Result[bytes]: ...
@overload
def run(
    image: ImageLike, args: Args = ..., *, input: bytes | str | None = ..., capture_output: bool = ...,
    max_output: int | str | None = ..., on_stdout: OutputFunction | None = ..., on_stderr: OutputFunction | None = ...,
    stdin: Stdio = ..., stdout: Stdio = ..., stderr: Stdio = ..., text: bool | None = ..., encoding: str | None = ...,
    errors: str | None = ..., timeout: Duration | None = ..., check: bool = ..., env: Env | None = ..., cwd: StrPath | None = ...,
    user: UserLike | None = ..., preset: Preset | str | None = ..., mounts: Mounts | None = ..., memory: int | str | None = ...,
    cpus: float | None = ..., pids: int | None = ..., network: Network | None = ..., devices: Iterable[StrPath] | None = ...,
    gpus: str | int | None = ..., ports: Ports | None = ..., read_only: bool | None = ..., overlay: Overlays | None = ...,
    hostname: str | None = ..., terminal: bool = ..., container_id: str | None = ..., state_root: StrPath | None = ...,
    die_with_parent: bool | None = ..., cgroup_manager: Manager = ..., reference: str | None = ..., platform: str | None = ...,
    strategy: str | None = ..., profile: bool = ..., **unknown: Misspelt,
) -> Result[Any]: ...  # fmt: skip


def run(
    image: ImageLike,
    args: Args = (),
    *,
    input: bytes | str | None = None,
    capture_output: bool = False,
    max_output: int | str | None = None,
    on_stdout: OutputFunction | None = None,
    on_stderr: OutputFunction | None = None,
    stdin: Stdio = None,
    stdout: Stdio = None,
    stderr: Stdio = None,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    timeout: Duration | None = None,
    check: bool = False,
    env: Env | None = None,
    cwd: StrPath | None = None,
    user: UserLike | None = None,
    preset: Preset | str | None = None,
    mounts: Mounts | None = None,
    memory: int | str | None = None,
    cpus: float | None = None,
    pids: int | None = None,
    network: Network | None = None,
    devices: Iterable[StrPath] | None = None,
    gpus: str | int | None = None,
    ports: Ports | None = None,
    read_only: bool | None = None,
    overlay: Overlays | None = None,
    hostname: str | None = None,
    terminal: bool = False,
    container_id: str | None = None,
    state_root: StrPath | None = None,
    die_with_parent: bool | None = None,
    cgroup_manager: Manager = "cgroupfs",
    reference: str | None = None,
    platform: str | None = None,
    strategy: str | None = None,
    profile: bool = False,
    **unknown: Misspelt,
) -> Result[Any]:
    """Run a program in a new container and wait for it, as `subprocess.run` does. Nothing of the container is left.

    Args:
        image: an image of any kind that `Bundle.from_image` takes, also an open `Image`; a `Bundle`, or a bundle directory. What
            the program writes to the root filesystem of an image or of a plain directory is removed at the end.
        args: the program and its arguments. Default: those of the configuration.
        input: bytes for stdin, or text with ``text=True``.
        capture_output: keep stdout and stderr in the result.
        max_output: bytes of each stream that are kept, or a size such as ``"16M"``. The rest is read and dropped, and the result
            is ``truncated``. Default: everything.
        on_stdout, on_stderr: functions that get all output of that stream as it comes, in parts of any length: bytes or text. An
            exception of one kills the program.
        stdin, stdout, stderr: file descriptors, files, ``subprocess.PIPE``, ``DEVNULL`` or ``STDOUT``; by default the caller's.
        text: decode the output, as ``encoding`` and ``errors`` do. Default: UTF-8, with surrogates for invalid bytes.
        timeout: seconds, or a time such as ``"90s"`` or a timedelta, until every process of the container is killed, and
            ProcessTimeout is raised.
        check: raise ProcessError if the program does not exit with 0.
        env: variables over the image's: a mapping, where None removes one, or ``NAME=value`` strings.
        cwd: the working directory in the container.
        user: ``"name"``, ``"name:group"``, ``"uid:gid"``, a uid or ``(uid, gid)``. The image's passwd and group resolve names.
            ``"caller"``: the ids, groups, name and home directory of the caller.
        preset: ``"hpc"`` for the caller with its home and working directory, temporary directories, environment and network, as
            Apptainer runs programs; or a `Preset`. The other arguments win.
        mounts: ``"source:destination"``, with ``:ro`` read-only, a tuple of these parts, a `Mount`, or its JSON; or a mapping of
            sources to destinations. One replaces a mount at its destination.
        memory: memory limit in bytes or as ``"512M"``. A program that needs more is killed.
        cpus: CPU time in CPUs: 0.5 is half of one.
        pids: limit of processes and threads; -1 for none. Default: as the configuration says. An image or a plain directory says
            nothing: where a cgroup can enforce it, the limit is 2048, or 64 for each CPU of the host if that is more.
        network: ``"none"`` or False for an empty network, ``"host"`` for the host's, ``"private"`` for one of the container that
            reaches the host's by pasta or slirp4netns, or the path of a network namespace. Default: as the configuration says,
            which is empty for an image.
        ports: ports of the host that are forwarded to the container, with ``network="private"``: ``{8080: 80}``,
            ``{"0.0.0.0:8080": 80}``, ``{"5353/udp": 53}``, or strings as ``"127.0.0.1:8080:80"``. Without an address connections
            are accepted at 127.0.0.1 only.
        devices: devices of the host: ``"/dev/fuse"``, ``"/dev/ttyUSB0:/dev/tty:rw"`` (path in the container, access), or
            ``"vendor.com/class=name"`` for what a CDI spec offers, which `devices` lists.
        gpus: ``"all"``; the names of GPUs such as ``"0,1"``; or their number. A CDI spec must offer them.
        read_only: whether the root filesystem is read-only.
        overlay: where writes to the root filesystem go, as for `Bundle.fresh`: ``"tmpfs"``, ``"tmpfs:size=64M"``, ``"none"``, or a
            directory or file that is kept. Default: a directory on disk that is removed at the end; for a bundle, its own root
            filesystem. A list can have read-only layers too, such as ``["tools.sqfs:ro", "kept"]``.
        hostname: the hostname in the container.
        terminal: give the program a terminal in place of its streams, connected with the caller's, which must have one; with
            ``capture_output`` not connected, and the output is in ``stdout``. ``timeout`` then needs ``capture_output``.
        container_id: the id of the container. Default: a random one.
        state_root: the state directory; by default ``/run/ociruntime`` for root.
        die_with_parent: kill the container when this process ends, however it ends. What is left of it is removed by the next call
            of `run`, or by `prune`. By default, processes that the kernel does not kill run on until then. True refuses a
            configuration where some could: one without a new pid namespace, or with a program that gains capabilities. False: the
            container runs on.
        cgroup_manager: what makes the cgroups, as for `Container.create`.
        reference: which image of a layout or archive that holds several: one of its names, or the digest of its manifest.
        platform: the platform of which to take the image, such as ``linux/arm64``. Default: this machine's, or the only one.
        strategy: how the layers of the image become files, as for `Bundle.from_image`. Default: the first that can be used.
        profile: measure every step from the call to the end of the clean-up. The result has a `Profile`; if the launch fails, the
            exception has it in its attribute ``profile``.

    Raises:
        TypeError: ``args`` is a string.
        ValueError, BundleError: an argument cannot be carried out.
        UnsupportedError: this host does not have a device.
        SpecError, SifError, UnsupportedError, StepError: the container could not be started, or its program cannot begin within its
            memory limit and was killed.
        ProcessTimeout: the program did not end within ``timeout`` seconds.
        ProcessError: with ``check``, the program did not exit with 0.

    An interruption, KeyboardInterrupt for example, kills the container too. The exception has the output so far in its attribute
    ``result``, a `Result`.
    """
    check_keywords("run", unknown, RunKeywords)
    options = RunOptions(
        args=args,
        input=input,
        capture_output=capture_output,
        max_output=max_output,
        on_stdout=on_stdout,
        on_stderr=on_stderr,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        codec=(text, encoding, errors),
        timeout=timeout,
        check=check,
        env=env,
        cwd=cwd,
        user=user,
        preset=preset,
        mounts=mounts,
        memory=memory,
        cpus=cpus,
        pids=pids,
        network=network,
        devices=devices,
        gpus=gpus,
        ports=ports,
        read_only=read_only,
        overlay=overlay,
        hostname=hostname,
        terminal=terminal,
        container_id=container_id,
        state_root=state_root,
        die_with_parent=die_with_parent,
        cgroup_manager=cgroup_manager,
        reference=reference,
        platform=platform,
        strategy=strategy,
        profile=profile,
    )
    return execute(image, options)


class Observer(Protocol):
    """A receiver of the start and the end of the program of a call."""

    def forward_to(self, pidfd: int) -> None:
        """The program runs."""

    def stop(self) -> None:
        """The pidfd is about to be closed."""


@naming(lambda image, *_: f"cannot run {getattr(image, 'path', image)}")
def execute(image: ImageLike, options: RunOptions, observer: Observer | None = None) -> Result[Any]:
    """Run a program in a new container and wait for it, as `run` does. The observer is called while signals are deferred."""
    options.check_interactive()
    with profiling(options) as recorder:
        result = _execute(image, options, observer, recorder)
    return with_profile(result, options, recorder)


@contextmanager
def profiling(options: RunOptions) -> Iterator[Recorder | None]:
    """Return what notes the times of a call, if they are wanted. An exception that leaves the block gets the profile."""
    if not (options.profile or traced()):
        yield None
        return
    recorder = Recorder("run", options.container_id or "")
    try:
        with recorder:
            yield recorder
    except BaseException as error:
        if options.profile:
            profile = recorder.profile()
            if isinstance(result := getattr(error, "result", None), Result):
                error.__dict__["result"] = attrs.evolve(result, profile=profile)
            else:
                error.__dict__["profile"] = profile
        raise


def with_profile(result: Result[Any], options: RunOptions, recorder: Recorder | None) -> Result[Any]:
    """Return the result of a call, with its profile if there is one. Raises ProcessError, with ``check``."""
    if recorder is not None and options.profile:
        result = attrs.evolve(result, profile=recorder.profile())
    if options.check:
        result.check_returncode()
    return result


def _execute(image: ImageLike, options: RunOptions, observer: Observer | None, recorder: Recorder | None) -> Result[Any]:
    with DeferredSignals() as signals, options.open_streams() as streams:
        deadline = Deadline(options.timeout)
        try:
            bundle = find_bundle(image, options, deadline.at)
            container = EphemeralContainer(bundle, options, streams, deadline.at, recorder)
        except LaunchTimeout as error:
            raise deadline.expired(error, streams) from error
        try:
            if observer is not None:
                observer.forward_to(container.pidfd)
            if options.interactive:
                container.process.interact(signals)
            result = finish(
                container.process, signals, options.timeout, kill=container.kill, result=container.result, on_end=container.on_end
            )
        finally:
            if observer is not None:
                observer.stop()
            container.discard()
    return result


def find_bundle(image: ImageLike, options: RunOptions | SandboxOptions, deadline: float | None = None) -> Bundle | EphemeralBundle:
    """Return the bundle of an image, with the overrides.

    Args:
        deadline: until when programs that serve the image must have started, by `time.monotonic`.

    Raises:
        BundleError, SpecError: it cannot be used. And as `opened_image`.
        LaunchTimeout: the deadline has passed.
    """
    with time_limit(deadline):
        return _find_bundle(image, options)


def _find_bundle(image: ImageLike, options: RunOptions | SandboxOptions) -> Bundle | EphemeralBundle:
    overrides, overlay, sandbox = options.overrides, options.upper, options.create.empty_process
    # Volumes are directories on the disk, which the limits of a sandbox do not count.
    choice = _Choice(options.reference, options.platform, overlay or "", options.strategy, volumes=not sandbox)
    if is_image(image):
        name = image.name
        if options.reference is not None or options.platform is not None:
            raise ValueError(CHOSEN)
    else:
        name = "" if isinstance(image, Bundle) else parse_path("image", image)
        if isinstance(image, Bundle) or has_file(Path(name), "config.json"):
            if choice._replace(overlay="", volumes=True) != _Choice():
                raise ValueError("reference, platform and strategy say how an image is opened and mounted, and a bundle is given")
            bundle = image if isinstance(image, Bundle) else Bundle.load(image)
            if sandbox and options.pids is None and bundle.spec.at.linux.resources.pids.limit.get() is not None:
                overrides = attrs.evolve(overrides, pids=None)  # the default is not instead of what a bundle says
            return _with_overlay(bundle, overlay).with_overrides(overrides)
        image = Path(absolute_path(name))
    place = Path(os.path.realpath(tempfile.gettempdir()))
    found, needs_args = _known(image, place, choice), not (overrides.args or sandbox)
    if found is None:
        place = place / ephemeral_name()
        return EphemeralBundle(place, partial(_make_bundle, image, place, overrides, choice, needs_args))
    if found.plain and needs_args:
        raise _no_args(name)
    return _with_overlay(found.bundle, overlay).with_overrides(_with_user(overrides, found.user))


def host_bundle(files: HostFiles, options: SandboxOptions) -> EphemeralBundle:
    """Return a bundle whose root filesystem is made of files of the host."""
    place = Path(os.path.realpath(tempfile.gettempdir())) / ephemeral_name()

    def make() -> Bundle:
        place.mkdir(mode=0o700)
        rootfs = place / "rootfs"
        rootfs.mkdir(mode=0o755)
        files.make_root(str(rootfs))
        spec = files.configuration().evolve(root=Root(path=str(rootfs)))
        bundle = Bundle._of_layers(place, spec, Layers((str(rootfs),), str(place)))
        return _with_overlay(bundle, options.upper).with_overrides(options.overrides)

    return EphemeralBundle(place, make)


def _with_overlay(bundle: Bundle, overlay: str | None) -> Bundle:
    return bundle if overlay is None else bundle.fresh(overlay=overlay.split(SEPARATOR) if overlay else None)


def _is_plain(image: Image) -> bool:
    """Return whether an image says nothing of what to run in it."""
    return image.config_json is None and image.sif is None


def _no_args(image: str) -> BundleError:
    return BundleError(f"{image} is a plain root filesystem: args must say what to run in it")


class _Choice(NamedTuple):
    """Which image of several is wanted, where writes go, how the image is mounted, and what its volumes are."""

    reference: str | None = None
    platform: str | None = None
    overlay: str = ""
    """In the form of `parse_overlay`."""
    strategy: Strategy | None = None
    volumes: bool = True
    """Whether they are directories beside the root filesystem."""

    def open(self, image: Path | Image) -> AbstractContextManager[Image]:
        """Open the image for a block. Raises as `opened_image`."""
        return opened_image(image, reference=self.reference, platform=self.platform, overlay=self.overlay)


class _Image(NamedTuple):
    """A bundle of which each container mounts an image, so that it needs no directory."""

    key: object
    """What the bundle was made for: the identity of the image, the host, and where upper layers are."""
    bundle: Bundle
    user: str
    """The user of the image, as its configuration names it."""
    plain: bool
    """Whether it says nothing of what to run in it."""


_images: Final[dict[tuple[str, bool], _Image]] = {}
"""The images of the last calls, by path, with and without volumes. Each has its mount, and plans that are compiled."""
_MAX_IMAGES: Final = 8


def close_images() -> None:
    """Close the images that `run` keeps open for the next calls: their mounts, which have no place, and
    the loop devices of these or, for a user, the programs that serve them.

    Containers that still run keep their root filesystem. The next `run` opens its image again.
    """
    _images.clear()


def _known(image: Path | Image, place: Path, choice: _Choice) -> _Image | None:
    """Return the bundle of an image that needs no directory, from the last calls if it has not changed; None for any other image.

    Args:
        place: the directory of the upper layers.
        choice: which image it is, and the upper layer, which may be in the image.

    Raises:
        OSError: the image cannot be mounted. And as `opened_image`.
    """
    path = str(image) if isinstance(image, Path) else image.path
    try:
        status = os.stat(path) if isinstance(image, Path) else image.status()
        chosen = (choice.reference, choice.platform) if isinstance(image, Path) else image._arguments
        # The files of a layout can change while the directory itself does not.
        content = _index_of(path) if isinstance(image, Path) else image.digest
        key = identity(status), content, Host.probe(), place, chosen, choice.strategy, is_same_file(path, choice.overlay)
    except OSError:
        key = None  # opening it has the better error
    name = path, choice.volumes
    found = _images.get(name)
    if found is None or found.key != key:
        _images.pop(name, None)
        found = _open(image, place, choice, key)
        if found is not None:
            _images[name] = found
            for oldest in list(_images)[:-_MAX_IMAGES]:
                _images.pop(oldest, None)
    return found


def _index_of(path: str) -> object:
    """Return the identity of the index of an OCI image layout; an empty string for an image of another kind."""
    try:
        return identity(os.stat(f"{path}/index.json"))
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _open(image: Path | Image, place: Path, choice: _Choice, key: object) -> _Image | None:
    """Open an image for `_known`. Volumes are directories, and so is an image that is extracted."""
    with choice.open(image) as opened:
        path, config = Path(opened.path), opened.config()
        layers: Layers | None = None
        if opened.kind == "directory":
            layers = Layers((str(path),), str(place))
        elif not (choice.volumes and config and config.volumes):
            layers = shared_mounts(opened, choice.strategy)
        if layers is None:
            return None
        layers = layers._replace(uppers=str(place))
        files = ContainerRoot(*layers.paths)
        # A bind mount of the image file itself is not one of the root filesystem.
        root = str(path) if opened.kind == "directory" else f"{path}/rootfs"
        spec = with_default_limits(spec_of(opened, path, files, volumes=choice.volumes)).evolve(root=Root(path=root))
        user = (config.user if config else "") or ""
        return _Image(key, Bundle._of_layers(path, spec, layers), user, _is_plain(opened))


def _with_user(overrides: Overrides, user: str) -> Overrides:
    """Return overrides with the user of the image, if they have mounts, which may have other users."""
    return attrs.evolve(overrides, user=user) if user and overrides.user is None and overrides.mounts else overrides


def _make_bundle(image: Path | Image, path: Path, overrides: Overrides, choice: _Choice, needs_args: bool) -> Bundle:
    """Mount the root filesystem of an image in a new bundle directory. Raises as `opened_image`, and OSError."""
    with choice.open(image) as opened:
        if _is_plain(opened) and needs_args:
            raise _no_args(opened.name)
        find_upper(choice.overlay, privileged=may_mount())  # before the image is extracted, which may take long
        path.mkdir(mode=0o700)
        layers = fill(path, opened, strategy=choice.strategy, private=True, volumes=choice.volumes)
        config = opened.config()
        loaded = Bundle.load(path)._with_layers(layers)
        bundle = _with_overlay(loaded._with_spec(with_default_limits(loaded.spec)), choice.overlay or None)
        return bundle.with_overrides(_with_user(overrides, (config.user if config else "") or ""))


class OwnedContainer:
    """A container that belongs to this process: it is removed by `discard`, or by a later call when this process has ended.

    Such orphans of earlier calls are removed first.
    """

    def __init__(
        self,
        bundle: Bundle | EphemeralBundle,
        container_id: str,
        options: CreateOptions,
        stdio: Sequence[int],
        deadline: float | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self._owner = os.getpid()
        store = StateStore(options.state_root)
        clear_orphans(store)
        ephemeral = options.die_with_parent is not False
        self._lock = CallerLock(store, container_id) if ephemeral else None
        self._recorder = recorder
        try:
            with time_limit(deadline):
                self.created = create(
                    container_id,
                    bundle,
                    options,
                    stdio=stdio,
                    start=True,
                    ephemeral=ephemeral,
                    deadline=deadline,
                    recorder=recorder,
                    store=store,
                )
        except BaseException:
            self._release()
            raise

    @property
    def owned(self) -> bool:
        """Whether it belongs to this process, instead of the parent that this process was forked from."""
        return os.getpid() == self._owner

    def discard(self) -> None:
        """Kill the container and remove it, unless another process has removed it. No effect in a forked child of the caller."""
        if not self.owned:
            return
        self._mark("clean-up", "the container and its files")
        try:
            self._delete()
        except ContainerNotFound:
            pass  # another process has removed it
        finally:
            if self.created.layers is not None:
                self.created = attrs.evolve(self.created, layers=None)  # they keep the image and the upper layer
            self._release()

    def _mark(self, op: str, text: str) -> None:
        if self._recorder is not None:
            self._recorder.mark(op, text)

    def _delete(self) -> None:
        self.created.discard()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()


class EphemeralContainer(OwnedContainer):
    """A container that runs one program, and is removed by `discard` when the program has ended or was killed."""

    def __init__(
        self,
        bundle: Bundle | EphemeralBundle,
        options: RunOptions,
        streams: Streams,
        deadline: float | None,
        recorder: Recorder | None = None,
    ) -> None:
        container_id = f"run-{os.urandom(8).hex()}" if options.container_id is None else options.container_id
        super().__init__(bundle, container_id, options.create, streams.child, deadline, recorder)
        self._mark("program", "runs, with what it starts")
        try:
            streams.launched()
            self.process = LaunchedProcess(self.created.init, streams)
        except BaseException:  # such as EMFILE: the program runs, and no caller will have this object
            try:  # deletion may need a descriptor too: a later call does it then
                signal.pidfd_send_signal(self.created.init.pidfd, signal.SIGKILL)
                if ended_within(self.created.init.pidfd, KILL_TIMEOUT):
                    os.waitid(os.P_PIDFD, self.created.init.pidfd, os.WEXITED)
                super()._delete()
            finally:
                self._release()
            raise
        if self.process.terminal is not None:
            streams.use_terminal(self.process.terminal.fileno())

    @property
    def on_end(self) -> Callable[[], object] | None:
        """What ends the other processes, which could hold the pipes open. In a pid namespace they end with the first one.

        It is not an attribute, because such a cycle would keep the image open until a garbage collection.
        """
        return None if self.created.own_pids else self.kill

    @property
    def pidfd(self) -> int:
        """The pidfd of the program, until `discard`."""
        return self.created.init.pidfd

    def kill(self) -> None:
        """Kill every process of the container. No effect in a forked child of the caller."""
        if not self.owned:
            return
        self.process.kill()
        cgroup.kill(self.created.init.cgroups)

    def result(self) -> Result[Any]:
        """Return the result of the program, with what the whole container used."""
        self._mark("collect", "exit status, output and usage")
        result, created = self.process.result(), self.created
        usage = cgroup.container_usage(created.init.cgroups, result.usage)
        return attrs.evolve(result, oom_killed=out_of_memory(created.document), usage=usage)

    def _delete(self) -> None:
        try:
            if self.process.returncode is None:
                delete(self.created.entry, force=True)
            else:
                discard(self.created.entry, self.created.document)
        finally:
            self.process.close()
