# SPDX-License-Identifier: Apache-2.0
"""An API server for tests: the Kubernetes REST API over HTTP(S), as strict as a real one.

What belongs here: the API's own behaviour, for the kinds that a node agent reads and writes and for
custom resources; faults on purpose; a journal of requests. What never does: controllers beyond the
collection of what has lost its owner or namespace, assertions (they are the tests'), and anything
that lets through what a real server refuses. Nothing here imports the agent.

    with ApiServer() as server:                  # in this process
        server.load(pods)
        ...                                      # clients use server.url
        server.compact()
        server.break_watches("reset")

    with ApiServerProcess(folder, "10.0.0.1", 6443, wrap=namespace.argv, tls=True) as server:
        ...                                      # the same operations, in another process

From the wire inwards: listener, http, service, routes, handler; then cluster, deletion, definitions
and apply, which hold the meaning; then store. kinds and the modules with `rules` in their names say
what each kind demands.
"""

from bench.lab.apiserver.client import ApiServerProcess, ControlClient
from bench.lab.apiserver.errors import ApiError
from bench.lab.apiserver.kubeconfig import write_kubeconfig, write_service_account
from bench.lab.apiserver.server import ApiServer

__all__ = [
    "ApiError",
    "ApiServer",
    "ApiServerProcess",
    "ControlClient",
    "write_kubeconfig",
    "write_service_account",
]
