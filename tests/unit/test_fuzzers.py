"""A few inputs of each fuzz target, the same every time, and what the driver takes for a finding."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import tracemalloc
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ociruntime import Bundle
from ociruntime.errors import BundleError, ImageError, SpecError, UnsupportedError
from ociruntime.image import Image
from ociruntime.spec import RuntimeSpec
from ociruntime.supervisor.logs import LogRecord, read_log

from ..fuzz import driver
from ..fuzz.driver import Finding, Target, attempt, fuzz
from ..fuzz.targets import TARGETS
from ..support.fixture_types import Script
from ..support.images import MANIFEST_TYPE, tar_of
from ..support.places import REPO

INPUTS = {"layout": 100, "config": 100}


@pytest.mark.parametrize("name", TARGETS)
def test_target(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "signatures":
        pytest.importorskip("cryptography")
    if name == "cdi":
        pytest.importorskip("yaml")
    monkeypatch.chdir(tmp_path)
    inputs = INPUTS.get(name, 400)
    with TARGETS[name]() as target:
        tried, accepted = fuzz(name, target, 7, inputs=inputs, seconds=600)
    assert tried == inputs
    assert accepted > 0
    assert os.listdir(tmp_path) == []


def _leave_open(data: bytes) -> bool:
    os.open(os.devnull, os.O_RDONLY)
    return True


def _use_memory(data: bytes) -> bool:
    return len(bytearray(driver.MEMORY_LIMIT + 1)) > 0


def _wait(data: bytes) -> bool:
    signal.pause()
    return True


def _compute(data: bytes) -> bool:
    while True:
        pass


def _refuse(data: bytes) -> bool:
    raise BundleError("\x1b[0m")


@pytest.mark.parametrize(
    ("exercise", "message"),
    [
        (_leave_open, "file descriptors stay open"),
        (_use_memory, "bytes of memory"),
        (_wait, "or 0 seconds"),
        (_compute, "more than 0 seconds of CPU time"),
        (_refuse, "not printable"),
    ],
)
def test_findings(exercise: Callable[[bytes], bool], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    limits: dict[Callable[[bytes], bool], str] = {_wait: "WAIT_LIMIT", _compute: "TIME_LIMIT"}
    if limit := limits.get(exercise):
        monkeypatch.setattr(driver, limit, 0.05)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(Finding, match=message) as caught:
        fuzz("x", Target(lambda rng: b"%d" % rng.randrange(1000), exercise), 5, inputs=10, seconds=600)
    for fd in set(os.listdir("/proc/self/fd")) - before:
        if os.path.exists(f"/proc/self/fd/{fd}"):
            os.close(int(fd))
    (path,) = tmp_path.iterdir()
    assert path.read_bytes().isdigit()
    assert caught.value.__notes__ == [f"input 0 of seed 5: ./run fuzz -- x --replay {path}"]
    assert not tracemalloc.is_tracing()


def test_inputs_depend_on_the_seed_and_their_number_alone() -> None:
    seen: list[bytes] = []

    def exercise(data: bytes) -> bool:
        seen.append(data)
        return True

    target = Target(lambda rng: rng.randbytes(8), exercise)
    fuzz("x", target, 1, inputs=4, seconds=600)
    fuzz("x", target, 1, inputs=1, seconds=600, first=3)
    assert seen[3] == seen[4]
    assert len(set(seen)) == 4
    assert attempt(target, b"x")


INPUTS_OF_A_SEED = """
import sys
sys.path.append(sys.argv[1])
from tests.unit.test_fuzzers import inputs_of_a_seed
print(*map(inputs_of_a_seed, sys.argv[2:]))
"""


def inputs_of_a_seed(name: str) -> str:
    with TARGETS[name]() as target:
        return hashlib.sha256(b"".join(target.generate(random.Random(f"5 {number}")) for number in range(5))).hexdigest()


def test_inputs_are_the_same_in_another_process(script: Script) -> None:
    """Otherwise the seed of a finding does not bring it back."""
    names = [name for name in TARGETS if name != "signatures" or find_spec("cryptography")]
    assert script(INPUTS_OF_A_SEED, REPO, *names).stdout.split() == [inputs_of_a_seed(name) for name in names]


@pytest.mark.parametrize(
    "line",
    [
        '{"time": 5, "stream": "stdout", "log": "x"}',
        '{"time": "2024-01-01T00:00:00Z", "stream": ["stdout"], "log": "x"}',
        '{"time": "2024-01-01T00:00:00Z", "stream": "stdout", "log": true}',
        "[" * 100_000,
    ],
    ids=["time", "stream", "log", "deep"],
)
def test_an_odd_line_of_a_log_is_left_out(tmp_path: Path, line: str) -> None:
    """A program in the container may be able to write to its log."""
    good = '{"time": "2024-01-01T00:00:00Z", "stream": "stdout", "log": "good"}'
    (tmp_path / "log").write_text(f"{line}\n{good}\n")
    items = read_log(str(tmp_path / "log"), "json", rotated=False, since=None, tail=None, stream=None)
    assert next(items) == LogRecord(1_704_067_200 * 10**9, "stdout", "good")
    items.close()


@pytest.mark.parametrize(
    "when", ["0999-12-31T23:59:59.000000001Z", "0001-01-01T00:00:00.000000000Z", "9999-12-31T23:59:59.999999999Z"]
)
def test_times_of_a_log_have_four_digits_of_the_year(tmp_path: Path, when: str) -> None:
    log = tmp_path / "log"
    log.write_text(f"{when} stdout F line\n")
    items = read_log(str(log), "kubernetes", rotated=False, since=None, tail=None, stream=None)
    record = next(items)
    items.close()
    assert record is not None
    assert record.stamp == when


def test_names_in_a_docker_archive_are_escaped(tmp_path: Path) -> None:
    """The message about them may be shown on a terminal."""
    images = [{"Config": "c", "RepoTags": ["a\x1b[2J"], "Layers": []}, {"Config": "c", "RepoTags": ["b"], "Layers": []}]
    (tmp_path / "a.tar").write_bytes(tar_of({"manifest.json": json.dumps(images).encode()}))
    with pytest.raises(ImageError, match=r"holds 2 images; .* there are: a\\x1b\[2J, b"):
        Image.open(tmp_path / "a.tar")


def test_names_in_an_index_are_escaped(tmp_path: Path) -> None:
    manifests = [{"mediaType": MANIFEST_TYPE, "digest": f"sha256:\x1b{number}", "size": 1} for number in range(2)]
    index = json.dumps({"schemaVersion": 2, "manifests": manifests}).encode()
    (tmp_path / "a.tar").write_bytes(tar_of({"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index}))
    with pytest.raises(ImageError) as caught:
        Image.open(tmp_path / "a.tar")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("path", "message"), [("a\0b", "a NUL byte"), ("a\ud800", "")])
def test_a_root_that_no_path_can_name(path: str, message: str) -> None:
    document = RuntimeSpec.default().to_dict()
    document["root"] = {"path": path}
    with pytest.raises(SpecError, match=rf"\$\.root\.path: {message}"):
        Bundle("/bundle", config=json.dumps(document).encode()).plan()


def test_a_limit_that_linux_does_not_have() -> None:
    """Without a linux object the rules of another platform may hold, but the plan is for Linux."""
    document: dict[str, Any] = RuntimeSpec.default().to_dict()
    del document["linux"]
    document["process"]["rlimits"] = [{"type": "-1", "soft": 1, "hard": 1}]
    with pytest.raises(UnsupportedError, match=r"\$\.process\.rlimits\[0\]\.type: '-1' is not a resource limit of Linux"):
        Bundle("/bundle", config=json.dumps(document).encode()).plan()
