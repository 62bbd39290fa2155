# SPDX-License-Identifier: Apache-2.0
"""Schemas of the built-in kinds: the fields of fields.json, with what it does not say (pure).

That is: times with microseconds, quantities, numbers or strings, which lists are merged and by
which keys, and which objects have one owner as a whole (from the comments and tags of the API's Go
types: patchStrategy, patchMergeKey, +listType, +mapType).
"""

from __future__ import annotations

from functools import cache

from bench.lab.apiserver import fields
from bench.lab.apiserver.schema import ANYTHING, Schema

MICRO_TIMES = {
    "V1LeaseSpec.acquireTime",
    "V1LeaseSpec.renewTime",
    "CoreV1Event.eventTime",
    "EventsV1Event.eventTime",
    "CoreV1EventSeries.lastObservedTime",
    "EventsV1EventSeries.lastObservedTime",
}
QUANTITIES = {
    "allocatable",
    "allocatedResources",
    "capacity",
    "limits",
    "overhead",
    "requests",
    "divisor",
    "sizeLimit",
}
INT_OR_STRING = {"port", "targetPort"}
INT64 = {
    "V1ObjectMeta.generation",
    "V1ObjectMeta.deletionGracePeriodSeconds",
    "V1PodSpec.activeDeadlineSeconds",
    "V1PodSpec.terminationGracePeriodSeconds",
    "V1PodStatus.observedGeneration",
    "V1PodCondition.observedGeneration",
    "V1Toleration.tolerationSeconds",
}
# Keys of a list of objects, and the key of a strategic merge ("=": plain values; "": replaced).
LISTS: dict[str, tuple[tuple[str, ...], str]] = {
    "V1ObjectMeta.ownerReferences": (("uid",), "uid"),
    "V1ObjectMeta.finalizers": ((), "="),
    "V1NodeSpec.podCIDRs": ((), "="),
    "V1NodeStatus.conditions": (("type",), "type"),
    "V1NodeStatus.addresses": (("type",), "type"),
    "V1NamespaceStatus.conditions": (("type",), "type"),
    "V1PodSpec.containers": (("name",), "name"),
    "V1PodSpec.initContainers": (("name",), "name"),
    "V1PodSpec.ephemeralContainers": (("name",), "name"),
    "V1PodSpec.volumes": (("name",), "name"),
    "V1PodSpec.imagePullSecrets": (("name",), "name"),
    "V1PodSpec.hostAliases": (("ip",), "ip"),
    "V1PodSpec.topologySpreadConstraints": (("topologyKey", "whenUnsatisfiable"), "topologyKey"),
    "V1PodSpec.schedulingGates": (("name",), "name"),
    "V1PodSpec.resourceClaims": (("name",), "name"),
    "V1Container.ports": (("containerPort", "protocol"), "containerPort"),
    "V1Container.env": (("name",), "name"),
    "V1Container.volumeMounts": (("mountPath",), "mountPath"),
    "V1Container.volumeDevices": (("devicePath",), "devicePath"),
    "V1PodStatus.conditions": (("type",), "type"),
    "V1PodStatus.podIPs": (("ip",), "ip"),
    "V1ServiceSpec.ports": (("port", "protocol"), "port"),
    "V1ServiceStatus.conditions": (("type",), "type"),
    "V1CustomResourceDefinitionStatus.conditions": (("type",), ""),
}
ATOMIC = {
    "V1LabelSelector",
    "V1NodeSelectorTerm",
    "V1LocalObjectReference",
    "V1ObjectReference",
    "V1OwnerReference",
    "V1SecretKeySelector",
    "V1ConfigMapKeySelector",
    "V1ObjectFieldSelector",
    "V1ResourceFieldSelector",
}


@cache
def schema(name: str) -> Schema:
    """The schema of a type of fields.json."""
    known = fields.load()[name]
    return Schema(
        type="object",
        fields={key: _field(name, key, code) for key, code in known.items()},
        name=name.removeprefix("V1").removeprefix("CoreV1").removeprefix("EventsV1"),
        atomic=name in ATOMIC,
    )


def _field(owner: str, key: str, code: str) -> Schema:
    place = f"{owner}.{key}"
    if code.startswith("["):
        keys, merge = LISTS.get(place, ((), ""))
        kind = "map" if keys else "set" if merge == "=" else "atomic"
        inner = _field(owner, "", code[1:-1])
        return Schema(type="array", items=inner, list_type=kind, list_keys=keys, merge_key=merge)
    if code.startswith("{"):
        quantity = key in QUANTITIES and code == "{s}"
        values = Schema(format="quantity") if quantity else _field(owner, "", code[1:-1])
        return Schema(type="object", values=values, atomic=place.endswith("Spec.selector"))
    match code:
        case "s":
            return Schema(format="quantity") if key in QUANTITIES else Schema(type="string")
        case "i":
            return Schema(type="integer", format="int64" if place in INT64 else "int32")
        case "f":
            return Schema(type="number")
        case "b":
            return Schema(type="boolean")
        case "t":
            return Schema(
                type="string", format="micro-time" if place in MICRO_TIMES else "date-time"
            )
        case "*":
            return Schema(int_or_string=True) if key in INT_OR_STRING else ANYTHING
    return schema(code)


def metadata() -> Schema:
    """The schema of every object's metadata."""
    return schema("V1ObjectMeta")
