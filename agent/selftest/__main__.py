# SPDX-License-Identifier: Apache-2.0
"""`python -m agent.selftest WORK_DIR CGROUP`: makes all checks, prints their outcomes as JSON.

Ends with status 0 whatever they found; otherwise the last line on standard error says why not.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from agent.kernel.loader import LoadError
from agent.kernel.maps import MapError
from agent.kernel.socket_redirect import RedirectUnavailable
from agent.kernel.syscall import BpfError
from agent.selftest import CGROUP
from agent.selftest.checks import CHECKS
from agent.selftest.stage import Stage


def main(work_dir: Path, cgroup: Path) -> int:
    try:
        with Stage(work_dir, cgroup / f"{CGROUP}{os.getpid()}") as stage:
            outcomes = [check.run(stage) for check in CHECKS]
    except (RedirectUnavailable, LoadError, MapError, BpfError, OSError) as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        return 1
    print(json.dumps([asdict(one) for one in outcomes]))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
