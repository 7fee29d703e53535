"""Presets, and the options of the command line that Apptainer has too."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

import attrs
import pytest

import ociruntime as oci
from ociruntime import presets
from ociruntime.cli.common import parse_binds, parse_env, parse_env_file, parse_home
from ociruntime.cli.parser import parse_args
from ociruntime.cli.processes import changes
from ociruntime.options import RunOptions
from ociruntime.overrides import Overrides
from ociruntime.presets import CLEAN, parse_preset
from ociruntime.spec import Mount


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory with the working directory ``work``, and the variables of a login."""
    (tmp_path / "home/work").mkdir(parents=True)
    (tmp_path / "scratch").mkdir()
    for name in list(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", f"{tmp_path}/home")
    monkeypatch.setenv("PATH", "/host/bin")
    monkeypatch.chdir(tmp_path / "home/work")
    return tmp_path


def complete(preset: oci.Preset = oci.HPC, **given: Any) -> Overrides:
    return presets.complete(preset, Overrides(**given))


def binds(overrides: Overrides) -> list[str]:
    return [mount.destination for mount in overrides.mounts or () if isinstance(mount, Mount)]


NO_PATHS = attrs.evolve(oci.HPC, binds=(), read_only_binds=())


def test_directories_that_another_one_shows_are_bound_once(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert binds(complete(NO_PATHS)) == [f"{host}/home"]
    monkeypatch.setenv("TMPDIR", f"{host}/scratch/")
    assert binds(complete(NO_PATHS)) == [f"{host}/home", f"{host}/scratch"]
    monkeypatch.setenv("TMPDIR", f"{host}/missing")
    monkeypatch.chdir(host / "scratch")
    assert binds(complete(NO_PATHS)) == [f"{host}/home", f"{host}/scratch"]
    assert binds(complete(attrs.evolve(NO_PATHS, home=False))) == [f"{host}/scratch"]
    assert binds(complete(attrs.evolve(NO_PATHS, binds=(str(host), "/missing")))) == [str(host)]


@pytest.mark.parametrize("place", ["/", "/usr", "/etc", "/proc/self", "/sys", "/dev"])
def test_a_directory_of_the_system_is_not_bound(place: str, host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program begins in the home directory then; without one it begins where the configuration says."""
    monkeypatch.chdir(place)
    assert (binds(complete(NO_PATHS)), complete(NO_PATHS).cwd) == ([f"{host}/home"], f"{host}/home")
    assert complete(attrs.evolve(NO_PATHS, home=False)).cwd is None
    monkeypatch.setenv("HOME", place)
    monkeypatch.setenv("TMPDIR", place)
    assert binds(complete(NO_PATHS)) == []


def test_a_home_directory_that_does_not_exist(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", f"{host}/missing")
    assert binds(complete(NO_PATHS)) == [f"{host}/home/work"]


def test_a_working_directory_by_its_logical_path(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``$PWD`` counts if it is the working directory, as in a home directory behind a symbolic link."""
    (host / "link").symlink_to("home/work")
    monkeypatch.setenv("PWD", f"{host}/link")
    assert binds(complete(attrs.evolve(NO_PATHS, home=False))) == [f"{host}/link"]
    for other in (f"{host}/scratch", f"{host}/missing", f"{host}/home/file/below"):  # of another user, or of before `su`
        monkeypatch.setenv("PWD", other)
        assert binds(complete(attrs.evolve(NO_PATHS, home=False))) == [f"{host}/home/work"]


def test_a_working_directory_that_was_removed(host: Path) -> None:
    (host / "home/work").rmdir()
    assert (binds(complete(NO_PATHS)), complete(NO_PATHS).cwd) == ([f"{host}/home"], f"{host}/home")


def test_arguments_of_the_call_win(host: Path) -> None:
    given = complete(user="app", network="none", hostname="node", cwd="/srv")
    assert (given.user, given.network, given.hostname, given.cwd) == ("app", "none", "node", "/srv")
    spec = complete(mounts=[f"/var:{host}/home"]).apply(oci.RuntimeSpec.default(), lambda _: pytest.fail("a name is looked up"))
    assert [mount.source for mount in spec.mounts or () if mount.destination == f"{host}/home"] == ["/var"]


def variables(preset: oci.Preset, env: Any = None) -> dict[str, str]:
    spec = oci.RuntimeSpec.default().at.process.env.set(("PATH=/image/bin", "LANG=image", "TERM=image"))
    changed = complete(preset, env=env).apply(spec, lambda _: pytest.fail("a name is looked up"))
    assert changed.process is not None
    return dict(entry.split("=", 1) for entry in changed.process.env or () if not entry.startswith("PYTEST"))


def test_variables(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the image win over those of the caller, and what the caller sets for the container wins over both."""
    login = {
        "LANG": "host", "TERM": "host", "EDITOR": "vi", "http_proxy": "proxy", "SHELL": "/bin/zsh", "LD_PRELOAD": "/host/lib.so",
        "XDG_RUNTIME_DIR": "/run/user/1", "APPTAINERENV_LANG": "set", "SINGULARITYENV_LANG": "older", "SINGULARITYENV_OTHER": "x",
        "APPTAINERENV_": "y", "TMPDIR": "/missing", "BASH_FUNC_module%%": "() { :; }",
    }  # fmt: skip
    for name, value in login.items():
        monkeypatch.setenv(name, value)
    home = {"HOME": f"{host}/home"}
    clean = {"PATH": "/image/bin", "LANG": "set", "TERM": "host", "OTHER": "x", "http_proxy": "proxy"} | home
    assert variables(NO_PATHS) == clean | {"EDITOR": "vi"}
    assert variables(attrs.evolve(NO_PATHS, environment="clean")) == clean
    assert variables(attrs.evolve(NO_PATHS, environment="image")) == {"PATH": "/image/bin", "LANG": "image", "TERM": "image"} | home
    assert variables(NO_PATHS, {"LANG": "call", "EDITOR": None, "HOME": "/h"}) == clean | {"LANG": "call", "HOME": "/h"}
    monkeypatch.setenv("TMPDIR", f"{host}/scratch")
    assert variables(NO_PATHS)["TMPDIR"] == f"{host}/scratch"
    assert {"TERM", "no_proxy", "HTTPS_PROXY"} <= CLEAN


def test_the_hostname_of_the_host(host: Path) -> None:
    """A container without a UTS namespace of its own has it already."""
    spec = oci.RuntimeSpec.default()
    assert complete().apply(spec, lambda _: pytest.fail("a name is looked up")).hostname == os.uname().nodename
    spec = spec.evolve(hostname=None).without_namespace(oci.spec.NamespaceType.UTS)
    assert complete().apply(spec, lambda _: pytest.fail("a name is looked up")).hostname is None


def mounts(overrides: Overrides) -> dict[str, tuple[str | None, str | None]]:
    return {mount.destination: (mount.type, mount.source) for mount in overrides.mounts or () if isinstance(mount, Mount)}


def test_a_contained_caller(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the caller's directories is shown; the home directory in memory belongs to the program's user."""
    monkeypatch.setenv("TMPDIR", "/tmp")
    home, memory = f"{host}/home", ("tmpfs", "tmpfs")
    given = complete(attrs.evolve(oci.CONTAIN, read_only_binds=()))
    assert mounts(given) == {"/tmp": memory, "/var/tmp": memory, home: memory}
    assert (given.user, given.cwd, given.network) == ("caller", home, "host")
    own = next(mount for mount in given.mounts or () if isinstance(mount, Mount) and mount.destination == home)
    assert own.options == ("nosuid", "nodev", "mode=0700", f"uid={os.getuid()}", f"gid={os.getgid()}")
    others = complete(oci.CONTAIN, user=5).mounts or ()
    assert [mount.options for mount in others if isinstance(mount, Mount) and mount.destination == home] == [
        ("nosuid", "nodev", "mode=1777")
    ]
    monkeypatch.setenv("EDITOR", "vi")
    assert variables(oci.CONTAIN).get("EDITOR") == "vi"
    assert "TMPDIR" not in variables(oci.CONTAIN)
    assert "EDITOR" not in variables(oci.CONTAINALL)
    assert mounts(complete(oci.CONTAIN, mounts=["/srv:/tmp"])) | {"/tmp": ("bind", "/srv")} == mounts(
        complete(oci.CONTAIN, mounts=["/srv:/tmp"])
    )


@pytest.mark.parametrize(
    ("home", "destination", "mount"),
    [
        ("/srv", "/srv", ("bind", "/srv")),
        ("/srv:/home/me", "/home/me", ("bind", "/srv")),
        ("empty:/root", "/root", ("tmpfs", "tmpfs")),
    ],
)
def test_another_home_directory(home: str, destination: str, mount: tuple[str, str], host: Path) -> None:
    preset = attrs.evolve(NO_PATHS, home=home)
    given = complete(preset)
    assert mounts(given) == {destination: mount, f"{host}/home/work": ("bind", f"{host}/home/work")}
    assert given.cwd == f"{host}/home/work"
    assert complete(attrs.evolve(preset, cwd=False)).cwd == destination
    assert variables(preset)["HOME"] == destination
    assert variables(preset, {"HOME": "/other"})["HOME"] == "/other"


@pytest.mark.parametrize("home", ["home", "", "/a:b", "empty:b", "EMPTY"])
def test_a_home_directory_that_is_refused(home: str) -> None:
    with pytest.raises(ValueError, match=r"^home is '.*': True, False, 'empty' or '/source:/destination' is needed$"):
        oci.Preset(home=home)
    with pytest.raises(TypeError, match=r"^home is 5: True, False, 'empty' or '/source:/destination' is needed$"):
        oci.Preset(home=5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("/a", "/a:/a"), ("/a:/b", "/a:/b"), ("a:/b", "{host}/home/work/a:/b"), ("a", "{host}/home/work/a:{host}/home/work/a")],
)
def test_home_of_the_command_line(text: str, expected: str, host: Path) -> None:
    assert parse_home(text) == expected.format(host=host)


@pytest.mark.parametrize("text", [":/a", "/a:b", "/a:/b:/c"])
def test_home_of_the_command_line_that_is_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match=r"is not SOURCE\[:DESTINATION\]"):
        parse_home(text)


def test_a_file_of_variables(tmp_path: Path) -> None:
    (file := tmp_path / "env").write_text("# comment\n\nexport A=1 # one\nB=\"two words\"\nC='$HOME `x`'\nD=a\\$b\nE=\n")
    assert parse_env_file(str(file)) == ["A=1", "B=two words", "C=$HOME `x`", "D=a$b", "E="]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("A=1 B=2", "NAME=VALUE is needed, in quotes if the value has spaces"),
        ("1A=1", "NAME=VALUE is needed"),
        ("A", "NAME=VALUE is needed"),
        ("A=$B", "variables and commands are not expanded; write the value in single quotes"),
        ('A="`date`"', "variables and commands are not expanded"),
        ("A='1", "no closing quotation"),
    ],
)
def test_a_file_of_variables_that_is_refused(line: str, why: str, tmp_path: Path) -> None:
    (file := tmp_path / "env").write_text(f"OK=1\n{line}\n")
    with pytest.raises(ValueError, match=rf"^--env-file '.*/env': line 2: {why}"):
        parse_env_file(str(file))


