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
from pathlib import Path

from bench import report

AREAS = {
    "cni": "CNI ADD against ptp + host-local",
    "datapath": "round trip, throughput, cost of the programs",
    "latency": "round trips beside UNIX sockets, plain TCP and proxies; chart and report",
    "policy": "compiling policy, and a label change through the loop alone",
    "scale": "10,000 pods and 1,000 policies in a real agent",
    "restart": "agent kills under load",
    "cluster": "several nodes: packets, facts from an API server, outages",
    "listing": "10,000 pods from an API server: time and memory of the source",
}
APART = {
    "redirect_soak": "ten minutes of real programs on redirected sockets",
    "soak": "ten minutes of mixed load; only when asked for",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("areas", nargs="*", metavar="AREA", help=", ".join({**AREAS, **APART}))
    parser.add_argument("--list", action="store_true", help="the areas, and what they measure")
    scale = parser.add_mutually_exclusive_group()
    for name, text in (("quick", "about a minute"), ("full", "the whole matrix")):
        scale.add_argument(f"--{name}", dest="scale", action="store_const", const=name,
                           help=f"latency: {text}")  # fmt: skip
    parser.add_argument("--output", type=Path, help="latency: folder for its files")
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
    return max([_run(name, chosen) for name in chosen.areas or AREAS])


def _run(name: str, chosen: argparse.Namespace) -> int:
    if name == "latency":  # writes more than claims
        return _latency(chosen)
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


def _latency(chosen: argparse.Namespace) -> int:
    from bench.latency import command

    try:
        return command.main(chosen.scale or "default", chosen.output)
    except Exception:
        traceback.print_exc()
        print("== latency: could not be measured", flush=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
