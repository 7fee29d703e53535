"""The fixture `sandbox` and the marker `oci_image`, in sessions of pytest that use the plugin."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

PLUGIN = ("-p", "ociruntime.integrations.pytest_plugin", "-p", "no:cacheprovider", "--strict-markers")


@pytest.fixture
def session(pytester: pytest.Pytester, busybox_rootfs: Path, state_root: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A session of pytest with an image in its root directory."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("STATE", str(state_root))
    os.symlink(busybox_rootfs, pytester.path / "image")
    return pytester


def run(session: pytest.Pytester, text: str) -> pytest.RunResult:
    session.makepyfile("import os, pytest\nSTATE = os.environ['STATE']\n" + text)
    return session.runpytest_subprocess(*PLUGIN)


def test_a_sandbox_for_each_test(session: pytest.Pytester) -> None:
    text = """
@pytest.mark.oci_image("image", state_root=STATE)
@pytest.mark.parametrize("number", [1, 2])
def test_new(sandbox, number):
    assert sandbox.shell("ls /new; echo > /new; echo done", text=True).stdout == "done\\n"
    assert os.listdir(STATE + "/.runs")

def test_gone():
    assert not os.listdir(STATE + "/.runs")
"""
    run(session, text).assert_outcomes(passed=3)


def test_keywords_of_several_markers(session: pytest.Pytester) -> None:
    text = """
pytestmark = pytest.mark.oci_image("image", state_root=STATE, env={"A": "module"}, hostname="named")

@pytest.mark.oci_image(env={"A": "test"})
def test_both(sandbox):
    assert sandbox.shell("echo $A; hostname", text=True).stdout == "test\\nnamed\\n"
"""
    run(session, text).assert_outcomes(passed=1)


def test_the_configuration_names_the_image(session: pytest.Pytester) -> None:
    session.makeini("[pytest]\noci_image = image\n")
    text = """
@pytest.mark.oci_image(state_root=STATE)
def test_it(sandbox):
    assert sandbox.run(["true"]).returncode == 0
"""
    run(session, text).assert_outcomes(passed=1)


def test_no_image(session: pytest.Pytester) -> None:
    result = run(session, "def test_it(sandbox): pass")
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*test_it: the fixture sandbox has no image; mark the test with oci_image, *"])


def test_a_wrong_marker(session: pytest.Pytester) -> None:
    result = run(session, "@pytest.mark.oci_image('a', 'b')\ndef test_it(sandbox): pass")
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*test_it: oci_image takes the path of one image, and keywords of Sandbox*"])


def test_the_marker_is_listed(session: pytest.Pytester) -> None:
    session.runpytest_subprocess(*PLUGIN, "--markers").stdout.fnmatch_lines(
        ["@pytest.mark.oci_image(image, [*][*]options): the image of*"]
    )


def test_nothing_is_imported_before_it_is_used(session: pytest.Pytester) -> None:
    text = """
import sys
def test_it():
    assert not {name for name in sys.modules if name.startswith(("ociruntime.sandbox", "attrs", "cffi"))}
"""
    run(session, text).assert_outcomes(passed=1)
