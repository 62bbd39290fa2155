# SPDX-License-Identifier: Apache-2.0
"""The configuration: file and flags, and an error with the key's name for everything wrong."""

from dataclasses import fields
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from agent.config import KEYS, Config, ConfigError, build, click_options, load, parse
from agent.config_model import SocketRedirectConfig
from agent.config_values import Kubernetes, PortRange

_MINIMUM = {"pod_cidrs": ["10.0.0.0/24"], "source": {"manifests": "/etc/manifests"}}
_EVERYTHING: dict[str, Any] = {
    "node_name": "node-1",
    "run_dir": "/run/b",
    "state_dir": "/var/lib/b",
    "bpffs_dir": "/sys/fs/bpf/b",
    "cgroup_root": "/sys/fs/cgroup",
    "pod_cidrs": ["10.0.0.0/24", "10.0.1.0/24", "fd00:10::/112"],
    "mtu": 1400,
    "devices": ["eth0", "eth1.5"],
    "source": {"manifests": "/etc/manifests"},
    "labels": ["k8s:app", "!k8s:version"],
    "routing": {
        "mode": "tunnel",
        "tunnel_port": 4789,
        "native_cidrs": ["10.0.0.0/8"],
        "direct_node_routes": True,
    },
    "masquerade": {
        "enabled": True,
        "exclude": ["0.0.0.0/0", "192.0.2.1/32", "fd00::/8"],
        "ports": "40000-49999",
    },
    "socket_redirect": {
        "enabled": True,
        "default": "all",
        "force": True,
        "max_sockets": 5000,
        "unread_max": 65536,
    },
    "bpf": {
        "ct_max": 1000,
        "nat_max": 1500,
        "policy_max": 2000,
        "peers_max": 3000,
        "endpoints_max": 4000,
    },
    "identity": {"gc_interval": "1m30s", "grace": 600, "rest": "2h"},
    "log_level": "debug",
    "trace": True,
    "cni": {
        "conf_dir": "/etc/cni/net.d",
        "exclusive": True,
        "version": "0.4.0",
        "chaining_mode": "portmap",
        "bin_dir": "/usr/lib/cni",
    },
    "health": {"address": ":9879"},
    "prometheus": {"address": "[::1]:9962"},
}
_CLUSTER = {"source": {"kubernetes": {"kubeconfig": "/etc/kubeconfig"}}}


def text_of(document: object) -> bytes:
    return yaml.safe_dump(document).encode()


def read(**changes: Any) -> Config:
    return build(parse(text_of({**_MINIMUM, **changes})))


def test_every_key_of_the_file() -> None:
    config = build(parse(text_of(_EVERYTHING)))
    assert config.node_name == "node-1"
    assert config.run_dir == Path("/run/b")
    assert config.cgroup_root == Path("/sys/fs/cgroup")
    assert config.pod_cidrs == tuple(map(ip_network, _EVERYTHING["pod_cidrs"]))
    assert (config.mtu, config.devices, config.trace) == (1400, ("eth0", "eth1.5"), True)
    assert config.source.manifests == Path("/etc/manifests")
    assert (config.routing.mode, config.routing.tunnel_port) == ("tunnel", 4789)
    assert config.routing.native_cidrs == (ip_network("10.0.0.0/8"),)
    assert config.labels == ("k8s:app", "!k8s:version")
    assert config.socket_redirect == SocketRedirectConfig(True, "all", True, 5000, 65536)
    assert (config.bpf.ct_max, config.bpf.endpoints_max) == (1000, 4000)
    assert config.masquerade.enabled and config.masquerade.ports == PortRange(40000, 49999)
    assert config.masquerade.exclude == tuple(map(ip_network, _EVERYTHING["masquerade"]["exclude"]))
    assert (config.identity.gc_interval, config.identity.rest) == (90.0, 7200.0)
    assert config.prometheus.address == ("::1", 9962)


def test_the_table_of_keys_and_the_dataclasses_agree() -> None:
    config = build(parse(text_of(_MINIMUM)))
    names = set()
    for field in fields(Config):
        value = getattr(config, field.name)
        inner = getattr(value, "__dataclass_fields__", None)
        names |= {f"{field.name}.{name}" for name in inner} if inner else {field.name}
    assert names == {key.name for key in KEYS}


@click.command()
@click_options
def command(**flags: Any) -> None:
    print(load(None, flags))


