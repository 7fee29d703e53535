"""Configs with odd values: each is a plan that can be encoded, or an error that names a JSON path."""

from __future__ import annotations

import json
import os
import warnings
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

import ociruntime as oci
from ociruntime.errors import SpecError, UnsupportedError
from ociruntime.host import Host
from ociruntime.plan.model import UncompiledFilter, encode
from ociruntime.plan.ops import OPS
from ociruntime.spec import RuntimeSpec

from ..support.odd_configs import lay_over, members_without_values, odd_configs
from ..support.plans import HYBRID, PURE_V2, USER
from ..support.whole_documents import objects

EXHAUSTIVE = "OCIRUNTIME_EXHAUSTIVE" in os.environ
"""Whether to try everything, which takes minutes, instead of a part that is the same each time."""
DEFAULT, OF_A_USER = RuntimeSpec.default(), RuntimeSpec.default(rootless=True, uid=1000, gid=1000)
HOSTS = {"v1": (HYBRID, DEFAULT), "v2": (PURE_V2, DEFAULT), "user": (USER, OF_A_USER)}
MAX_MESSAGE = 9000


def check(document: dict[str, Any], host: Host) -> str:
    """Return what is wrong with the outcome of planning a config; empty if nothing is."""
    try:
        plan = oci.Bundle("/bundle", config=json.dumps(document).encode()).plan(host=host)
    except (SpecError, UnsupportedError) as error:
        message = str(error)
        if "$" not in message:
            return f"no JSON path is named: {message[:300]}"
        if len(message) > MAX_MESSAGE:
            return f"the message is too long: {message[:300]}"
        return "" if message.replace("\n  ", "").isprintable() else f"not printable: {message[:300]!r}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    plan.explain()
    plan.to_json()
    for step in plan.steps:
        if step.op in OPS and step.op != "hook" and not any(isinstance(value, UncompiledFilter) for value in step.values):
            encode([(1, step.op, step.values)], 0)  # the engine completes hooks and filters
    return ""


def test_every_member_gets_odd_values() -> None:
    assert members_without_values() == set()


@pytest.mark.parametrize("kind", HOSTS)
def test_one_odd_value(kind: str) -> None:
    host, base = HOSTS[kind]
    tried, faults = 0, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for what, document in odd_configs(base, each=None if EXHAUSTIVE else 2):
            tried += 1
            if fault := check(document, host):
                faults.append(f"{what}: {fault}")
    assert not faults, f"{len(faults)} of {tried}:\n" + "\n".join(faults[:50])
    assert tried > 1000


@pytest.mark.parametrize("kind", HOSTS)
def test_many_odd_values(kind: str) -> None:
    """Whole documents, made up from the classes, alone and laid over the default config."""
    host, spec = HOSTS[kind]
    base: dict[str, Any] = spec.to_dict()

    @settings(
        max_examples=5000 if EXHAUSTIVE else 150, deadline=None, derandomize=not EXHAUSTIVE, suppress_health_check=list(HealthCheck)
    )
    @given(objects(RuntimeSpec))
    def holds(document: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert check(document, host) == ""
            assert check(lay_over(base, document), host) == ""

    holds()
