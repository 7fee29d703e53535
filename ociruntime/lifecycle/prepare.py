"""Preparing a container: everything that changes its configuration is resolved here, and nowhere later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from ..errors import UnsupportedError
from ..host import Host
from ..rootfs.users import env_with_home
from .activation import activate

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..options import CreateOptions
    from ..plan import Plan
    from ..state import Entry


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


@attrs.frozen(kw_only=True)
class Prepared:
    """A container whose configuration is complete."""

    bundle: Bundle
    """The bundle with the configuration that is recorded, which further processes get too."""
    launched: Bundle
    """The bundle with the configuration of this launch: with HOME and what socket activation adds."""
    options: CreateOptions

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
        plan = self.launched.plan(
            host=host if options.new_keyring else host._replace(keyrings=False),
            container_id=container_id,
            gate=not start,
            cgroup_manager=options.cgroup_manager,
            die_with_parent=options.die_with_parent,
            empty_process=options.empty_process,
        )
        receiver = options.console_socket is not None or options.terminal or options.supervised
        if plan.terminal and not receiver:
            raise UnsupportedError("$.process.terminal needs a receiver: give console_socket, supervise=True or terminal=True")
        if options.console_socket is not None and not plan.terminal:
            raise UnsupportedError("console_socket is given, but $.process.terminal is not true")
        return plan


def prepare(bundle: Bundle, options: CreateOptions, entry: Entry) -> Prepared:
    """Resolve everything that changes the configuration of a container: its terminal, socket activation and HOME.

    Args:
        bundle: the bundle, with the overrides of the call.
        entry: the container's state directory, where the socket for the readiness notification is.

    Raises:
        SpecError: the configuration is not valid.
        BundleError: an option changes the process, and the configuration has none.
    """
    if options.terminal is not None:
        bundle = bundle.with_process(terminal=options.terminal)
    launched = bundle
    if bundle.spec.process is not None:
        if options.listen_fds or options.notify_socket:
            launched = activate(launched, entry, options.listen_fds, options.notify_socket)
        process = launched.spec.process
        if process is not None and (env := env_with_home(process, launched.rootfs)) is not process.env:
            launched = launched.with_process(env=env)
    return Prepared(bundle=bundle, launched=launched, options=options)
