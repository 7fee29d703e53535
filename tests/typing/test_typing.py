"""mypy and pyright, as users run them, know the model: they accept good code and find the slips in bad code."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

import ociruntime

SNIPPETS = Path(__file__).parent / "snippets"
HOME = Path(ociruntime.__file__).parents[1]
MODEL = "base model config process linux seccomp platforms features places"

pytestmark = pytest.mark.slow


def run(module: str, *words: str) -> str:
    """The output of a checker that is a Python package, which looks for types where this process found the package."""
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    tree = "site-packages" not in HOME.parts  # mypy refuses to be told what it knows by itself
    env = os.environ | ({"MYPYPATH": str(HOME), "PYTHONPATH": str(HOME)} if tree else {})
    done = subprocess.run([sys.executable, "-m", module, *words], cwd=SNIPPETS, env=env, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


Found = dict[int, list[str]]
"""Line -> errors."""


def mypy(file: str) -> Found:
    found: Found = {}
    text = run("mypy", "--strict", "--no-pretty", "--hide-error-context", f"--cache-dir={os.devnull}", file)
    for line in text.splitlines():
        match = re.match(rf"{re.escape(file)}:(\d+): (?:error: |note: (?=Possible overload))(.*)", line)
        if match:
            found.setdefault(int(match[1]), []).append(match[2])
        else:
            assert "note:" in line or line.startswith(("Found ", "Success: ")), line
    return found


def pyright(file: str) -> Found:
    found: Found = {}
    report = json.loads(run("pyright", "--outputjson", "--pythonpath", sys.executable, file))
    assert report["summary"]["filesAnalyzed"] == 1
    for problem in report["generalDiagnostics"]:
        if problem["severity"] == "error":
            found.setdefault(problem["range"]["start"]["line"] + 1, []).append(problem["message"])
    return found


CHECKERS = pytest.mark.parametrize("check", [mypy, pyright], ids=["mypy", "pyright"])


@CHECKERS
@pytest.mark.parametrize("file", ["good.py", "good_processes.py"])
def test_good_code_is_accepted(check: Callable[[str], Found], file: str) -> None:
    assert check(file) == {}


@CHECKERS
@pytest.mark.parametrize("file", ["bad.py", "bad_processes.py"])
def test_each_slip_is_found(check: Callable[[str], Found], file: str) -> None:
    lines = (SNIPPETS / file).read_text().splitlines()
    slips = {number: match[1] for number, line in enumerate(lines, 1) if (match := re.search(r"# slip(?:: (\w+))?$", line))}
    found = check(file)
    assert set(found) == set(slips)
    for number, word in slips.items():
        if word and (check is mypy or word.islower()):
            (message,) = found[number]  # one, without a list of overloads
            assert f'"{word}' in message


def test_the_public_model_has_no_any() -> None:
    """Neither the document classes nor the types of their places contain Any."""
    spec = HOME / "ociruntime" / "spec"
    for name in MODEL.split():
        stub, source = spec / f"{name}.pyi", spec / f"{name}.py"
        tree = ast.parse((stub if stub.exists() else source).read_text())
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "Any"], name


def test_the_model_is_typed_throughout() -> None:
    report = json.loads(
        run("pyright", "--outputjson", "--pythonpath", sys.executable, "--ignoreexternal", "--verifytypes", "ociruntime.spec")
    )
    assert report["typeCompleteness"]["completenessScore"] == 1
