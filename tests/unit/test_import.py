"""Importing is cheap."""

from __future__ import annotations

import pytest

from ..support.fixture_types import Script

HEAVY = {"attr", "attrs", "cattr", "cattrs", "jsonschema", "cffi", "_cffi_backend", "seccomp", "pyseccomp", "inspect"}


def loaded(script: Script, text: str) -> set[str]:
    return set(script(f"import sys\nbefore = set(sys.modules)\n{text}\nprint(*(set(sys.modules) - before))").stdout.split())


LIGHT = "ociruntime ociruntime.errors ociruntime.store ociruntime.plan ociruntime.cli ociruntime.lifecycle.delete"


@pytest.mark.parametrize("module", LIGHT.split())
def test_nothing_heavy_is_loaded(script: Script, module: str) -> None:
    names = loaded(script, f"import {module}")
    assert module in names
    assert not names & HEAVY


def test_a_start_loads_no_document(script: Script) -> None:
    assert not loaded(script, "import ociruntime.lifecycle.start") & (HEAVY - {"_cffi_backend"})


def test_every_public_name_is_there(script: Script) -> None:
    script("import ociruntime as oci\nfor name in oci.__all__: assert getattr(oci, name) is not None, name\n"
           "assert set(oci.__all__) <= set(dir(oci))")  # fmt: skip


@pytest.mark.parametrize("name", ["spec.Mount", "aio.Container", "image.SifImage", "image.sif.Descriptor", "errors.StepError"])
def test_submodules_need_no_import_of_their_own(script: Script, name: str) -> None:
    script(f"import ociruntime as oci\noci.{name}")


def test_an_unknown_name_is_an_attribute_error() -> None:
    import ociruntime

    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = ociruntime.nothing_of_the_kind