def preset_of(*words: str) -> oci.Preset | None:
    return changes(parse_args(["run", *words, "image"]))["preset"]  # type: ignore[no-any-return]


def test_options_that_take_from_a_preset(host: Path) -> None:
    assert preset_of() is None
    assert preset_of("-C") == preset_of("--compat") == oci.CONTAINALL
    assert preset_of("-c") == oci.CONTAIN
    assert preset_of("-c", "--cleanenv") == oci.CONTAINALL
    assert preset_of("--home", "/srv") == oci.Preset(home="/srv:/srv")
    assert preset_of("--hpc", "-f") == attrs.evolve(oci.HPC, home=f"{host}/home:/root")
    assert preset_of("-c", "-f") == attrs.evolve(oci.CONTAIN, home="empty:/root")
    assert preset_of("--hpc", "--no-mount", "home,cwd,/dev/shm") == attrs.evolve(
        oci.HPC, home=False, cwd=False, binds=("/tmp", "/var/tmp")
    )
    assert preset_of("--hpc", "--no-mount", "tmp", "--no-mount", "bind-paths,hostfs") == attrs.evolve(
        oci.HPC, binds=("/dev/shm",), read_only_binds=()
    )
    assert preset_of("-c", "--no-mount", "tmp") == attrs.evolve(oci.CONTAIN, tmpfs=())
    assert preset_of("-c", "-W", "w") == attrs.evolve(oci.CONTAIN, home=f"{host}/home/work/w/home:{host}/home")
    assert sorted(os.listdir("w")) == ["home", "tmp", "var_tmp"]
    given = changes(parse_args(["run", "-c", "-W", "w", "-B", "/srv:/tmp", "image"]))
    assert given["mounts"] == [f"{host}/home/work/w/var_tmp:/var/tmp", f"{host}/home/work/w/tmp:/tmp", "/srv:/tmp"]


