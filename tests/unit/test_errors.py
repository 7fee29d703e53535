"""Errors and results come through pickle as they are, so that process pools can hand them over."""

from __future__ import annotations

import copy
import errno
import pickle
import subprocess
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.errors import naming
from ociruntime.spec import Problem

RESULT: oci.Result[bytes] = oci.Result(("x",), 3, b"out", b"err", 0.5, False, oci.Usage(1.0, 2.0, 3.0, 4))


def test_a_result_is_a_value() -> None:
    again = pickle.loads(pickle.dumps(RESULT))
    assert again == RESULT
    assert type(again) is oci.Result
    assert hash(again) == hash(RESULT)
    with pytest.raises(AttributeError):
        RESULT.stdout = b""  # type: ignore[misc]


@pytest.mark.parametrize(
    "error",
    [
        oci.SpecError([Problem("$.x", "is bad", "config.md")], "config.json"),
        oci.SifError("is bad", field="magic", descriptor=3, path="/x"),
        oci.ImagePathError(21, "x.sif: /etc: is a directory", "/etc"),
        oci.ImagePathNotFound(2, "x.sif: /no: no such file or directory", "/no"),
        oci.SignatureError("bad", reason="changed", signature=3, object_id=1, group=1, fingerprint="ab", path="/x"),
        oci.BundleError("bad"),
        oci.UnsupportedError("bad"),
        oci.ContainerNotFound("c", "/root"),
        oci.ContainerExists("c", "/root"),
        oci.WrongStatus("c", "kill", "stopped", "running"),
        oci.HostError("cannot run x", OSError(24, "Too many open files", "/x")),
        oci.StepError(2, step=1, total=2, op="mkdir", text="/x", cause="why", remedy="help", detail="words"),
        oci.HookError("failed", kind="prestart", path="/hook", returncode=3, output="text"),
        oci.ProcessError("ended with 3", RESULT),
        oci.ProcessTimeout(("x", "y"), 1.5, RESULT),
        oci.ProcessTimeout("container 'x'", 2),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors(error: oci.OCIRuntimeError) -> None:
    assert repr(error) == f"{type(error).__name__}({str(error)!r})"
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert (str(again), again.args, again.__dict__) == (str(error), error.args, error.__dict__)
        assert getattr(again, "errno", None) == getattr(error, "errno", None)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"returncode": 4, "stderr": b"first\nlast\xff\n"}, "'x' ended with 4: first\nlast\ufffd"),
        ({"returncode": 4, "stdout": "out", "stderr": ""}, "'x' ended with 4: out"),
        ({"returncode": -15}, "'x' was killed by SIGTERM"),
        ({"returncode": -40}, "'x' was killed by signal 40"),
        ({"returncode": -9, "oom_killed": True}, "'x' was killed by SIGKILL for lack of memory"),
        ({"returncode": -9, "stdout": b"a\nb\nc\nd\ne\nf"}, "'x' was killed by SIGKILL: b\nc\nd\ne\nf"),
        ({"returncode": 1, "stderr": "y" * 100_000}, "'x' ended with 1: ..." + "y" * 2000),
    ],
)
def test_what_a_check_says(fields: dict[str, Any], words: str) -> None:
    result: oci.Result[Any] = oci.Result(("x",), **fields)
    with pytest.raises(oci.ProcessError) as caught:
        result.check_returncode()
    assert str(caught.value) == words
    assert caught.value.result is result
    assert isinstance(caught.value, subprocess.CalledProcessError)
    assert (caught.value.returncode, caught.value.cmd) == (result.returncode, result.args)
    assert (caught.value.stdout, caught.value.stderr) == (result.stdout, result.stderr)


def test_what_a_timeout_says() -> None:
    error = oci.ProcessTimeout(("x", "y"), 1.5, oci.Result(("x", "y"), -9, b"out\n", b""))
    assert isinstance(error, TimeoutError)
    assert isinstance(error, subprocess.TimeoutExpired)
    assert (error.errno, error.timeout, error.cmd, error.stdout, error.stderr) == (errno.ETIMEDOUT, 1.5, ("x", "y"), b"out\n", b"")
    assert str(error) == "'x y' took longer than 1.5 s and was killed: out"
    assert str(oci.ProcessTimeout("container 'c'", 2)) == "container 'c' still runs after 2 s"


def refusing(code: int) -> None:
    raise OSError(code, "as Python says it", "/x")


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOSPC, errno.ENOSYS, errno.EPERM, errno.ECONNABORTED])
def test_what_the_host_refuses(code: int) -> None:
    """It names what the call is about, and remains the error that Python has for it."""
    with pytest.raises(oci.HostError, match=r"^cannot make it: .*: /x; ") as caught:
        naming(lambda _: "cannot make it")(refusing)(code)
    assert (caught.value.errno, caught.value.filename, caught.value.subject) == (code, "/x", "cannot make it")
    assert isinstance(caught.value, PermissionError) == (code == errno.EPERM)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES, errno.EEXIST])
def test_what_the_caller_has_named_wrongly(code: int) -> None:
    """It remains the error of Python."""
    with pytest.raises(OSError, match="as Python says it") as caught:
        naming(lambda _: "cannot make it")(refusing)(code)
    assert not isinstance(caught.value, oci.OCIRuntimeError)
