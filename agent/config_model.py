# SPDX-License-Identifier: Apache-2.0
"""A complete, valid configuration as the rest of the agent sees it; `agent.config` makes it."""

from dataclasses import dataclass
from pathlib import Path

from agent import config_values as kinds
from agent.config_values import Network, PortRange


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """Where objects come from: one of these two.

    manifests: folder of Kubernetes manifests (standalone mode).
    kubernetes: the API server of a cluster.
    """

    manifests: Path | None
    kubernetes: kinds.Kubernetes | None


@dataclass(frozen=True, slots=True)
class RoutingConfig:
    """How packets get to other nodes' pods.

    mode: `none` (one node only), `native` (routes), `tunnel` (VXLAN).
    tunnel_port: UDP port of the tunnel, the same on all nodes.
    native_cidrs: pod networks that are reached without tunnel all the same.
    direct_node_routes: install a route for each other node that is on a link of this one; False:
        the network between the nodes has routes of its own.
    """

    mode: str
    tunnel_port: int
    native_cidrs: tuple[Network, ...]
    direct_node_routes: bool


@dataclass(frozen=True, slots=True)
class BpfConfig:
    """Sizes of the tables in the kernel, in entries."""

    ct_max: int
    nat_max: int
    policy_max: int
    peers_max: int
    endpoints_max: int


@dataclass(frozen=True, slots=True)
class IdentityConfig:
    """Ageing of identities, in seconds.

    gc_interval: between two collections. grace: how long an identity stays that nothing uses.
    rest: how long the number of a deleted one is not given out again.
    """

    gc_interval: float
    grace: float
    rest: float


@dataclass(frozen=True, slots=True)
class CniConfig:
    """The network configuration that the container runtime reads.

    conf_dir: folder that the agent writes it to once it is ready; None: it writes none.
    exclusive: other networks' files there are set aside, and put back by `cleanup`.
    version: `cniVersion` of the file.
    chaining_mode: `portmap`: the reference plugin of that name comes after bristle and serves pods'
        hostPorts; `none`: bristle alone.
    bin_dir: folder of the runtime's plugins as the agent sees it; looked into where others chain.
    """

    conf_dir: Path | None
    exclusive: bool
    version: str
    chaining_mode: str
    bin_dir: Path


@dataclass(frozen=True, slots=True)
class HealthConfig:
    """address: host and port that /healthz and /readyz are served on; None: on none."""

    address: tuple[str, int] | None


@dataclass(frozen=True, slots=True)
class MasqueradeConfig:
    """Pods' traffic to the outside under the node's address.

    exclude: destinations that see pods as they are, beside what follows from facts. ports: those
    that connections of pods may have then.
    """

    enabled: bool
    exclude: tuple[Network, ...]
    ports: PortRange


@dataclass(frozen=True, slots=True)
class SocketRedirectConfig:
    """Messages of connections within the node, given from socket to socket.

    default: `off`, `on` or `all`, for pods without the annotation. force: also where this kernel
    was found to do it wrongly. max_sockets: two for each connection. unread_max: bytes that may
    wait in a receiver before the stack is taken.
    """

    enabled: bool
    default: str
    force: bool
    max_sockets: int
    unread_max: int


@dataclass(frozen=True, slots=True)
class PrometheusConfig:
    """address: host and port that /metrics and /healthz are served on; None: on none."""

    address: tuple[str, int] | None


@dataclass(frozen=True, slots=True)
class Config:
    """A complete, valid configuration.

    mtu: of pod devices, in bytes; 0: the least of the uplinks', without uplinks that of the default
    route's device, and 1500 without that; less what a tunnel adds.
    pod_cidrs: empty: those of this node's object in the cluster.
    devices: uplinks, whose traffic from outside is guarded; empty: pods reach only this node.
    cgroup_root: the cgroup (v2) above all pods, for socket redirect; None: the cgroup2 mount.
    labels: filter in the form of `identity.labels.LabelFilter.of`; empty: the default filter.
    """

    node_name: str
    run_dir: Path
    state_dir: Path
    bpffs_dir: Path
    cgroup_root: Path | None
    pod_cidrs: tuple[Network, ...]
    mtu: int
    devices: tuple[str, ...]
    source: SourceConfig
    routing: RoutingConfig
    labels: tuple[str, ...]
    masquerade: MasqueradeConfig
    socket_redirect: SocketRedirectConfig
    bpf: BpfConfig
    identity: IdentityConfig
    log_level: str
    trace: bool
    cni: CniConfig
    health: HealthConfig
    prometheus: PrometheusConfig
