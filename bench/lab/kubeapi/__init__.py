# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' own API libraries (tools/kubeapi) in the place of the lab's API server.

What belongs here: etcd and the server as processes, and of the lab's operations those that a real
server knows. What never does: faults on purpose; an operation that needs them raises NotOffered.
"""

from bench.lab.kubeapi.processes import binaries
from bench.lab.kubeapi.server import KubeApi, NotOffered

__all__ = ["KubeApi", "NotOffered", "binaries"]
