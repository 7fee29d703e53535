"""Build the native parts. All other settings of the package are in pyproject.toml."""

import sys
from pathlib import Path

from cffi import FFI
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).parent / "packaging"))
import native


class BuildNative(build_ext):
    """Builds the cffi extension and the static init. Generated files go to the temporary directory of the build."""

    def pre_run(self, extension: Extension, ffi: FFI) -> None:
        """Generate the header of the extension. cffi calls this before it generates the C file."""
        header = native.write_header(Path(self.build_temp))
        extension.include_dirs.append(str(header.parent))
        extension.depends.append(str(header))

    def run(self) -> None:
        super().run()
        root = Path(__file__).parent if self.inplace else Path(self.build_lib)
        native.build_init(root / "ociruntime" / "_native" / "init", Path(self.build_temp))

    def get_outputs(self) -> list[str]:
        return [*super().get_outputs(), str(Path(self.build_lib, "ociruntime", "_native", "init"))]


setup(
    cffi_modules=["packaging/native.py:ffi"],
    cmdclass={"build_ext": BuildNative},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},  # one wheel for every CPython from 3.11 on
)
