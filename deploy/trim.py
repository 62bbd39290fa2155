# SPDX-License-Identifier: Apache-2.0
"""Takes out of the image's environment what nobody runs there. Standard library alone.

    python3 trim.py SITE-PACKAGES PACKAGE...

PACKAGE: ours, which keep their sources, so that a traceback shows their lines. Of the others the
compiled modules are enough: the sources of the Kubernetes client alone are 45 MB, and its
docstrings 6 MB. Its twin for asyncio, with aiohttp, is not used at all.
"""

import compileall
import py_compile
import shutil
import sys
from pathlib import Path

UNUSED = ("kubernetes/aio", "numpy/distutils", "numpy/f2py", "numpy/testing/tests")
TEST_FOLDERS = ("test", "tests")
NO_DOCSTRINGS = ("kubernetes",)
BUILD_FILES = (".a", ".c", ".h", ".pxd", ".pyi", ".pyx")


def main() -> int:
    """Exit status 1 if a module does not compile."""
    site, ours = Path(sys.argv[1]), set(sys.argv[2:])
    for name in UNUSED:
        shutil.rmtree(site / name, ignore_errors=True)
    for folder in sorted(site.iterdir()):
        if not folder.is_dir() or folder.name.endswith(".dist-info"):
            continue
        for found in [path for path in folder.rglob("__pycache__") if path.is_dir()]:
            shutil.rmtree(found)
        if folder.name in ours:
            # By content, not by time: whatever unpacks the image, they are never compiled again.
            mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
            if not compileall.compile_dir(folder, quiet=1, invalidation_mode=mode):
                return 1
            continue
        for found in [path for path in folder.rglob("*") if path.is_dir()]:
            if found.name in TEST_FOLDERS:
                shutil.rmtree(found, ignore_errors=True)
        for path in [path for path in folder.rglob("*") if path.suffix in BUILD_FILES]:
            path.unlink()
        # A file that this Python cannot read is left as it is: some are for others.
        level = 2 if folder.name in NO_DOCSTRINGS else 0
        compileall.compile_dir(folder, quiet=2, legacy=True, optimize=level)
        for path in folder.rglob("*.py"):
            if path.with_suffix(".pyc").exists():
                path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
