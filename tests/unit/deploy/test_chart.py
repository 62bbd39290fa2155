# SPDX-License-Identifier: Apache-2.0
"""The manifests: right for the API, no right too many, and the same by Helm and without it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from agent.chart.chart import Chart, ChartError, find
from agent.chart.schema import SchemaError, problems
from agent.chart.values import ValuesError, combine
from agent.cli.root import cli
from agent.config import build, parse
from cni.results import VERSIONS
from tests.unit.deploy.models import faults

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "deploy/chart"
# Every switch of the chart in at least two positions.
SETS = [
    [],
    ["routingMode=native,autoDirectNodeRoutes=false,ipv4NativeRoutingCIDR=10.0.0.0/8",
     "ipv6NativeRoutingCIDR=fd00::/8,tunnelPort=4789"],
    ["prometheus.enabled=true,prometheus.serviceMonitor.enabled=true",
     "prometheus.serviceMonitor.labels.release=prom"],
    ["devices={eth0,eth1},MTU=9000,labels={k8s:app,!k8s:version},logLevel=debug,trace=true"],
    ["bpf.masquerade=false", "bpf.ctMax=2000000,bpf.policyMax=4096,bpf.peersMax=16"],
    ["bpf.masqueradeExclude={10.0.0.0/8,fd00::/8},bpf.endpointsMax=512,cni.exclusive=false"],
    ["image.repository=example.org/bristle,image.tag=v1,imagePullSecrets=null"],
    ["k8sServiceHost=192.0.2.10,seLinuxOptions.type=spc_t,podLabels.a=b,podAnnotations.c=d"],
    ["cleanup=true"],
    ["cni.chainingMode=portmap,cni.binPath=/usr/lib/cni"],
    ["resources=null,nodeSelector=null,cgroup.hostRoot=/sys/fs/cgroup/unified"],
    ["socketRedirect.enabled=true,socketRedirect.default=on"],
]  # fmt: skip
KINDS = {
    "ServiceAccount": "V1ServiceAccount",
    "ConfigMap": "V1ConfigMap",
    "ClusterRole": "V1ClusterRole",
    "ClusterRoleBinding": "V1ClusterRoleBinding",
    "Role": "V1Role",
    "RoleBinding": "V1RoleBinding",
    "Service": "V1Service",
    "DaemonSet": "V1DaemonSet",
}


def rendered(*sets: str) -> dict[str, dict[str, Any]]:
    """Objects by kind; there is one of each."""
    manifests = Chart(CHART).render(combine([], sets), "kube-system")
    found = {one.kind: yaml.safe_load(one.text) for one in manifests}
    assert len(found) == len(manifests)
    return found


def pod(*sets: str) -> dict[str, Any]:
    return dict(rendered(*sets)["DaemonSet"]["spec"]["template"]["spec"])


def configuration(*sets: str) -> str:
    return str(rendered(*sets)["ConfigMap"]["data"]["agent.yaml"])


def test_the_chart_of_the_tree_is_found() -> None:
    assert find() == CHART
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert Chart(CHART).about["appVersion"] == project["version"]


@pytest.mark.parametrize("sets", SETS)
def test_objects_are_what_the_api_knows(sets: list[str]) -> None:
    for kind, item in rendered(*sets).items():
        if kind in KINDS:
            assert faults(KINDS[kind], item) == [], kind
        else:
            assert kind == "ServiceMonitor"


def test_a_misspelt_field_is_found() -> None:
    item = rendered()["DaemonSet"]
    item["spec"]["template"]["spec"]["containers"][0]["readOnlyRoot"] = True
    assert "readOnlyRoot: unknown field" in "\n".join(faults("V1DaemonSet", item))


@pytest.mark.parametrize("sets", SETS)
def test_helm_renders_the_same_bytes(sets: list[str], tmp_path: Path) -> None:
    helm = os.environ.get("BRISTLE_HELM") or shutil.which("helm")
    if helm is None:
        pytest.skip("no helm; BRISTLE_HELM may name one")
    arguments = [argument for one in sets for argument in ("--set", one)]
    environment = {**os.environ, "HOME": str(tmp_path)}
    by_helm = subprocess.run(
        [helm, "template", "bristle", str(CHART), "-n", "kube-system", "--include-crds",
         *arguments], capture_output=True, text=True, check=True, env=environment,
    ).stdout  # fmt: skip
    ours = CliRunner().invoke(cli, ["install", *arguments])
    assert ours.exit_code == 0, ours.output
    assert ours.output == by_helm


# ---- the agent's configuration ---------------------------------------------------------------


@pytest.mark.parametrize("sets", SETS)
def test_the_agent_takes_its_configuration(sets: list[str]) -> None:
    text = configuration(*sets)
    build({**parse(text.encode()), "node_name": "node-1"})


def test_values_reach_the_configuration() -> None:
    text = configuration(
        "routingMode=native,ipv4NativeRoutingCIDR=10.0.0.0/8,devices={eth1},MTU=1400",
        "bpf.masqueradeExclude={10.1.0.0/16},bpf.ctMax=2000000,cni.exclusive=false",
        "prometheus.enabled=true,extraConfig.admission.x=1",
    )
    config = yaml.safe_load(text)
    assert config["source"] == {"kubernetes": "in-cluster"}
    assert config["routing"] == {
        "mode": "native", "tunnel_port": 8472, "direct_node_routes": True,
        "native_cidrs": ["10.0.0.0/8"],
    }  # fmt: skip
    assert config["masquerade"] == {"enabled": True, "exclude": ["10.1.0.0/16"]}
    assert config["cni"] == {
        "conf_dir": "/host/etc/cni/net.d", "exclusive": False, "version": "1.0.0",
        "chaining_mode": "none", "bin_dir": "/host/opt/cni/bin",
    }  # fmt: skip
    assert (config["devices"], config["mtu"]) == (["eth1"], 1400)
    assert config["bpf"] == {"ct_max": 2_000_000}
    assert config["prometheus"] == {"address": ":9962"}
    assert config["admission"] == {"x": 1}
    assert "pod_cidrs" not in config  # those of the Node


def test_with_portmap_the_agent_sees_the_plugins_folder() -> None:
    def mounts(*sets: str) -> dict[str, dict[str, Any]]:
        (agent,) = pod(*sets)["containers"]
        return {one["name"]: one for one in agent["volumeMounts"]}

    config = yaml.safe_load(configuration("cni.chainingMode=portmap"))
    assert config["cni"]["chaining_mode"] == "portmap"
    seen = mounts("cni.chainingMode=portmap")["cni-bin"]
    assert (seen["mountPath"], seen["readOnly"]) == (config["cni"]["bin_dir"], True)
    assert "cni-bin" not in mounts()


def test_another_configuration_is_another_pod() -> None:
    def stamp(*sets: str) -> str:
        template = rendered(*sets)["DaemonSet"]["spec"]["template"]
        return str(template["metadata"]["annotations"]["bristle.io/config"])

    assert stamp() == stamp() != stamp("logLevel=debug")


# ---- rights ----------------------------------------------------------------------------------


def test_the_agent_may_do_this_and_no_more() -> None:
    (agent,) = pod()["containers"]
    security = agent["securityContext"]
    assert security["privileged"] is False and security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {
        "drop": ["ALL"],
        "add": ["BPF", "NET_ADMIN", "PERFMON", "SYS_ADMIN", "SYS_RESOURCE"],
    }


@pytest.mark.parametrize("sets", SETS)
def test_no_container_is_privileged_or_writes_its_root(sets: list[str]) -> None:
    spec = pod(*sets)
    for container in [*spec["initContainers"], *spec["containers"]]:
        security = container["securityContext"]
        assert security["privileged"] is False, container["name"]
        assert security["readOnlyRootFilesystem"] is True, container["name"]
        assert security["capabilities"]["drop"] == ["ALL"], container["name"]
        # Needs a privileged container; the API refuses it.
        assert "Bidirectional" not in json.dumps(container)
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert "hostPID" not in spec and spec["hostNetwork"] is True


@pytest.mark.parametrize("sets", SETS)
def test_every_volume_is_mounted_and_every_mount_has_one(sets: list[str]) -> None:
    spec = pod(*sets)
    mounted = {
        mount["name"]
        for container in [*spec["initContainers"], *spec["containers"]]
        for mount in container.get("volumeMounts", [])
    }
    assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_the_rules_are_these() -> None:
    """What an agent needs more has to be added here, too; tests/cluster/test_rights.py has one run
    with these."""
    rules = {
        (group, resource): set(rule["verbs"])
        for kind in ("ClusterRole", "Role")
        for rule in rendered()[kind]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        if (group, resource) != ("", "nodes")
    }
    watched = {"list", "watch"}
    assert rules == {
        ("", "pods"): watched,
        ("", "namespaces"): watched,
        ("", "services"): watched,
        ("networking.k8s.io", "networkpolicies"): watched | {"get"},
        ("discovery.k8s.io", "endpointslices"): watched,
        ("", "nodes/status"): {"patch"},
        ("bristle.io", "bristleidentities"): watched | {"get", "create", "patch", "delete"},
        ("bristle.io", "bristleendpoints"): watched | {"get", "create", "update", "delete"},
        ("bristle.io", "bristlenodes"): {"list", "watch", "get", "create", "update"},
        ("bristle.io", "bristleendpoints/status"): {"patch"},
        ("bristle.io", "bristlenodes/status"): {"patch"},
        ("events.k8s.io", "events"): {"create", "patch"},
        ("coordination.k8s.io", "leases"): {"get", "create", "update"},
    }
    nodes = [rule["verbs"] for rule in rendered()["ClusterRole"]["rules"] if "nodes" in
             rule["resources"]]  # fmt: skip
    assert sorted(verb for verbs in nodes for verb in verbs) == ["get", "list", "patch", "watch"]


def test_it_runs_on_nodes_that_nothing_else_may_use() -> None:
    spec = pod()
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["priorityClassName"] == "system-node-critical"
    assert rendered()["DaemonSet"]["spec"]["updateStrategy"]["type"] == "RollingUpdate"
    (agent,) = spec["containers"]
    probes = {name: agent[name]["httpGet"] for name in ("livenessProbe", "readinessProbe")}
    assert probes["livenessProbe"]["path"] == "/healthz"
    assert probes["readinessProbe"]["path"] == "/readyz"
    ports = {port["name"]: port["containerPort"] for port in agent["ports"]}
    assert ports == {"health": 9879}


# ---- values ----------------------------------------------------------------------------------


def test_values_and_schema_name_the_same_things() -> None:
    def names(value: Any, schema: dict[str, Any], place: str) -> None:
        if "properties" not in schema:
            return
        known = set(schema["properties"]) - {"global"}
        assert set(value) == known, place or "values"
        for key in known:
            names(value[key], schema["properties"][key], f"{place}.{key}")

    chart = Chart(CHART)
    names(chart.defaults, dict(chart.schema), "")
    assert problems(chart.defaults, chart.schema) == []
    versions = chart.schema["properties"]["cni"]["properties"]["version"]["enum"]
    assert set(versions) == set(VERSIONS)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("kubeProxyReplacement=true", "only false is accepted (Not built yet.)"),
        ("policyAuditMode=true", "only false"),
        ("hubble.enabled=true", "only false"),
        ("cni.chainingMode=flannel", "expected one of none, portmap"),
        ("routingMode=geneve", "expected one of tunnel, native"),
        ("tunnelPort=70000", "beyond the maximum"),
        ("tunnelPort=x", "expected integer"),
        ("image.tga=1", "image.tga: unknown value"),
        ("devices={a/b}", "devices[0]"),
        ("ipv4NativeRoutingCIDR=10.0.0.0", "does not match"),
        ("cni.confPath=etc", "does not match"),
    ],
)
def test_values_that_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValuesError) as caught:
        rendered(text)
    assert complaint in str(caught.value)


def test_a_keyword_that_is_not_checked_is_an_error() -> None:
    with pytest.raises(SchemaError, match="oneOf"):
        problems({}, {"oneOf": []})


# ---- the command -----------------------------------------------------------------------------


def test_install_writes_files_in_the_order_of_application(tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text("routingMode: native\nprometheus: {enabled: true}\n")
    folder = tmp_path / "out"
    done = CliRunner().invoke(
        cli, ["install", "-f", str(values), "-n", "net", "--no-crds", "-o", str(folder)]
    )
    assert done.exit_code == 0, done.output
    documents = [yaml.safe_load(path.read_text()) for path in sorted(folder.iterdir())]
    assert [one["kind"] for one in documents] == [*KINDS]
    assert all(one["metadata"].get("namespace", "net") == "net" for one in documents)
    assert "mode: native" in documents[1]["data"]["agent.yaml"]


def test_install_brings_the_definitions_first() -> None:
    """Those of the tree, each whole."""
    done = CliRunner().invoke(cli, ["install", "--set", "devices={eth0}"])
    assert done.exit_code == 0, done.output
    documents = list(yaml.safe_load_all(done.output))
    paths = sorted((CHART / "crds").glob("*.yaml"))
    assert documents[: len(paths)] == [yaml.safe_load(path.read_text()) for path in paths]
    assert sorted(one["spec"]["names"]["kind"] for one in documents[: len(paths)]) == [
        "BristleEndpoint", "BristleIdentity", "BristleNode",
    ]  # fmt: skip


def test_a_chart_without_definitions_is_refused(tmp_path: Path) -> None:
    shutil.copytree(CHART, tmp_path / "chart", ignore=shutil.ignore_patterns("crds"))
    with pytest.raises(ChartError, match="no custom resource definitions at"):
        Chart(tmp_path / "chart").crds()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--set", "kubeProxyReplacement=true"], "kubeProxyReplacement: only false"),
        (["--set", "nonsense"], "expected key.of.value=value"),
    ],
)
def test_install_says_what_is_wrong(arguments: list[str], complaint: str) -> None:
    done = CliRunner().invoke(cli, ["install", *arguments])
    assert done.exit_code == 1 and complaint in done.output
