# SPDX-License-Identifier: Apache-2.0
"""The agent's configuration: a YAML file, and a flag for every key of it. Flags win.

`KEYS` is the one table that the file's validation, the flags, their help and the reference in
docs/ come from. A key `bpf.ct_max` is `ct_max` in the mapping `bpf` of the file, the attribute
`config.bpf.ct_max`, and the flag `--bpf-ct-max`.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from agent import config_values as kinds
from agent.config_model import (
    BpfConfig,
    CniConfig,
    Config,
    HealthConfig,
    IdentityConfig,
    MasqueradeConfig,
    PrometheusConfig,
    RoutingConfig,
    SocketRedirectConfig,
    SourceConfig,
)
from agent.config_values import Kind, Network, PortRange, shown
from agent.kube.text import DocumentError
from agent.kube.yamltext import parse_yaml
from bpf import maps

_MAX_FILE_BYTES = 1 << 20
NODE_PORTS = PortRange(30000, 32767)
"""Of services of type NodePort, unless the API server is told otherwise."""


class ConfigError(Exception):
    """A configuration that cannot be used. `key` is the dotted key, empty for the file itself."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}" if key else message)
        self.key = key
        self.message = message


__all__ = [
    "KEYS",
    "Config",
    "ConfigError",
    "Key",
    "build",
    "click_options",
    "load",
    "parse",
]

# ---- the table of keys -----------------------------------------------------------------------

_REQUIRED = object()


@dataclass(frozen=True, slots=True)
class Key:
    """One key. `default` is the value as in `Config`, or a function that finds it."""

    name: str
    kind: Kind
    help: str
    default: object = _REQUIRED

    @property
    def parameter(self) -> str:
        """Name of the argument that click passes."""
        return self.name.replace(".", "_")

    @property
    def flag(self) -> str:
        return "--" + self.parameter.replace("_", "-")

    @property
    def required(self) -> bool:
        return self.default is _REQUIRED

    def find_default(self) -> object:
        return self.default() if callable(self.default) else self.default


def _host_name() -> str:
    return os.uname().nodename.lower()


_TABLE_SIZE = kinds.whole_number(16, 1 << 24)
_NETWORKS = kinds.list_of(kinds.NETWORK, "a list of networks such as [10.0.0.0/24, fd00:10::/112]")

