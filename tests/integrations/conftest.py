"""Fixtures of the tests of integrations. Tests whose library is not installed are skipped: the session ``integrations`` has all."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec

import pytest

from ..kernel.conftest import make_sandbox

__all__ = ["make_sandbox"]


@pytest.fixture(scope="session", autouse=True)
def event_loop_of_jupyter() -> None:
    """Make the event loop that jupyter_core keeps until the process ends, before descriptors are counted."""
    if find_spec("jupyter_core") is not None:
        from jupyter_core.utils import run_sync

        run_sync(asyncio.sleep)(0)
