"""Adds the compiled CPU kernels to a wheel where a compiler is; everything else is in pyproject.toml.

An editable install compiles nothing: the first process that needs the kernels does, once.
"""

import logging
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

# The build backend runs this file without its folder on the path.
sys.path.insert(0, str(Path(__file__).parent))

from parallel.cpu.build import LEVELS, CompileFailed, compile_library

logger = logging.getLogger(__name__)


class BuildWithKernels(build_py):
    """Puts one library per instruction-set level beside the modules."""

    def run(self) -> None:
        """Build; a level that the compiler cannot make is left out, and compiled or done without where it is used."""
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib) / "parallel" / "cpu" / "lib"
        shutil.rmtree(folder, ignore_errors=True)  # what an earlier build of other sources left
        folder.mkdir(parents=True)
        with ThreadPoolExecutor() as compilers:
            for level, compilation in [(level, compilers.submit(compile_library, level, folder)) for level in LEVELS]:
                try:
                    compilation.result()
                except CompileFailed as error:
                    logger.warning("%s kernels are left out: %s", level.name, error)


class WheelOfThisMachine(bdist_wheel):
    """Names the machine in the wheel's tag: libraries run on no other kind."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return any Python 3, no ABI of Python's, this platform."""
        self.root_is_pure = False
        _, _, machine = super().get_tag()
        return "py3", "none", machine


setup(cmdclass={"build_py": BuildWithKernels, "bdist_wheel": WheelOfThisMachine})