KEYS: tuple[Key, ...] = (
    Key("node_name", kinds.NODE_NAME, "name of this node (default: the host's name)", _host_name),
    Key(
        "run_dir",
        kinds.SOCKET_FOLDER,
        "folder of the agent's sockets; one agent for each",
        Path("/var/run/bristle"),
    ),
    Key(
        "state_dir",
        kinds.FOLDER,
        "folder of what has to survive a reboot",
        Path("/var/lib/bristle"),
    ),
    Key(
        "bpffs_dir",
        kinds.FOLDER,
        "folder, on a BPF file system, of pinned maps and links",
        Path("/sys/fs/bpf/bristle"),
    ),
    Key(
        "cgroup_root",
        kinds.FOLDER,
        "folder of the cgroup (v2) above all pods, for socket redirect; none: the cgroup2 mount",
        None,
    ),
    Key(
        "pod_cidrs",
        _NETWORKS,
        "networks of pod addresses; none: those that the node has in the cluster",
        (),
    ),
    Key(
        "mtu",
        kinds.whole_number(1280, 65535, zero=True),
        "MTU of pod devices; 0: that of the uplink, or of the default route's device, less 50 for"
        " a tunnel over IPv4 and 70 over IPv6",
        0,
    ),
    Key(
        "devices",
        kinds.list_of(kinds.DEVICE, "a list of device names"),
        "uplinks of this node; none: pods reach only this node",
        (),
    ),
    Key("source.manifests", kinds.FOLDER, "folder of Kubernetes manifests, watched", None),
    Key("source.kubernetes", kinds.KUBERNETES, "API server of a cluster, watched", None),
    Key(
        "routing.mode",
        kinds.choice("none", "native", "tunnel"),
        "how other nodes' pods are reached; none: there is one node",
        "none",
    ),
    Key(
        "routing.tunnel_port",
        kinds.whole_number(1, 65535),
        "UDP port of the VXLAN tunnel, the same on all nodes",
        8472,
    ),
    Key(
        "routing.native_cidrs",
        kinds.list_of(kinds.NETWORK, "a list of networks such as [10.0.0.0/8]"),
        "pod networks that are reached without tunnel all the same",
        (),
    ),
    Key(
        "routing.direct_node_routes",
        kinds.BOOLEAN,
        "a route to each other node's pods by its address; off: the network has its own",
        True,
    ),
    Key(
        "labels",
        kinds.list_of(kinds.LABEL_PREFIX, "a list of label prefixes"),
        "labels that make identities, by prefix; ! excludes",
        (),
    ),
    Key(
        "masquerade.enabled",
        kinds.BOOLEAN,
        "pods reach the outside under the node's address",
        False,
    ),
    Key(
        "masquerade.exclude",
        kinds.list_of(kinds.ANY_NETWORK, "a list of networks such as [10.0.0.0/8, fd00::/8]"),
        "destinations outside the cluster that see pods' own addresses",
        (),
    ),
    Key(
        "masquerade.ports",
        kinds.PORT_RANGE,
        "ports for them, which nothing else on this node uses",
        PortRange(61000, 65535),
    ),
    Key(
        "socket_redirect.enabled",
        kinds.BOOLEAN,
        "messages between pods of this node that ask for it go from socket to socket",
        False,
    ),
    Key(
        "socket_redirect.default",
        kinds.choice("off", "on", "all"),
        "for pods without the annotation bristle.io/socket-redirect; on: sockets that never block"
        " in a call; all: the others, too",
        "off",
    ),
    Key(
        "socket_redirect.force",
        kinds.BOOLEAN,
        "also where the self-test found that this kernel does it wrongly",
        False,
    ),
    Key(
        "socket_redirect.max_sockets",
        _TABLE_SIZE,
        "sockets that take part, two for each connection",
        maps.SOCKETS.max_entries,
    ),
    Key(
        "socket_redirect.unread_max",
        kinds.whole_number(4096, 8 << 20),
        "bytes that may wait in a receiver before the stack is taken, which makes the sender wait",
        1 << 20,
    ),
    Key("bpf.ct_max", _TABLE_SIZE, "tracked connections", maps.CT.max_entries),
    Key("bpf.nat_max", _TABLE_SIZE, "masqueraded connections", maps.NAT.max_entries),
    Key("bpf.policy_max", _TABLE_SIZE, "policy entries", maps.POLICY.max_entries),
    Key("bpf.peers_max", _TABLE_SIZE, "peer prefixes", maps.PEERS.max_entries),
    Key("bpf.endpoints_max", _TABLE_SIZE, "pods of this node", maps.ENDPOINTS.max_entries),
    Key("identity.gc_interval", kinds.DURATION, "time between collections of identities", 60.0),
    Key("identity.grace", kinds.DURATION, "time an unused identity stays", 300.0),
    Key("identity.rest", kinds.DURATION, "time before a freed number is used again", 3600.0),
    Key("log_level", kinds.choice("debug", "info", "warning", "error"), "what is logged", "info"),
    Key("trace", kinds.BOOLEAN, "events for new connections and allowed verdicts too", False),
    Key(
        "cni.conf_dir", kinds.FOLDER, "folder for the container runtime's file; none: no file", None
    ),
    Key("cni.exclusive", kinds.BOOLEAN, "set aside the files of other networks there", False),
    Key(
        "cni.version",
        kinds.choice("0.3.1", "0.4.0", "1.0.0", "1.1.0"),
        "cniVersion of that file",
        "1.0.0",
    ),
    Key(
        "cni.chaining_mode",
        kinds.choice("none", "portmap"),
        "plugin that comes after bristle in that file; portmap: pods' hostPorts",
        "none",
    ),
    Key(
        "cni.bin_dir",
        kinds.FOLDER,
        "folder where the runtime finds plugins; looked into with cni.chaining_mode alone",
        Path("/opt/cni/bin"),
    ),
    Key(
        "health.address",
        kinds.LISTEN_ADDRESS,
        "host:port of /healthz and /readyz; empty: not served",
        None,
    ),
    Key(
        "prometheus.address",
        kinds.LISTEN_ADDRESS,
        "host:port of /metrics and /healthz; empty: not served",
        None,
    ),
)
_BY_NAME = {key.name: key for key in KEYS}
_SECTIONS = frozenset(key.name.partition(".")[0] for key in KEYS if "." in key.name)