def test_presets_by_name() -> None:
    assert parse_preset("hpc") is oci.HPC
    assert RunOptions(preset="hpc").preset is oci.HPC
    with pytest.raises(ValueError, match=r"^preset is 'cluster': one of hpc, contain, containall is needed$"):
        RunOptions(preset="cluster")
    with pytest.raises(TypeError, match=r"^preset is 5: a name or a Preset is needed$"):
        RunOptions(preset=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^environment is 'host': one of image, clean, caller is needed$"):
        oci.Preset(environment="host")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("A=1", ["A=1"]),
        ("A=1,B=2", ["A=1", "B=2"]),
        ("LIST=a,b,c", ["LIST=a,b,c"]),
        ("LIST=a,b,B=2", ["LIST=a,b", "B=2"]),
        ("A=,B=", ["A=", "B="]),
        ("A=x=y,1=2", ["A=x=y,1=2"]),
    ],
)
def test_env(value: str, expected: list[str]) -> None:
    assert parse_env([value, "C=3"]) == [*expected, "C=3"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/data", ["/data:/data"]),
        ("/data:/mnt", ["/data:/mnt"]),
        ("/data:/mnt:ro", ["/data:/mnt:ro"]),
        ("/data::ro", ["/data:/data:ro"]),
        ("/a,/b:/c,/d:/e:ro,/f", ["/a:/a", "/b:/c", "/d:/e:ro", "/f:/f"]),
        ("/a:/b:rw,ro,/c", ["/a:/b:rw,ro", "/c:/c"]),
        ("/a,", ["/a:/a"]),
    ],
)
def test_bind(value: str, expected: list[str]) -> None:
    assert parse_binds(value) == expected


def test_bind_of_a_relative_path(host: Path) -> None:
    assert parse_binds("data,data:/mnt") == [f"data:{host}/home/work/data", "data:/mnt"]


@pytest.mark.parametrize("value", [":/mnt", "/data:mnt", "/data:/mnt:exec", "/data:/mnt:ro:x", "/a,ro:b"])
def test_bind_that_is_refused(value: str) -> None:
    with pytest.raises(ArgumentTypeError, match=r"^'.*' is not SOURCE\[:DESTINATION\[:ro\]\]; DESTINATION is an absolute path$"):
        parse_binds(value)


@pytest.mark.parametrize("value", ["", ",", "/a,,/b", f"/{'x' * 5000}", f"/a:/{'x' * 5000}"])
def test_bind_of_a_path_that_cannot_exist(value: str) -> None:
    with pytest.raises(ArgumentTypeError, match=r"^the value is "):
        parse_binds(value)