def _flags(document: dict[str, Any], prefix: str = "-") -> list[str]:
    arguments = []
    for name, value in document.items():
        flag = f"{prefix}-{name.replace('_', '-')}"
        if isinstance(value, dict):
            arguments += _flags(value, flag)
        elif isinstance(value, bool):
            arguments.append(flag if value else flag.replace("--", "--no-"))
        elif isinstance(value, list):
            arguments += [flag, ",".join(value[:2]), *(a for v in value[2:] for a in (flag, v))]
        else:
            arguments += [flag, str(value)]
    return arguments


def test_every_key_is_a_flag_with_the_same_meaning() -> None:
    arguments = _flags(_EVERYTHING)
    # The two sources exclude each other.
    given = {a for a in arguments if a.startswith("--")} | {"--source-kubernetes"}
    assert given == {key.flag for key in KEYS}
    result = CliRunner().invoke(command, arguments)
    assert result.exception is None
    assert result.output == f"{build(parse(text_of(_EVERYTHING)))}\n"


def test_a_cluster_needs_no_networks_of_its_own() -> None:
    config = build(parse(text_of(_CLUSTER)))
    assert config.source.kubernetes == Kubernetes(Path("/etc/kubeconfig"))
    assert config.pod_cidrs == () and config.source.manifests is None
    flags = {"source_kubernetes": "/etc/kubeconfig"}
    assert load(None, flags) == config
    inside = load(None, {"source_kubernetes": "in-cluster"})
    assert inside.source.kubernetes == Kubernetes()
    assert str(inside.source.kubernetes) == "in-cluster"


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(text_of(_EVERYTHING))
    flags = {"mtu": "0", "trace": False, "bpf_ct_max": "16", "devices": ("",), "node_name": None}
    config = load(file, flags)
    assert (config.mtu, config.trace, config.bpf.ct_max) == (0, False, 16)
    assert (config.devices, config.node_name) == ((), "node-1")


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"nodename": "x"}, "nodename", "did you mean node_name?"),
        ({"bpf": {"ct": 5}}, "bpf.ct", "unknown key; did you mean"),
        ({"zzzzz": None}, "zzzzz", "unknown key"),
        ({"bpf": 5}, "bpf", "expected a mapping"),
        ({"node_name": "Node"}, "node_name", "lower case"),
        ({"node_name": 5}, "node_name", "put it in quotes"),
        ({"run_dir": "run"}, "run_dir", "an absolute path"),
        ({"run_dir": "/" + "x" * 100}, "run_dir", "UNIX sockets"),
        ({"state_dir": "/"}, "state_dir", "below the root"),
        ({"state_dir": "/a/../b"}, "state_dir", "without .."),
        ({"state_dir": "/var/run/bristle"}, "state_dir", "same folder as run_dir"),
        ({"pod_cidrs": None}, "pod_cidrs", "is required"),
        ({"pod_cidrs": []}, "pod_cidrs", "is required without source.kubernetes"),
        ({"pod_cidrs": "10.0.0.0/24"}, "pod_cidrs", "expected a list of networks"),
        ({"pod_cidrs": ["10.0.0.0"]}, "pod_cidrs", "expected a network"),
        ({"pod_cidrs": ["10.0.0.1/24"]}, "pod_cidrs", "write 10.0.0.0/24"),
        ({"pod_cidrs": ["fd00::1/64"]}, "pod_cidrs", "write fd00::/64"),
        ({"pod_cidrs": ["10.0.0.0/255.255.255.0"]}, "pod_cidrs", "expected a network"),
        ({"pod_cidrs": ["10.0.0.0/31"]}, "pod_cidrs", "too small"),
        ({"pod_cidrs": ["0.0.0.0/0"]}, "pod_cidrs", "no addresses that pods can have"),
        ({"pod_cidrs": ["fe80::/64"]}, "pod_cidrs", "no addresses that pods can have"),
        ({"pod_cidrs": ["::ffff:10.0.0.0/120"]}, "pod_cidrs", "no addresses that pods can have"),
        ({"pod_cidrs": ["10.0.0.0/8", "10.1.0.0/16"]}, "pod_cidrs", "overlap"),
        ({"pod_cidrs": ["10.0.0.0/8", "10.0.0.0/8"]}, "pod_cidrs", "given twice"),
        ({"masquerade": {"ports": 61000}}, "masquerade.ports", "put it in quotes"),
        ({"masquerade": {"ports": "61000"}}, "masquerade.ports", "such as 61000-65535"),
        ({"masquerade": {"ports": "65535-61000"}}, "masquerade.ports", "within 1024-65535"),
        ({"masquerade": {"ports": "80-90"}}, "masquerade.ports", "within 1024-65535"),
        ({"masquerade": {"ports": "60000-65536"}}, "masquerade.ports", "within 1024-65535"),
        ({"masquerade": {"ports": "32767-40000"}}, "masquerade.ports", "NodePorts, 30000-32767"),
        ({"masquerade": {"ports": "20000-30000"}}, "masquerade.ports", "outside of it"),
        ({"masquerade": {"exclude": ["10.0.0.1/8"]}}, "masquerade.exclude", "write 10.0.0.0/8"),
        ({"masquerade": {"exclude": ["10.0.0.1"]}}, "masquerade.exclude", "expected a network"),
        ({"masquerade": {"enabled": "yes"}}, "masquerade.enabled", "expected true or false"),
        ({"mtu": 1279}, "mtu", "from 1280 to 65535, or 0"),
        ({"mtu": True}, "mtu", "not true"),
        ({"mtu": "1500"}, "mtu", 'not "1500"'),
        ({"devices": "eth0"}, "devices", "a list of device names"),
        ({"devices": ["a" * 16]}, "devices", "at most 15"),
        ({"devices": ["a/b"]}, "devices", "device name"),
        ({"devices": ["eth0", "eth0"]}, "devices", "given twice"),
        ({"source": {}}, "source", "is required"),
        ({"source": {"kubernetes": {}}}, "source.kubernetes", "one key, kubeconfig"),
        ({"source": {"kubernetes": "here"}}, "source.kubernetes", "in-cluster, or"),
        ({"source": {"kubernetes": {"kubeconfig": 5}}}, "source.kubernetes", "quotes"),
        ({"source": {"manifests": "/m", "kubernetes": "in-cluster"}}, "source", "exclude"),
        ({"cni": {"version": "2.0"}}, "cni.version", "one of 0.3.1"),
        ({"health": {"address": "x"}}, "health.address", "host:port"),
        ({"source": {"manifests": 5}}, "source.manifests", "put it in quotes"),
        ({"labels": ["!"]}, "labels", "names no prefix"),
        ({"bpf": {"ct_max": 15}}, "bpf.ct_max", "from 16"),
        ({"bpf": {"policy_max": 1.5}}, "bpf.policy_max", "not 1.5"),
        ({"identity": {"grace": "fast"}}, "identity.grace", "15m"),
        ({"identity": {"grace": 0}}, "identity.grace", "15m"),
        ({"identity": {"rest": float("nan")}}, "identity.rest", "15m"),
        ({"log_level": "loud"}, "log_level", "one of debug, info, warning, error"),
        ({"trace": "yes"}, "trace", "true or false"),
        ({"prometheus": {"address": "::1:9962"}}, "prometheus.address", "brackets"),
        ({"prometheus": {"address": "localhost"}}, "prometheus.address", "host:port"),
        ({"prometheus": {"address": "a:99620"}}, "prometheus.address", "host:port"),
    ],
)
def test_wrong_values_are_refused_by_name(changes: dict[str, Any], key: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**changes)
    assert caught.value.key == key
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        ({"mtu": "large"}, "mtu"),
        ({"bpf_ct_max": "-5"}, "bpf.ct_max"),
        ({"pod_cidrs": ("10.0.0.1/24",)}, "pod_cidrs"),
        ({"identity_rest": "-1"}, "identity.rest"),
        ({"source_manifests": "relative"}, "source.manifests"),
    ],
)
def test_wrong_flags_are_refused_like_the_file(
    flags: dict[str, Any], key: str, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(text_of(_MINIMUM))
    with pytest.raises(ConfigError) as caught:
        load(file, flags)
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"mtu: 0\nmtu: 0\n", 'line 2: key "mtu" is given twice'),
        (b"mtu: [", "no valid YAML"),
        (b"\xff", "not UTF-8"),
        (b"- mtu", "expected a mapping"),
        (b"on: 5", "key true is no text"),
        (b"", "is required"),
    ],
)
def test_files_that_are_no_configuration(text: bytes, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(parse(text))
    assert message in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.yaml")


_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.sampled_from([key.name for key in KEYS]), _JUNK)
def test_any_value_is_taken_or_refused_by_name(name: str, value: Any) -> None:
    section, _, inner = name.partition(".")
    document = {**_MINIMUM, section: {inner: value} if inner else value}
    try:
        text = yaml.dump(document, Dumper=yaml.SafeDumper, allow_unicode=False).encode()
        build(parse(text))
    except ConfigError as error:
        assert error.key in ("", name) or not isinstance(value, str | int | float | bool)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_configuration_or_an_error(text: bytes) -> None:
    with pytest.raises(ConfigError):
        build(parse(text))
