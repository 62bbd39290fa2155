# SPDX-License-Identifier: Apache-2.0
"""Label sets: what an identity is made of.

Keys carry their source (`k8s:app`, `reserved:host`, `cidr:10.0.0.0/8`). A pod's set holds its own
labels, its namespace's name and labels, and its service account, under the keys that Cilium uses.
"""

from __future__ import annotations

import sys
from collections.abc import ItemsView, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar, final, overload

K8S_SOURCE: Final = "k8s:"
RESERVED_SOURCE: Final = "reserved:"
CIDR_SOURCE: Final = "cidr:"
NAMESPACE_KEY: Final = "k8s:io.kubernetes.pod.namespace"
NAMESPACE_LABELS_PREFIX: Final = "k8s:io.cilium.k8s.namespace.labels."
SERVICE_ACCOUNT_KEY: Final = "k8s:io.cilium.k8s.policy.serviceaccount"
METADATA_NAME: Final = "kubernetes.io/metadata.name"
"""Label that the API server sets on every namespace, to the namespace's name."""

_ESCAPED_PREFIX: Final = "k8s:pod:"
_DEFAULT_FILTER: Final = (
    "!k8s:pod-template-hash",
    "!k8s:pod-template-generation",
    "!k8s:controller-revision-hash",
    "!k8s:controller-uid",
    "!k8s:batch.kubernetes.io/controller-uid",
    "!k8s:batch.kubernetes.io/job-completion-index",
)

_T = TypeVar("_T")


class LabelError(ValueError):
    """A label that no label set can hold; the message names the label."""


@final
class LabelSet(Mapping[str, str]):
    """Immutable, hashable mapping of label key (with source) to value.

    Raises LabelError for `;` anywhere or `=` in a key: the canonical form would be ambiguous, and
    two sets must never look like one. No valid Kubernetes label has either.
    """

    __slots__ = ("_hash", "_labels")
    _labels: dict[str, str]
    _hash: int

    def __init__(self, labels: Mapping[str, str] | Iterable[tuple[str, str]] = ()) -> None:
        pairs = sorted(labels.items() if isinstance(labels, Mapping) else labels)
        for key, value in pairs:
            if "=" in key or ";" in key or ";" in value:
                raise LabelError(f"label {key!r}={value!r}: ';' and '=' cannot be part of a label")
        self._labels = dict(pairs)
        self._hash = hash(tuple(pairs))

    @classmethod
    def of(cls, labels: Mapping[str, str]) -> LabelSet:
        """The same labels as a LabelSet; a LabelSet is returned as it is."""
        return labels if isinstance(labels, LabelSet) else cls(labels)

    def canonical(self) -> str:
        """`key=value` sorted by key and joined by `;`: equal exactly for equal sets."""
        return ";".join(f"{key}={value}" for key, value in self._labels.items())

    def __getitem__(self, key: str) -> str:
        return self._labels[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._labels)

    def __len__(self) -> int:
        return len(self._labels)

    def __contains__(self, key: object) -> bool:
        return key in self._labels

    @overload
    def get(self, key: str, /) -> str | None: ...
    @overload
    def get(self, key: str, /, default: str | _T) -> str | _T: ...
    def get(self, key: str, /, default: object = None) -> object:
        """Value of a label, or the default."""
        return self._labels.get(key, default)

    def items(self) -> ItemsView[str, str]:
        """Pairs in the order of their keys."""
        return self._labels.items()

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if isinstance(other, LabelSet):
            return self._hash == other._hash and self._labels == other._labels
        return NotImplemented

    def __repr__(self) -> str:
        return f"LabelSet({self.canonical()!r})"


@dataclass(frozen=True, slots=True)
class LabelFilter:
    """Which labels make an identity, by prefixes of keys as Cilium's `--labels` takes them.

    `k8s:app` includes every key that starts so, `!k8s:app` excludes it; a prefix without a source
    is one of `k8s:`. The longest matching prefix decides, an include at equal length. What nothing
    matches is kept, unless the filter includes anything: then only what it includes is kept.

    A label that is excluded does not exist for peers: `In` and `Exists` on it match no peer,
    `NotIn` and `DoesNotExist` every one. `hides` finds such keys, so that a policy's status can
    warn. The name of a pod's namespace is never excluded, and the subject of a policy is selected
    by all of the pod's labels.

    Raises LabelError for an empty prefix.
    """

    includes: tuple[str, ...]
    excludes: tuple[str, ...]

    @classmethod
    def of(cls, prefixes: Iterable[str]) -> LabelFilter:
        """A filter from its configured form; see the class."""
        includes: list[str] = []
        excludes: list[str] = []
        for prefix in prefixes:
            bare = prefix.removeprefix("!")
            if not bare:
                raise LabelError(f"label filter {prefix!r} names no prefix: remove it")
            full = bare if ":" in bare else K8S_SOURCE + bare
            (excludes if prefix.startswith("!") else includes).append(full)
        return cls(tuple(includes), tuple(excludes))

    def keeps(self, key: str) -> bool:
        """Whether the label with this key, source included, is part of identities."""
        if not key.startswith((*self.includes, *self.excludes)):
            return not self.includes
        included = max((len(p) for p in self.includes if key.startswith(p)), default=-1)
        excluded = max((len(p) for p in self.excludes if key.startswith(p)), default=-1)
        return included >= excluded

    def hides(self, keys: Iterable[str]) -> tuple[str, ...]:
        """Those of the keys that this filter excludes, sorted."""
        return tuple(sorted(key for key in keys if key not in _MANDATORY and not self.keeps(key)))


DEFAULT: Final = LabelFilter.of(_DEFAULT_FILTER)
"""Leaves out only what differs between revisions or runs of one workload and is in no policy. The
name of a StatefulSet's pod stays: policies do select by it."""


def namespace_label_key(key: str) -> str:
    """Key under which a pod's label set holds a label of its namespace."""
    return NAMESPACE_LABELS_PREFIX + key


_MANDATORY: Final = frozenset({NAMESPACE_KEY, namespace_label_key(METADATA_NAME)})


def pod_label_key(key: str) -> str:
    """Key under which a pod's label set holds a label of the pod itself.

    A pod may carry a label that looks like one of ours (`io.kubernetes.pod.namespace: other`).
    Such keys are moved out of the way, so that no pod can claim another namespace or account.
    """
    full = K8S_SOURCE + key
    if full in (NAMESPACE_KEY, SERVICE_ACCOUNT_KEY) or full.startswith(NAMESPACE_LABELS_PREFIX):
        return _ESCAPED_PREFIX + key
    return full


def pod_labels(
    labels: Mapping[str, str],
    namespace: str,
    namespace_labels: Mapping[str, str] | None,
    service_account: str,
    label_filter: LabelFilter = DEFAULT,
) -> LabelSet:
    """The label set that makes a pod's identity.

    `namespace_labels` is None while the namespace object is unknown. `kubernetes.io/metadata.name`
    is always the namespace's name, as the API server makes it. An empty service account adds
    nothing.
    """
    kept = {}
    for key, value in labels.items():
        full = pod_label_key(key)
        if label_filter.keeps(full):
            kept[sys.intern(full)] = value
    for key, value in (namespace_labels or {}).items():
        full = namespace_label_key(key)
        if label_filter.keeps(full):
            kept[sys.intern(full)] = value
    if service_account and label_filter.keeps(SERVICE_ACCOUNT_KEY):
        kept[SERVICE_ACCOUNT_KEY] = service_account
    kept[NAMESPACE_KEY] = namespace
    kept[sys.intern(namespace_label_key(METADATA_NAME))] = namespace
    return LabelSet(kept)
