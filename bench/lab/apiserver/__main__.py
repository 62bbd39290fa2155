# SPDX-License-Identifier: Apache-2.0
"""The server as a process: `python -m bench.lab.apiserver --listen ADDR:PORT --control PATH`."""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path

from agent.signals import set_on_signals
from bench.lab.apiserver.control import ControlSocket
from bench.lab.apiserver.server import ApiServer


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.lab.apiserver", description="A Kubernetes API server for tests."
    )
    add = parser.add_argument
    add("--listen", default="127.0.0.1:0", metavar="ADDR:PORT", help="port 0: any")
    add("--control", type=Path, required=True, metavar="PATH", help="UNIX socket for tests")
    add("--tls", type=Path, metavar="FOLDER", help="serve HTTPS; certificates are made there")
    add("--name", action="append", default=[], help="further name or address of the certificate")
    add("--token", action="append", default=[], metavar="TOKEN=USER", help="bearer token")
    add("--history", type=int, default=20_000, help="changes kept of each resource")
    add("--bookmark-seconds", type=float, default=60.0, help="between bookmarks")
    add("--establish-seconds", type=float, default=0.0, help="from a definition to its resource")
    add("--no-kubelet", action="store_true", help="deleted pods wait for a second deletion")
    add("--no-watch-list", action="store_true", help="refuse sendInitialEvents")
    return parser


def main() -> int:
    """Serves until SIGTERM or SIGINT."""
    chosen = arguments().parse_args()
    host, _, port = chosen.listen.rpartition(":")
    ended = threading.Event()
    set_on_signals(ended)
    server = ApiServer(
        host.strip("[]"),
        int(port),
        tls=chosen.tls is not None,
        names=chosen.name,
        folder=chosen.tls,
        tokens=dict(entry.rsplit("=", 1) for entry in chosen.token),
        history=chosen.history,
        bookmark_seconds=chosen.bookmark_seconds,
        establish_seconds=chosen.establish_seconds,
        kubelet=not chosen.no_kubelet,
        watch_list=not chosen.no_watch_list,
    )
    with server:
        facts = {"url": server.url, "ca": str(server.ca or "")}
        with ControlSocket(server, chosen.control, facts):
            ended.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
