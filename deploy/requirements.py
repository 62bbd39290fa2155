# SPDX-License-Identifier: Apache-2.0
"""Prints what the agent needs at run time, as pip's requirements. Standard library alone.

    python3 deploy/requirements.py [--build] pyproject.toml

--build: what builds the package, too.
"""

import sys
import tomllib
from pathlib import Path

if __name__ == "__main__":
    project = tomllib.loads(Path(sys.argv[-1]).read_text())
    wanted = list(project["project"]["dependencies"])
    if "--build" in sys.argv:
        wanted += project["build-system"]["requires"]
    print("\n".join(wanted))
