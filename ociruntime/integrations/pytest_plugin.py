"""A pytest plugin: tests in a sandbox. pytest loads it where the package is installed.

::

    @pytest.mark.oci_image("images/tool.sif", memory="256M")
    def test_tool(sandbox):
        assert sandbox.run(["tool", "--version"], text=True).stdout == "1.0\\n"
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from ..sandbox import Sandbox

__all__ = ["sandbox"]

_MARKER: Final = (
    "oci_image(image, **options): the image of the fixture `sandbox`, relative to the root directory, and keywords of "
    "ociruntime.Sandbox"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the image of tests without a marker to the configuration."""
    parser.addini(
        "oci_image", "image of the fixture `sandbox`, relative to the root directory, for tests without a marker oci_image"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", _MARKER)


@pytest.fixture
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A sandbox of the image that the marker ``oci_image`` names, new for each test and removed after it.

    The image can also be set as ``oci_image`` in the configuration of pytest. Keywords of several markers add up: those of the
    marker that is closest to the test win.
    """
    from .. import Sandbox  # the plugin is loaded in every session of pytest

    image, options = _choice(request)
    with Sandbox(image, **options) as created:
        yield created


def _choice(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Return the image of a test and the keywords of its sandbox. Raises UsageError: an image is missing, or a marker is wrong."""
    image, options = request.config.getini("oci_image"), dict[str, Any]()
    for marker in reversed(list(request.node.iter_markers("oci_image"))):
        if len(marker.args) > 1 or not all(isinstance(name, str | os.PathLike) for name in marker.args):
            raise pytest.UsageError(f"{request.node.nodeid}: oci_image takes the path of one image, and keywords of Sandbox")
        image = os.fspath(marker.args[0]) if marker.args else image
        options |= marker.kwargs
    if not image:
        raise pytest.UsageError(
            f"{request.node.nodeid}: the fixture sandbox has no image; mark the test with oci_image, or set oci_image in the "
            "configuration of pytest"
        )
    return os.path.join(request.config.rootpath, image), options
