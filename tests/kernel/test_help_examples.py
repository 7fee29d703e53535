"""Every example in the help of a command does what it says, with nothing but the files that it names."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.cli.parser import EXAMPLES

from ..support.fixture_types import MakeBundle
from ..support.images import TAR_TYPE, OciImage, tar_of
from ..support.terminals import Session

pytestmark = pytest.mark.root
SLEEP = "trap 'exit 0' TERM; echo started; while :; do sleep 0.1; done"


@pytest.fixture
def place(tmp_path: Path, busybox_rootfs: Path, busybox_sif: Path, state_root: Path) -> Iterator[Path]:
    """A directory with the files that examples name, and the command ``ociruntime``, which can pull from a registry."""
    here = tmp_path / "here"
    here.mkdir()
    oci.build(busybox_sif, here / "image.sif", config={"Cmd": ["echo", "hello"]})
    (here / "notes.txt").write_text("notes")
    (here / "changes").mkdir()
    shutil.copytree(busybox_rootfs, here / "rootfs", symlinks=True)
    image = OciImage()
    image.add([(tar_of({"etc/motd": b"hello"}), TAR_TYPE)])
    image.write_layout(here / "layout")
    image.write_docker_archive(here / "image.tar", "example:1")
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "ociruntime").write_text(f'#!/bin/sh\nexec {sys.executable} -P -m ociruntime --root {state_root} "$@"\n')
    (commands / "skopeo").write_text(f'#!/bin/sh\nfor last; do :; done\nexec cp -r {here}/layout "${{last#oci:}}"\n')
    for command in commands.iterdir():
        command.chmod(0o755)
    yield here
    for container in oci.Container.list(state_root=state_root):
        container.delete(force=True)
    if (here / "bundle/rootfs").exists():
        oci.Bundle(here / "bundle", config=None).umount(state_root=state_root)


def prepare(name: str, place: Path, make_bundle: MakeBundle, prefix: str) -> None:
    """Make what the examples of a command need beside the files."""
    if name in ("create", "run", "plan", "validate", "umount"):
        with oci.Image.open(place / "image.sif") as image:
            oci.Bundle.from_image(image, place / "bundle")
    elif name == "kernelspec install":
        pytest.importorskip("jupyter_client", reason="the extra 'notebook' is not installed")
        python = place / "rootfs/bin/python3"  # one with ipykernel, as far as the command can see
        python.write_text("#!/bin/sh\nexit 0\n")
        python.chmod(0o755)
        oci.build(place / "rootfs", place / "image.sif", overwrite=True)
    elif name == "spec":
        (place / "bundle").mkdir()
    elif name in ("verify", "sign"):
        pytest.importorskip("cryptography", reason="the extra 'verify' is not installed")
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519

        key = ed25519.Ed25519PrivateKey.generate()
        pem, clear = serialization.Encoding.PEM, serialization.NoEncryption()
        (place / "private.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, clear))
        (place / "public.pem").write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
        if name == "verify":
            oci.sign(place / "image.sif", key=place / "private.pem")
    elif name in ("diff", "commit"):
        with oci.Image.open(place / "image.sif") as image:
            bundle = oci.Bundle.from_image(image, place / "bundle")
        bundle.spec.with_args(["sh", "-c", f"echo x >>/etc/passwd; {SLEEP}"]).save(bundle.path / "config.json")
        words = ["run", "--detach", "--bundle", bundle.path, "--overlay", place / "changes", prefix]
        subprocess.run([place.parent / "bin/ociruntime", *words], check=True)
    elif name in ("kill", "delete", "exec", "cp", "ps", "logs", "update", "events", "list"):
        bundle = make_bundle(oci.RuntimeSpec.default().with_args(["sh", "-c", SLEEP]))
        subprocess.run([place.parent / "bin/ociruntime", "run", "--detach", "--bundle", bundle.path, prefix], check=True)


@pytest.mark.parametrize(("name", "line"), [(name, line) for name, lines in EXAMPLES.items() for line in lines])
def test_examples(
    name: str,
    line: str,
    place: Path,
    make_bundle: MakeBundle,
    prefix: str,
    session: Callable[..., Session],
) -> None:
    assert f"ociruntime {name} " in f"{line} "
    shell = next((shell for shell in ("zsh", "fish") if shell in line), "bash")
    for program in (shell, "mksquashfs"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program}")
    prepare(name, place, make_bundle, prefix)
    setup = "autoload -Uz compinit; compinit -u -D; " if shell == "zsh" else ""
    line = re.sub(r"\bc1\b", prefix, line)
    script = f"{setup}cd {place}\n{line}"
    path = f"PATH={place.parent}/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    jupyter = f"JUPYTER_DATA_DIR={place}/jupyter"
    terminal = session("env", path, jupyter, f"PYTHONPATH={':'.join(sys.path)}", "TERM=xterm", shell, "-c", script)
    if name == "shell" or "-it" in line:
        terminal.type("exit\r")
    assert terminal.wait(60) == 0, terminal.seen.decode()


def test_lines_fit_in_a_terminal() -> None:
    assert {len(line) <= 110 for lines in EXAMPLES.values() for line in lines} == {True}
