"""Hooks: which run when, and what they are given (config.md#posix-platform-hooks).

Those of the runtime's namespaces are steps of the host, those of the container's are run by the init. What `start` and `delete`
will need is stored with the state (`stored`), so that neither reads the config again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from .model import Builder, HookProgram
from .ops import Sync

if TYPE_CHECKING:
    from ..spec import Hook, Hooks, RuntimeSpec

_ATTRIBUTES: Final = {
    "prestart": "prestart",
    "createRuntime": "create_runtime",
    "createContainer": "create_container",
    "startContainer": "start_container",
    "poststart": "poststart",
    "poststop": "poststop",
}
_AT_CREATE: Final = ("prestart", "createRuntime", "createContainer")
_IN_CONTAINER: Final = ("createContainer", "startContainer")


class Compiled(NamedTuple):
    """The hooks of a config by their kinds; empty kinds are left out."""

    programs: dict[str, tuple[HookProgram, ...]]
    state: int
    """The slot of the state document that those in the container get on stdin."""
    output: int
    """The slot of what they write."""

    @property
    def at_create(self) -> bool:
        """Whether some run before the root is entered, when all mounts must be there already."""
        return any(kind in self.programs for kind in _AT_CREATE)

    def stored(self) -> dict[str, list[HookProgram]]:
        """What must outlive create, as plain values."""
        kinds = ("startContainer", "poststart", "poststop")
        return {kind: list(self.programs[kind]) for kind in kinds if kind in self.programs}


def compile_hooks(b: Builder, spec: RuntimeSpec) -> Compiled:
    """Every hook, and what those in the container need."""
    programs = dict(_programs(spec.hooks)) if spec.hooks is not None else {}
    state = output = -1
    if any(kind in programs for kind in _IN_CONTAINER):
        state = b.input("state", "the state, for hooks in the container")
        output = b.input("output", "what hooks in the container write")
    return Compiled(programs, state, output)


def _programs(hooks: Hooks) -> Iterator[tuple[str, tuple[HookProgram, ...]]]:
    for kind, attribute in _ATTRIBUTES.items():
        given: tuple[Hook, ...] = getattr(hooks, attribute) or ()
        if given:
            yield kind, tuple(HookProgram(h.path, tuple(h.args or (h.path,)), tuple(h.env or ()), h.timeout or 0) for h in given)


def compile_create_hooks(b: Builder, hooks: Compiled, root: int) -> None:
    """The hooks of create: everything is mounted, and the host's tree is still in sight."""
    b.init("sync", Sync.HOST, text="the caller runs its hooks")
    for kind in ("prestart", "createRuntime"):
        for program in hooks.programs.get(kind, ()):
            b.host("hook", kind, *program, text=program.describe(kind))
    if hooks.state >= 0:
        b.host("hook_state", text="the state, as the container sees it, for its hooks")
    _in_container(b, hooks, "createContainer", root)


def compile_state(b: Builder, hooks: Compiled) -> None:
    """Behind the last sync: the state for the hooks of start, when no hook of create had it written."""
    if hooks.state >= 0 and not hooks.at_create:
        b.host("hook_state", text="the state, as the container sees it, for its hooks")


def compile_start_hooks(b: Builder, hooks: Compiled, root: int) -> None:
    """The hooks of start, last before the process: the image may say what their paths are, so they have no more rights than it."""
    _in_container(b, hooks, "startContainer", root)


def _in_container(b: Builder, hooks: Compiled, kind: str, root: int) -> None:
    for program in hooks.programs.get(kind, ()):
        path, args, env, timeout = program
        b.init("hook", root, path, args, env, hooks.state, hooks.output, timeout * 1000, text=program.describe(kind))
