"""Builds the native parts; everything else about the package stands in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext


class BuildNative(build_ext):
    """Builds the cffi extension and, beside it, the static init."""

    def run(self) -> None:
        import sys

        sys.path.insert(0, str(Path(__file__).parent / "ociruntime" / "_native"))
        from build import build_init

        super().run()
        root = Path(__file__).parent if self.inplace else Path(self.build_lib)
        build_init(root / "ociruntime" / "_native" / "init")

    def get_outputs(self) -> list[str]:
        return [*super().get_outputs(), str(Path(self.build_lib, "ociruntime", "_native", "init"))]


setup(cffi_modules=["ociruntime/_native/build.py:ffi"], cmdclass={"build_ext": BuildNative})
