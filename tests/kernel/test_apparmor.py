"""AppArmor: the process and further ones run under their profile, and one that is not loaded is an error (config.md#linux-process)."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.spec import RuntimeSpec

from ..support.fixture_types import MakeBundle
from ..support.users import VARIANTS

ACTIVE = "apparmor" in oci.Host.probe().lsms
pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.skipif(not ACTIVE, reason="AppArmor is not active here")]
LABEL = "cat /proc/self/attr/apparmor/current"


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A profile that allows everything but to write /tmp/forbidden."""
    name = f"ociruntime-test-{secrets.token_hex(4)}"
    path = tmp_path_factory.mktemp("apparmor") / name
    rules = "file, capability, network, signal, unix, ptrace, mount, umount, pivot_root, deny /tmp/forbidden w,"
    path.write_text(f"profile {name} flags=(attach_disconnected) {{ {rules} }}\n")
    subprocess.run(["apparmor_parser", "--skip-cache", "--add", path], check=True)
    yield name
    subprocess.run(["apparmor_parser", "--remove", path], check=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_process_runs_under_its_profile(
    make_bundle: MakeBundle, state_root: Path, prefix: str, profile: str, variant: str
) -> None:
    spec = VARIANTS[variant](RuntimeSpec.default()).at.process.apparmor_profile.set(profile)
    bundle = make_bundle(spec.with_args(["sh", "-c", f"{LABEL}; touch /tmp/allowed && touch /tmp/forbidden"]))
    (bundle.rootfs / "tmp").chmod(0o1777)
    done = oci.run(bundle, capture_output=True, text=True, state_root=state_root, container_id=prefix)
    assert done.stdout == f"{profile} (enforce)\n"
    assert "/tmp/forbidden: Permission denied" in str(done.stderr)


def test_further_processes_have_the_profile_of_the_config_or_their_own(
    make_bundle: MakeBundle, state_root: Path, prefix: str, profile: str
) -> None:
    spec = RuntimeSpec.default().at.process.apparmor_profile.set(profile).with_args(["sleep", "100"])
    with oci.Container.create(prefix, make_bundle(spec), state_root=state_root) as container:
        # The init at the gate is not the container's program: it still has to do what the profile need not allow.
        assert Path(f"/proc/{container.pid}/attr/apparmor/current").read_text() == "unconfined\n"
        container.start()
        assert Path(f"/proc/{container.pid}/attr/apparmor/current").read_text() == f"{profile} (enforce)\n"
        words = ["sh", "-c", LABEL]
        assert container.exec(words, capture_output=True, text=True).stdout == f"{profile} (enforce)\n"
        assert container.exec(words, capture_output=True, text=True, apparmor_profile="unconfined").stdout == "unconfined\n"
        with pytest.raises(oci.StepError, match=r"label .*no profile of this name is loaded"):
            container.exec(words, apparmor_profile="no-such-profile")
        assert container.status is oci.Status.RUNNING


@pytest.mark.parametrize("make", [oci.Container.create, oci.Container.run])
def test_a_profile_that_is_not_loaded_is_an_error_of_create(
    make_bundle: MakeBundle, state_root: Path, prefix: str, make: Callable[..., oci.Container]
) -> None:
    bundle = make_bundle(RuntimeSpec.default().at.process.apparmor_profile.set("no-such-profile").with_args(["true"]))
    with pytest.raises(oci.StepError, match=r"no-such-profile.*no profile of this name is loaded") as caught:
        make(prefix, bundle, state_root=state_root)
    assert caught.value.op == "label"
    assert oci.Container.list(state_root=state_root) == []


def test_on_the_command_line(make_bundle: MakeBundle, state_root: Path, prefix: str, profile: str) -> None:
    bundle = make_bundle(RuntimeSpec.default().with_args(["sleep", "100"]))
    command = [sys.executable, "-P", "-m", "ociruntime", "--root", str(state_root)]
    with oci.Container.run(prefix, bundle, state_root=state_root):
        given = [*command, "exec", "--apparmor"]
        done = subprocess.run([*given, profile, prefix, "sh", "-c", LABEL], capture_output=True, text=True)
        assert done.stdout == f"{profile} (enforce)\n", done.stderr
        done = subprocess.run([*given, "no-such-profile", prefix, "true"], capture_output=True, text=True)
        assert done.returncode != 0
        assert done.stderr.count("\n") == 1
        assert "no profile of this name is loaded" in done.stderr
