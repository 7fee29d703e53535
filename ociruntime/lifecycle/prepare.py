"""Preparing a container: everything that changes its configuration is resolved here, and nowhere later."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from ..errors import UnsupportedError, warn
from ..host import Host
from ..overrides import Overrides
from ..rootfs.caller import Caller
from ..rootfs.users import env_with_home
from ..spec import Mount
from ..store import NOTIFY

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..options import CreateOptions
    from ..plan import Plan
    from ..store import Entry


@attrs.frozen
class EphemeralBundle:
    """A bundle that is made for one container and removed with it. Its path is recorded before it exists."""

    path: Path
    make: Callable[[], Bundle]
    """Makes the bundle. Raises SifError, BundleError, OSError: what exists of it is removed by `undo`."""

    @property
    def undo(self) -> list[str]:
        """The action that removes the bundle (see `ociruntime.engine.undo`)."""
        return ["bundle", str(self.path)]


def prepare(bundle: Bundle, options: CreateOptions, entry: Entry, *, layer: str = "") -> Prepared:
    """Resolve everything that changes the configuration of a container: terminal, user, socket activation and HOME.

    Args:
        bundle: the bundle, with the overrides of the call.
        entry: the container's state directory, where the files are that the container gets: passwd and group with the caller, and
            the socket for the readiness notification.
        layer: the name of the container's own upper layer, if it has one.

    Raises:
        SpecError: the configuration is not valid.
        BundleError: an option changes the process, and the configuration has none; or the container's passwd or group is not valid.
    """
    if options.terminal is not None:
        bundle = bundle.with_process(terminal=options.terminal)
    launched = with_caller(bundle, entry) if bundle._has_caller else bundle
    if bundle.spec.process is not None:
        if options.listen_fds or options.notify_socket:
            launched = activate(launched, entry, options.listen_fds, options.notify_socket)
        process = launched.spec.process
        if process is not None and (env := env_with_home(process, launched._container_root())) is not process.env:
            launched = launched.with_process(env=env)
    return Prepared(bundle=bundle, launched=launched, options=options, layer=layer)


@attrs.frozen(kw_only=True)
class Prepared:
    """A container whose configuration is complete."""

    bundle: Bundle
    """The bundle with the configuration that is recorded, which further processes get too."""
    launched: Bundle
    """The bundle with the configuration of this launch: with HOME and what socket activation adds."""
    options: CreateOptions
    layer: str = ""
    """The name of the container's own upper layer, if it has one."""

    def mount(self, source: str) -> int:
        """Return a detached mount of the image for the container, as `Layers.mount` does. Raises OSError."""
        layers = self.launched._find_layers()
        assert layers is not None, "the plan has a mount of the image"
        return layers.mount(source)

    def compile(self, container_id: str, *, start: bool) -> Plan:
        """Compile the plan that creates the container on this host.

        Args:
            start: whether the process runs at once, instead of waiting for `start`.

        Raises:
            SpecError: the configuration contradicts itself or asks for what no host can do.
            UnsupportedError: this host cannot carry it out, or a terminal has no receiver.
        """
        options = self.options
        host = Host.probe()
        plan = self.launched._plan(
            host=host if options.new_keyring else attrs.evolve(host, keyrings=False),
            container_id=container_id,
            gate=not start,
            cgroup_manager=options.cgroup_manager,
            die_with_parent=options.die_with_parent,
            empty_process=options.empty_process,
            layer=self.layer,
        )
        receiver = options.console_socket is not None or options.terminal or options.supervised
        if plan.terminal and not receiver:
            raise UnsupportedError("$.process.terminal needs a receiver: give console_socket, supervise=True or terminal=True")
        if options.console_socket is not None and not plan.terminal:
            raise UnsupportedError("console_socket is given, but $.process.terminal is not true")
        return plan


# ---- the caller as a user ----


def with_caller(bundle: Bundle, entry: Entry) -> Bundle:
    """Return the bundle with read-only mounts of passwd and group that have the caller's lines too. The image does not change.

    Raises:
        BundleError: a file of the container is not valid.
        StateError: a file cannot be written.
    """
    mounts = []
    for name, content in Caller.current().accounts(bundle._container_root()).items():
        entry.save(name, content)
        (entry.path / name).chmod(0o644)  # whatever the umask
        source, options = str(entry.path / name), ("bind", "ro", "nosuid", "nodev", "noexec")
        mounts.append(Mount(destination=f"/etc/{name}", type="bind", source=source, options=options))
    return bundle.with_overrides(Overrides(mounts=mounts))


# ---- socket activation and the readiness notification ----

_ABSTRACT: Final = "/run/notify"
"""Path of the socket in the container when the host's socket is abstract, or has a long path."""
_LONGEST_ADDRESS: Final = 107
"""Bytes of the path in the address of a Unix socket (unix(7))."""


def activate(bundle: Bundle, entry: Entry, listen_fds: int | Sequence[str], notify_socket: str | None) -> Bundle:
    """Return the bundle with the environment and mount for socket activation and the readiness notification.

    Args:
        entry: the container's state directory.
        listen_fds: the number of sockets, or their names.
        notify_socket: the host's socket.
    """
    if listen_fds:
        bundle = _with_sockets(bundle, listen_fds)
    return _with_notify_socket(bundle, entry, notify_socket) if notify_socket else bundle


def _with_sockets(bundle: Bundle, listen_fds: int | Sequence[str]) -> Bundle:
    linux = bundle.spec.linux
    if not any(space.type == "pid" and not space.path for space in (linux.namespaces if linux else None) or ()):
        warn(["LISTEN_PID is 1, which the process is in a pid namespace of its own only: without one it may not take its sockets"])
    count, names = (listen_fds, None) if isinstance(listen_fds, int) else (len(listen_fds), ":".join(listen_fds))
    return bundle.with_overrides(Overrides(env={"LISTEN_FDS": str(count), "LISTEN_PID": "1", "LISTEN_FDNAMES": names}))


def _with_notify_socket(bundle: Bundle, entry: Entry, notify_socket: str) -> Bundle:
    # The program in the container needs a path that fits an address.
    fits = notify_socket.startswith("/") and len(os.fsencode(f"{notify_socket}/{NOTIFY}")) <= _LONGEST_ADDRESS
    directory, destination = entry.path / NOTIFY, notify_socket if fits else _ABSTRACT
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)  # whatever the umask
    options = ("bind", "ro", "nosuid", "nodev", "noexec")
    mount = Mount(destination=destination, type="bind", source=str(directory), options=options)
    return bundle.with_overrides(Overrides(env={"NOTIFY_SOCKET": f"{destination}/{NOTIFY}"}, mounts=(mount,)))
