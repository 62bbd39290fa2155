# SPDX-License-Identifier: Apache-2.0
"""Raw Kubernetes objects (as decoded from JSON or YAML) to facts. Pure.

Only fields that the agent uses are looked at, and only those are validated, by the rules of the
API server (k8s.io/kubernetes/pkg/apis/core/validation). Objects without status and objects with
fields unknown here are fine. Policies are the exception: every field of a policy counts, so
`policy.parse` refuses what it does not know.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from agent.core.events import Fact, Namespace, ResourceKey
from agent.kube.fields import (
    Object,
    TranslateError,
    mapping_field,
    required_text,
    shown,
    type_name,
)
from agent.kube.metadata import Scope, labels_of, loose_key, object_key, redirect_of
from agent.kube.translate_node import (
    translate_endpoint,
    translate_identity,
    translate_node,
    translate_published_node,
)
from agent.kube.translate_pod import translate_pod
from agent.kube.translate_service import translate_endpoint_slice, translate_service
from policy.parse import PolicyError, parse_network_policy

NAMESPACE_NAME_LABEL = "kubernetes.io/metadata.name"


@dataclass(frozen=True, slots=True)
class Ignored:
    """An object of a kind that the agent does not use, with the reason."""

    key: ResourceKey
    note: str


def list_items(obj: object) -> tuple[Object, ...] | None:
    """The objects in a List (or PodList, NetworkPolicyList...); None when `obj` is not a list.

    Typed lists come from the API server without `kind` and `apiVersion` on their items; these
    are filled in from the list. Raises TranslateError when `items` is not a list of objects.
    """
    if not isinstance(obj, Mapping):
        return None
    kind = obj.get("kind")
    if not isinstance(kind, str) or not is_list_kind(kind) or "spec" in obj or "items" not in obj:
        return None
    items = obj["items"]
    if items is None:
        return ()
    if not isinstance(items, list):
        raise TranslateError("items", f"must be a list, not {type_name(items)}")
    return tuple(typed_item(item, kind, obj.get("apiVersion"), i) for i, item in enumerate(items))


def is_list_kind(kind: str) -> bool:
    """Whether an object of this kind is a collection of others (upstream: meta.IsListType)."""
    return kind.endswith("List")


def typed_item(item: object, list_kind: str, api_version: object, index: int) -> Object:
    """One item of a list, with kind and apiVersion taken from a typed list where it has none."""
    if not isinstance(item, Mapping):
        raise TranslateError(f"items[{index}]", f"must be an object, not {type_name(item)}")
    kind = list_kind.removesuffix("List")
    if not kind or "kind" in item:
        return item
    return {"apiVersion": api_version, "kind": kind, **item}


# ---- kinds -----------------------------------------------------------------------------------


def _namespace(obj: Object, key: ResourceKey) -> Namespace:
    metadata = mapping_field(obj, "metadata", "metadata")
    labels = dict(labels_of(metadata))
    labels[NAMESPACE_NAME_LABEL] = key.name  # as the API server does, whatever the manifest says
    return Namespace(key.name, labels, redirect_of(metadata))


def _network_policy(obj: Object, key: ResourceKey) -> Fact:
    _refuse_odd_keys(obj, "")
    metadata = mapping_field(obj, "metadata", "metadata")
    plain = {str(name): value for name, value in obj.items()}
    plain["metadata"] = {**metadata, "namespace": key.namespace}
    return parse_network_policy(plain)


class Known(NamedTuple):
    """A kind: its accepted versions, where it lives, its translator."""

    versions: tuple[str, ...]
    scope: Scope
    translator: Callable[[Object, ResourceKey], Fact]


MANIFEST_KINDS: Final[Mapping[str, Known]] = {
    "Pod": Known(("v1",), Scope.NAMESPACED, translate_pod),
    "Namespace": Known(("v1",), Scope.CLUSTER_LABEL, _namespace),
    "Node": Known(("v1",), Scope.CLUSTER, translate_node),
    "NetworkPolicy": Known(("networking.k8s.io/v1",), Scope.NAMESPACED, _network_policy),
    "Service": Known(("v1",), Scope.NAMESPACED, translate_service),
    "EndpointSlice": Known(("discovery.k8s.io/v1",), Scope.NAMESPACED, translate_endpoint_slice),
}
"""What users write."""

CLUSTER_KINDS: Final[Mapping[str, Known]] = {
    **MANIFEST_KINDS,
    "BristleEndpoint": Known(("bristle.io/v1alpha1",), Scope.NAMESPACED, translate_endpoint),
    "BristleIdentity": Known(("bristle.io/v1alpha1",), Scope.CLUSTER, translate_identity),
    "BristleNode": Known(("bristle.io/v1alpha1",), Scope.CLUSTER, translate_published_node),
}
"""What an API server has: that, and what agents write."""


def _foreign(api_version: str) -> bool:
    """Another project's group: its NetworkPolicy or Service is not the one meant here."""
    group = api_version.rpartition("/")[0]
    return "." in group and not group.endswith(".k8s.io")


def _refuse_odd_keys(value: object, path: str) -> None:
    """YAML reads keys such as `on` or `1` as no text; in a policy that must not pass silently."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TranslateError(path, f"key {shown(key)} is no text: put it in quotes")
            _refuse_odd_keys(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _refuse_odd_keys(inner, f"{path}[{i}]")


# ---- translation ---------------------------------------------------------------------------


def translate(obj: object, kinds: Mapping[str, Known] = MANIFEST_KINDS) -> Fact | Ignored:
    """One object (not a list) to its fact, or `Ignored`. Raises TranslateError."""
    if not isinstance(obj, Mapping):
        raise TranslateError("", f"a Kubernetes object is expected, not {type_name(obj)}")
    kind = required_text(obj, "kind", "kind")
    api_version = required_text(obj, "apiVersion", "apiVersion")
    if is_list_kind(kind) and "items" in obj and "spec" not in obj:
        raise TranslateError("kind", "a list within a list: put its items into the outer one")
    known = kinds.get(kind)
    if known is None or (api_version not in known.versions and _foreign(api_version)):
        return Ignored(loose_key(kind, obj), f"{api_version} {kind} is not used by bristle")
    versions, scope, translator = known
    key = object_key(kind, obj, scope)
    if api_version not in versions:
        raise TranslateError(
            "apiVersion", f"must be {versions[0]} for a {kind}, not {api_version}", key
        )
    try:
        return translator(obj, key)
    except PolicyError as error:
        raise TranslateError(error.field, error.message, key) from error
    except TranslateError as error:
        error.key = key
        raise