# ---- reading ---------------------------------------------------------------------------------


def load(path: Path | str | None, flags: Mapping[str, object] | None = None) -> Config:
    """The configuration from a file and the arguments of `click_options`. Raises ConfigError.

    path: None: everything comes from flags and defaults.
    flags: arguments by `Key.parameter`; None means not given; others are not looked at.
    """
    values = {} if path is None else parse(_read(path))
    values.update(_from_flags(flags or {}))
    return build(values)


def parse(text: bytes) -> dict[str, Any]:
    """The checked values of a file by dotted key. Raises ConfigError."""
    try:
        text.decode("utf-8")
        document = parse_yaml(text)
    except UnicodeDecodeError:
        raise ConfigError("", "the configuration is not UTF-8 text") from None
    except DocumentError as error:
        raise ConfigError("", f"the configuration is no valid YAML: {error}") from None
    values: dict[str, Any] = {}
    for name, value in _flatten(document):
        key = _BY_NAME.get(name)
        if key is None:
            raise ConfigError(name, _unknown(name))
        values[name] = _checked(key, value)
    return values


def build(values: Mapping[str, Any]) -> Config:
    """A Config from checked values by dotted key, defaults filled in. Raises ConfigError."""
    full: dict[str, Any] = {}
    for key in KEYS:
        if key.name in values:
            full[key.name] = values[key.name]
        elif key.required:
            raise ConfigError(key.name, f"is required: {key.kind.expected} ({key.help})")
        elif key.name == "node_name":
            full[key.name] = _checked(key, key.find_default())
        else:
            full[key.name] = key.find_default()
    _check_source(full)
    _check_overlap(full["pod_cidrs"])
    _check_folders(full)
    _check_masquerade(full)
    flat = {name: value for name, value in full.items() if "." not in name}
    return Config(
        **flat,
        source=SourceConfig(**_section(full, "source")),
        routing=RoutingConfig(**_section(full, "routing")),
        masquerade=MasqueradeConfig(**_section(full, "masquerade")),
        socket_redirect=SocketRedirectConfig(**_section(full, "socket_redirect")),
        bpf=BpfConfig(**_section(full, "bpf")),
        identity=IdentityConfig(**_section(full, "identity")),
        cni=CniConfig(**_section(full, "cni")),
        health=HealthConfig(**_section(full, "health")),
        prometheus=PrometheusConfig(**_section(full, "prometheus")),
    )


def _read(path: Path | str) -> bytes:
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError("", f"{path}: {error.strerror}") from error
    if len(text) > _MAX_FILE_BYTES:
        raise ConfigError("", f"{path}: larger than {_MAX_FILE_BYTES} bytes")
    return text


def _flatten(document: object) -> list[tuple[str, object]]:
    """(dotted name, value) for every key; null is the same as absent."""
    found: list[tuple[str, object]] = []
    for name, value in _items(document, ""):
        if name in _SECTIONS:
            found += [(f"{name}.{inner}", deep) for inner, deep in _items(value, name)]
        else:
            found.append((name, value))
    return [(name, value) for name, value in found if value is not None or name not in _BY_NAME]


