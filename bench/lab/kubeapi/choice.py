# SPDX-License-Identifier: Apache-2.0
"""The lab's own API server, or Kubernetes' libraries where the environment says so."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench.lab.apiserver import ApiServer
from bench.lab.kubeapi.processes import binaries
from bench.lab.kubeapi.server import KubeApi

Server = ApiServer | KubeApi


@contextmanager
def open_server(
    *,
    tls: bool = False,
    tokens: Mapping[str, str] | None = None,
    folder: Path | None = None,
    seed: int | None = None,
) -> Iterator[Server]:
    """A server for one test. tls and seed are the lab's; Kubernetes' has TLS in any case."""
    if binaries() is None:
        with ApiServer(tls=tls, tokens=tokens, folder=folder, seed=seed) as own:
            yield own
        return
    # The process id in the name tells tools/cleanup.py whether somebody still needs it.
    with (
        tempfile.TemporaryDirectory(prefix=f"bristle-t-{os.getpid()}-") as place,
        KubeApi(Path(place), tokens=tokens) as real,
    ):
        yield real
