"""joblib runs containers in threads and in processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import ociruntime as oci

from ..support.fixture_types import Script

pytest.importorskip("joblib", reason="no joblib; run the session integrations")

pytestmark = pytest.mark.root

# In a process of its own, because loky keeps processes until the interpreter ends.
TEXT = """
import sys
import joblib, ociruntime as oci
backend, rootfs, state = sys.argv[1:]
call = joblib.delayed(oci.run)
calls = [call(rootfs, ["echo", str(number)], capture_output=True, text=True, state_root=state) for number in range(8)]
print(*(result.stdout.strip() for result in joblib.Parallel(n_jobs=2, backend=backend)(calls)))
"""


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_containers(backend: str, busybox_rootfs: Path, state_root: Path, script: Script) -> None:
    assert script(TEXT, backend, busybox_rootfs, state_root).stdout == "0 1 2 3 4 5 6 7\n"
    assert oci.Container.list(state_root=state_root) == []
    assert os.listdir(state_root / ".runs") == []
