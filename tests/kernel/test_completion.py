"""Completion in the shells that people use: a line is typed on a terminal, and completed by the key Tab."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ociruntime as oci

from ..support.fixture_types import MakeBundle
from ..support.terminals import Session

pytestmark = pytest.mark.root
pytest.importorskip("shtab", reason="no shtab (pip install 'ociruntime[cli]')")
SHELLS = {
    "bash": ("bash --norc --noprofile -i", "source <(ociruntime completion bash)"),
    "zsh": ("zsh -f -i", 'bindkey -e; autoload -Uz compinit; compinit -u -D; eval "$(ociruntime completion zsh)"'),
    "fish": ("fish --no-config -i", "ociruntime completion fish | source"),
}
Complete = Callable[[str], list[str]]


@pytest.fixture(params=SHELLS)
def complete(request: pytest.FixtureRequest, session: Callable[..., Session], tmp_path: Path) -> Complete:
    """Returns the words of a line after Tab. The working directory has ``image.sif``, ``empty`` and ``two words.sif``."""
    program, script = SHELLS[request.param]
    if shutil.which(request.param) is None:
        pytest.skip(f"no {request.param} (Debian: {request.param})")
    command = tmp_path / "bin/ociruntime"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m ociruntime "$@"\n')
    command.chmod(0o755)
    home = tmp_path / "home"
    (home / "empty").mkdir(parents=True)
    for name in ("image.sif", "two words.sif"):
        (home / name).touch()
    path = f"PATH={command.parent}:/usr/sbin:/usr/bin:/sbin:/bin"
    shell = session("env", path, f"HOME={home}", f"PYTHONPATH={':'.join(sys.path)}", "TERM=xterm", *program.split(), size=(24, 250))
    shell.type(f"cd {home}; {script}; echo rea''dy\r")
    shell.expect("ready\r")

    def complete(line: str) -> list[str]:
        shell.type(f"{line}\t\x01printf '{{%s}}' \x05 ; echo en''d\r")  # Ctrl-A and Ctrl-E: at the begin and end of the line
        shell.expect("{ociruntime}")
        return shell.expect("end\r").strip("{}").split("}{")

    return complete


def test_words(complete: Complete) -> None:
    for line, expected in (
        ("dele", "delete"),
        ("--systemd", "--systemd-cgroup"),
        ("delete --fo", "delete --force"),
        ("list --format js", "list --format json"),
        ("image ex", "image extract"),
        ("completion fi", "completion fish"),
        ("run im", "run image.sif"),
        ("mount image.sif em", "mount image.sif empty"),
        ("create --bundle em", "create --bundle empty"),
        ("exec --env A=1 im", "exec --env A=1 image.sif"),
    ):
        assert " ".join(complete(f"ociruntime {line}")).rstrip("/") == expected


def test_values_behind_an_equals_sign(complete: Complete) -> None:
    assert complete("ociruntime list --format=js") == ["list", "--format=json"]
    assert complete("ociruntime --log=image.sif dele") == ["--log=image.sif", "delete"]


def test_ids(complete: Complete, make_bundle: MakeBundle, prefix: str, state_root: Path) -> None:
    bundle = make_bundle(oci.RuntimeSpec.default().with_args(["sleep", "1000"]))
    with oci.Container.create(prefix, bundle, state_root=state_root):
        begin = f"--root {state_root}"
        assert complete(f"ociruntime {begin} state {prefix[:6]}") == ["--root", str(state_root), "state", prefix]
        assert complete(f"ociruntime {begin} exec --tty {prefix[:6]}") == ["--root", str(state_root), "exec", "--tty", prefix]
        assert complete(f"ociruntime {begin} cp {prefix[:6]}")[-1] == f"{prefix}:"
    assert complete(f"ociruntime {begin} state {prefix[:6]}")[-1] == prefix[:6]
