# SPDX-License-Identifier: Apache-2.0
"""Rules of pods, nodes and namespaces (pure)."""

from __future__ import annotations

import copy
import ipaddress
from collections.abc import Iterator

from bench.lab.apiserver.errors import (
    Object,
    Problem,
    duplicate,
    forbidden_field,
    invalid_value,
    required,
    unsupported,
)
from bench.lab.apiserver.kinds import Strategy
from bench.lab.apiserver.validation import (
    dns_label,
    label_value,
    labels,
    port_name,
    port_number,
    qualified_name,
    subdomain,
)

PROTOCOLS = ("SCTP", "TCP", "UDP")
PHASES = ("Pending", "Running", "Succeeded", "Failed", "Unknown")
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_POD_UPDATE_TEXT = (
    "pod updates may not change fields other than `spec.containers[*].image`,"
    "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only "
    "additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set "
    "to 1 if it was previously negative)"
)


class PodStrategy(Strategy):
    """Pods: a creator sets no status, and hardly anything of a spec changes later."""

    generation = True
    fields = frozenset(
        {
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        }
    )

    def prepare_create(self, item: Object) -> None:
        self.complete(item)
        item["status"] = {"phase": "Pending", "qosClass": "BestEffort"}

    def prepare_update(self, item: Object, old: Object) -> None:
        self.complete(item)
        item["status"] = old.get("status", {})

    def complete(self, item: Object) -> None:
        item.setdefault("status", {})
        _one_address_form(item["status"])
        spec = item.setdefault("spec", {})
        for key, value in POD_DEFAULTS.items():
            spec.setdefault(key, copy.copy(value))
        if spec.get("serviceAccount"):
            spec.setdefault("serviceAccountName", spec["serviceAccount"])
        spec.setdefault("serviceAccountName", "default")
        spec["serviceAccount"] = spec["serviceAccountName"]
        for container in [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]:
            for key, value in CONTAINER_DEFAULTS.items():
                container.setdefault(key, copy.copy(value))
            if "imagePullPolicy" not in container:
                tag = str(container.get("image", "")).rpartition("/")[2].partition(":")[2]
                latest = tag in ("", "latest")
                container["imagePullPolicy"] = "Always" if latest else "IfNotPresent"
            for port in container.get("ports") or []:
                port.setdefault("protocol", "TCP")
                if spec.get("hostNetwork"):
                    port.setdefault("hostPort", port.get("containerPort"))

    def validate(self, item: Object) -> Iterator[Problem]:
        spec = item["spec"]
        if not spec.get("containers"):
            yield required("spec.containers")
        names: set[str] = set()
        for group in ("initContainers", "containers"):
            for number, container in enumerate(spec.get(group) or []):
                yield from self._container(container, f"spec.{group}[{number}]", spec, names)
        if spec["restartPolicy"] not in ("Always", "OnFailure", "Never"):
            choice = ("Always", "OnFailure", "Never")
            yield unsupported("spec.restartPolicy", spec["restartPolicy"], choice)
        for field in ("nodeName", "serviceAccountName"):
            if spec.get(field):
                yield from _each(f"spec.{field}", spec[field], subdomain(spec[field]))
        yield from labels(spec.get("nodeSelector") or {}, "spec.nodeSelector")

    def _container(
        self, container: Object, path: str, spec: Object, names: set[str]
    ) -> Iterator[Problem]:
        name = container.get("name", "")
        if not name:
            yield required(f"{path}.name")
        else:
            yield from _each(f"{path}.name", name, dns_label(name))
            if name in names:
                yield duplicate(f"{path}.name", name)
            names.add(name)
        if not container.get("image"):
            yield required(f"{path}.image")
        ports: set[str] = set()
        for number, port in enumerate(container.get("ports") or []):
            place = f"{path}.ports[{number}]"
            value = port.get("containerPort")
            if value is None:
                yield required(f"{place}.containerPort")
            else:
                yield from _each(f"{place}.containerPort", value, port_number(value))
            if port["protocol"] not in PROTOCOLS:
                yield unsupported(f"{place}.protocol", port["protocol"], PROTOCOLS)
            if spec.get("hostNetwork") and port.get("hostPort") != value:
                text = "must match `hostPort` when `hostNetwork` is true"
                yield invalid_value(f"{place}.containerPort", value, text)
            if port.get("name"):
                yield from _each(f"{place}.name", port["name"], port_name(port["name"]))
                if port["name"] in ports:
                    yield duplicate(f"{place}.name", port["name"])
                ports.add(port["name"])

    def validate_update(self, item: Object, old: Object) -> Iterator[Problem]:
        if _frozen_spec(item["spec"]) != _frozen_spec(old["spec"]):
            yield forbidden_field("spec", _POD_UPDATE_TEXT)
        kept = old["spec"].get("tolerations") or []
        if any(entry not in (item["spec"].get("tolerations") or []) for entry in kept):
            text = "existing toleration can not be modified except its tolerationSeconds"
            yield forbidden_field("spec.tolerations", text)

    def prepare_status(self, item: Object) -> None:
        _one_address_form(item.setdefault("status", {}))

    def validate_status(self, item: Object) -> Iterator[Problem]:
        status = item.get("status") or {}
        if status.get("phase") and status["phase"] not in PHASES:
            yield unsupported("status.phase", status["phase"], PHASES)
        families = set()
        addresses = [entry.get("ip", "") for entry in status.get("podIPs") or []]
        for number, address in enumerate(addresses):
            path = f"status.podIPs[{number}]"
            try:
                families.add(ipaddress.ip_address(address).version)
            except ValueError:
                yield invalid_value(path, address, "must be a valid IP address, (e.g. 10.9.8.7)")
        if len(addresses) > 2 or (len(addresses) == 2 and len(families) == 1):
            text = "may specify no more than one IP for each IP family"
            yield invalid_value("status.podIPs", addresses, text)

    def field_value(self, item: Object, path: str) -> str:
        if path == "spec.hostNetwork":
            return "true" if item["spec"].get("hostNetwork") else "false"
        return super().field_value(item, path)