def _items(mapping: object, name: str) -> list[tuple[str, object]]:
    if mapping is None:
        return []
    if not isinstance(mapping, dict):
        raise ConfigError(name, f"expected a mapping of keys to values, not {shown(mapping)}")
    for key in mapping:
        if not isinstance(key, str):
            raise ConfigError(name, f"key {shown(key)} is no text")
    return list(mapping.items())


def _unknown(name: str) -> str:
    close = get_close_matches(name, _BY_NAME, n=1)
    return f"unknown key; did you mean {close[0]}?" if close else "unknown key"


def _checked(key: Key, value: object) -> object:
    try:
        return key.kind.check(value)
    except ValueError as error:
        raise ConfigError(key.name, str(error)) from None


def _from_flags(flags: Mapping[str, object]) -> dict[str, object]:
    values: dict[str, object] = {}
    for key in KEYS:
        given = flags.get(key.parameter)
        if given is None or given == ():
            continue
        if isinstance(given, tuple):  # the flag may be repeated
            given = ",".join(str(part) for part in given)
        values[key.name] = _checked(
            key, key.kind.from_text(given) if isinstance(given, str) else given
        )
    return values


def _section(full: Mapping[str, Any], name: str) -> dict[str, Any]:
    prefix = name + "."
    return {key[len(prefix) :]: value for key, value in full.items() if key.startswith(prefix)}


def _check_source(full: Mapping[str, Any]) -> None:
    manifests, kubernetes = full["source.manifests"], full["source.kubernetes"]
    if manifests is None and kubernetes is None:
        raise ConfigError("source", "is required: source.manifests or source.kubernetes")
    if manifests is not None and kubernetes is not None:
        raise ConfigError("source", "manifests and kubernetes exclude each other: give one")
    if kubernetes is None and not full["pod_cidrs"]:
        raise ConfigError(
            "pod_cidrs", f"is required without source.kubernetes: {_NETWORKS.expected}"
        )


def _check_overlap(networks: tuple[Network, ...]) -> None:
    for one, other in combinations(networks, 2):
        if one.version == other.version and cast(Any, one).overlaps(other):
            raise ConfigError("pod_cidrs", f"{one} and {other} overlap")


def _check_folders(full: Mapping[str, Any]) -> None:
    """The agent writes into its folders, and removes them at clean-up: each its own."""
    own = ("run_dir", "state_dir", "bpffs_dir", "source.manifests")
    for one, other in combinations(own, 2):
        if full[one] is not None and full[one] == full[other]:
            raise ConfigError(other, f"is the same folder as {one}: {full[other]}")


def _check_masquerade(full: Mapping[str, Any]) -> None:
    if full["masquerade.ports"].overlaps(NODE_PORTS):
        raise ConfigError(
            "masquerade.ports",
            f"{full['masquerade.ports']} overlaps the range of NodePorts, {NODE_PORTS}: choose"
            " ports outside of it",
        )


# ---- flags -----------------------------------------------------------------------------------

_Function = TypeVar("_Function", bound=Callable[..., Any])


def click_options(function: _Function) -> _Function:
    """Adds a flag for every key; the arguments go to `load` as they come.

    Values are checked by `load`, not by click, so that file and flag have the same messages.
    """
    for key in reversed(KEYS):
        text = key.help + _default_text(key)
        if key.kind.flag:
            declaration = f"{key.flag}/{key.flag.replace('--', '--no-', 1)}"
            option = click.option(declaration, key.parameter, default=None, help=text)
        else:
            many = isinstance(key.default, tuple) or key.kind is _NETWORKS
            option = click.option(
                key.flag, key.parameter, type=str, default=None, multiple=many, help=text
            )
        function = option(function)
    return function


def _default_text(key: Key) -> str:
    if key.required:
        return " [required, here or in the file]"
    if callable(key.default) or key.default is None or key.default == ():
        return ""
    return f" [default: {str(key.default).lower() if key.kind.flag else key.default}]"
