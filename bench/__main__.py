# SPDX-License-Identifier: Apache-2.0
"""`python -m bench [AREA...]`: runs areas, prints what they claim, writes bench/results/AREA.json.

Exit status 0: all claims with a bar hold; 1: some do not; 2: an area could not be measured.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import time
import traceback

from bench import report

AREAS = {
    "cni": "CNI ADD against ptp + host-local",
    "datapath": "round trip, throughput, cost of the programs",
    "policy": "compiling policy, and a label change through the loop alone",
    "scale": "10,000 pods and 1,000 policies in a real agent",
    "restart": "agent kills under load",
}
APART = {"soak": "ten minutes of mixed load; only when asked for"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("areas", nargs="*", metavar="AREA", help=", ".join({**AREAS, **APART}))
    parser.add_argument("--list", action="store_true", help="the areas, and what they measure")
    chosen = parser.parse_args()
    if chosen.list:
        for name, text in {**AREAS, **APART}.items():
            print(f"{name:10} {text}")
        return 0
    for name in chosen.areas:
        if name not in AREAS | APART:
            parser.error(f"there is no area {name!r}: choose from {', '.join({**AREAS, **APART})}")
    if os.geteuid() != 0:
        parser.error("benchmarks load BPF programs and make namespaces: run as root")
    # An orderly end by exception removes namespaces, mounts and processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return max([_run(name) for name in chosen.areas or AREAS])


def _run(name: str) -> int:
    facts = report.environment()
    started = time.monotonic()
    try:
        claims = importlib.import_module(f"bench.areas.{name}").run()
    except Exception:
        traceback.print_exc()
        print(f"== {name}: could not be measured", flush=True)
        return 2
    path = report.write(name, claims, time.monotonic() - started, facts)
    print(report.table(name, claims))
    print(f"  ({path.relative_to(report.REPOSITORY)}, {time.monotonic() - started:.0f} s)\n",
          flush=True)  # fmt: skip
    return 1 if any(one.holds is False for one in claims) else 0


if __name__ == "__main__":
    sys.exit(main())