POD_DEFAULTS = {
    "restartPolicy": "Always",
    "terminationGracePeriodSeconds": 30,
    "dnsPolicy": "ClusterFirst",
    "securityContext": {},
    "schedulerName": "default-scheduler",
    "enableServiceLinks": True,
}
CONTAINER_DEFAULTS = {
    "resources": {},
    "terminationMessagePath": "/dev/termination-log",
    "terminationMessagePolicy": "File",
}


def _frozen_spec(spec: Object) -> Object:
    """What of a pod's spec must stay."""
    mutable = ("activeDeadlineSeconds", "tolerations", "containers", "initContainers")
    kept = {key: value for key, value in spec.items() if key not in mutable}
    for group in ("containers", "initContainers"):
        kept[group] = [
            {key: value for key, value in container.items() if key != "image"}
            for container in spec.get(group) or []
        ]
    return kept


def _one_address_form(status: Object) -> None:
    """podIP is the first of podIPs; where they differ, podIP wins."""
    single, several = status.get("podIP"), status.get("podIPs") or []
    if single and (not several or several[0].get("ip") != single):
        status["podIPs"] = [{"ip": single}]
    elif several and not single:
        status["podIP"] = several[0].get("ip", "")


class NodeStrategy(Strategy):
    """Nodes: registered with their status, which then changes by its subresource only."""

    fields = frozenset({"spec.unschedulable"})

    def complete(self, item: Object) -> None:
        item.setdefault("spec", {})
        item.setdefault("status", {})
        _one_cidr_form(item["spec"])

    def prepare_update(self, item: Object, old: Object) -> None:
        self.complete(item)
        item["status"] = old.get("status", {})

    def validate(self, item: Object) -> Iterator[Problem]:
        spec = item["spec"]
        seen: set[tuple[str, str]] = set()
        for number, taint in enumerate(spec.get("taints") or []):
            path = f"spec.taints[{number}]"
            key, effect = taint.get("key", ""), taint.get("effect", "")
            yield from _each(f"{path}.key", key, qualified_name(key))
            value = taint.get("value", "")
            yield from _each(f"{path}.value", value, label_value(value))
            if not effect:
                yield required(f"{path}.effect")
            elif effect not in EFFECTS:
                yield unsupported(f"{path}.effect", effect, EFFECTS)
            if (key, effect) in seen:
                yield duplicate(path, taint)
            seen.add((key, effect))
        for number, cidr in enumerate(spec.get("podCIDRs") or []):
            try:
                ipaddress.ip_network(cidr)
            except ValueError:
                text = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
                yield invalid_value(f"spec.podCIDRs[{number}]", cidr, text)

    def validate_status(self, item: Object) -> Iterator[Problem]:
        seen: set[tuple[str, str]] = set()
        for number, entry in enumerate((item.get("status") or {}).get("addresses") or []):
            pair = (entry.get("type", ""), entry.get("address", ""))
            if pair in seen:
                yield duplicate(f"status.addresses[{number}]", entry)
            seen.add(pair)

    def validate_update(self, item: Object, old: Object) -> Iterator[Problem]:
        for field in ("podCIDRs", "providerID"):
            before = old["spec"].get(field)
            if before and item["spec"].get(field) != before:
                text = f"node updates may not change {field} except from empty to valid"
                yield forbidden_field(f"spec.{field}", text)

    def field_value(self, item: Object, path: str) -> str:
        if path == "spec.unschedulable":
            return "true" if item["spec"].get("unschedulable") else "false"
        return super().field_value(item, path)


def _one_cidr_form(spec: Object) -> None:
    single, several = spec.get("podCIDR"), spec.get("podCIDRs") or []
    if single and (not several or several[0] != single):
        spec["podCIDRs"] = [single]
    elif several and not single:
        spec["podCIDR"] = several[0]


class NamespaceStrategy(Strategy):
    """Namespaces: one label is theirs by right, and they end in two steps."""

    fields = frozenset({"status.phase"})

    def prepare_create(self, item: Object) -> None:
        item.pop("status", None)
        self.complete(item)

    def prepare_update(self, item: Object, old: Object) -> None:
        item["spec"], item["status"] = old.get("spec", {}), old.get("status", {})
        self.complete(item)

    def complete(self, item: Object) -> None:
        item["spec"] = {"finalizers": ["kubernetes"]}
        item.setdefault("status", {"phase": "Active"})
        meta = item["metadata"]
        meta["labels"] = {
            **(meta.get("labels") or {}),
            "kubernetes.io/metadata.name": meta.get("name", ""),
        }


def _each(path: str, value: object, complaints: list[str]) -> Iterator[Problem]:
    for text in complaints:
        yield invalid_value(path, value, text)
