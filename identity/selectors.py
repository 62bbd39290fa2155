# SPDX-License-Identifier: Apache-2.0
"""Label selectors of the Kubernetes API (meta/v1 LabelSelector), parsed, checked and matched.

Syntax is checked as upstream does (apimachinery pkg/apis/meta/v1/validation, util/validation).
Unlike the API server, a matchExpressions value must be a valid label value: none other can match.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

_NAME: Final = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_MAX_NAME: Final = 63
_MAX_SUBDOMAIN: Final = 253
_NAME_RULE: Final = (
    "must be at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends"
)


class SelectorError(ValueError):
    """A label selector that the API would refuse. `field` is the path of the offending value."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class Operator(StrEnum):
    """Operators of a selector requirement."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on one label. `values` is sorted, without repetition, empty for Exists ones."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """NotIn and DoesNotExist hold for a label that is absent, as upstream."""
        value = labels.get(self.key)
        if self.operator is Operator.IN:
            return value is not None and value in self.values
        if self.operator is Operator.NOT_IN:
            return value is None or value not in self.values
        return (value is not None) is (self.operator is Operator.EXISTS)

    @property
    def is_positive(self) -> bool:
        """Whether it holds only for labels that are present, so that an index can find them."""
        return self.operator in (Operator.IN, Operator.EXISTS)

    def canonical(self) -> str:
        """One spelling for one meaning, such as `k8s:app In (a,b)`."""
        return f"{self.key} {self.operator.value} ({','.join(self.values)})"


def _order(requirement: Requirement) -> tuple[str, str, tuple[str, ...]]:
    return requirement.key, requirement.operator.value, requirement.values


@dataclass(frozen=True, slots=True)
class Selector:
    """A conjunction of requirements in canonical order; without any it matches everything.

    Build one with `Selector.of` or `parse_selector`, which sort.
    """

    requirements: tuple[Requirement, ...] = ()
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Selectors key the compiler's tables; hashing the whole each time would dominate.
        object.__setattr__(self, "_hash", hash(self.requirements))

    def __hash__(self) -> int:
        return self._hash

    @classmethod
    def of(cls, requirements: Iterable[Requirement]) -> Selector:
        """A selector from requirements in any order."""
        return cls(tuple(sorted(set(requirements), key=_order)))

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether every requirement holds for these labels."""
        return all(requirement.matches(labels) for requirement in self.requirements)

    @property
    def keys(self) -> tuple[str, ...]:
        """The label keys it looks at."""
        return tuple(sorted({requirement.key for requirement in self.requirements}))

    def rekeyed(self, rename: Callable[[str], str]) -> Selector:
        """The same selector on keys that `rename` gives."""
        return Selector.of(
            Requirement(rename(r.key), r.operator, r.values) for r in self.requirements
        )

    def prefixed(self, prefix: str) -> Selector:
        """The same selector on keys that begin with `prefix`, such as `k8s:`."""
        return self.rekeyed(lambda key: prefix + key)

    def canonical(self) -> str:
        """Equal exactly for equal selectors; stable over processes."""
        return " & ".join(requirement.canonical() for requirement in self.requirements)


EVERYTHING: Final = Selector()


def parse_selector(obj: object, path: str) -> Selector:
    """A selector from a LabelSelector as JSON or YAML gives it; None and {} match everything.

    Raises SelectorError with the path of the wrong value, `path` being that of `obj`.
    """
    fields = _mapping(obj, path, ("matchLabels", "matchExpressions"))
    found = []
    at = f"{path}.matchLabels"
    for key, value in _mapping(fields.get("matchLabels"), at).items():
        _check_key(key, at)
        found.append(Requirement(key, Operator.IN, (_checked_value(value, f"{at}[{key}]"),)))
    at = f"{path}.matchExpressions"
    for index, item in enumerate(_sequence(fields.get("matchExpressions"), at)):
        found.append(_parse_requirement(item, f"{at}[{index}]"))
    return Selector.of(found)


def label_key_problem(key: object) -> str | None:
    """What is wrong with a label key (a qualified name), or None."""
    if not isinstance(key, str):
        return f"label key {key!r} must be a string"
    prefix, slash, name = key.rpartition("/")
    if slash and (len(prefix) > _MAX_SUBDOMAIN or not _SUBDOMAIN.fullmatch(prefix)):
        return f"label key {key!r}: the part before '/' must be a lower case DNS subdomain"
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        return f"label key {key!r}: the name {_NAME_RULE}"
    return None


def label_value_problem(value: object) -> str | None:
    """What is wrong with a label value, or None."""
    if not isinstance(value, str):
        return f"label value {value!r} must be a string; put it in quotes"
    if value and (len(value) > _MAX_NAME or not _NAME.fullmatch(value)):
        return f"label value {value!r} {_NAME_RULE}"
    return None


def _parse_requirement(obj: object, path: str) -> Requirement:
    if obj is None:
        raise SelectorError(path, "must be a mapping with key and operator, not null")
    fields = _mapping(obj, path, ("key", "operator", "values"))
    key = fields.get("key")
    name = fields.get("operator")
    try:
        operator = Operator(name if isinstance(name, str) else "")
    except ValueError:
        known = ", ".join(one.value for one in Operator)
        raise SelectorError(f"{path}.operator", f"{name!r} is not one of {known}") from None
    values = _sequence(fields.get("values"), f"{path}.values")
    if operator in (Operator.IN, Operator.NOT_IN):
        if not values:
            raise SelectorError(f"{path}.values", f"{operator.value} needs at least one value")
    elif values:
        raise SelectorError(f"{path}.values", f"{operator.value} takes no values")
    checked = {_checked_value(value, f"{path}.values[{i}]") for i, value in enumerate(values)}
    return Requirement(_check_key(key, f"{path}.key"), operator, tuple(sorted(checked)))


def _check_key(key: object, path: str) -> str:
    problem = label_key_problem(key)
    if problem or not isinstance(key, str):
        raise SelectorError(path, problem or "must be a string")
    return key


def _checked_value(value: object, path: str) -> str:
    problem = label_value_problem(value)
    if problem or not isinstance(value, str):
        raise SelectorError(path, problem or "must be a string")
    return value


def _mapping(obj: object, path: str, known: tuple[str, ...] | None = None) -> Mapping[Any, Any]:
    if obj is None:
        return {}
    if not isinstance(obj, Mapping):
        raise SelectorError(path, f"must be a mapping, not {type(obj).__name__}")
    for key in obj:
        if known is not None and key not in known:
            raise SelectorError(f"{path}.{key}", f"unknown field; known are {', '.join(known)}")
    return obj


def _sequence(obj: object, path: str) -> list[Any]:
    if obj is None:
        return []
    if not isinstance(obj, list):
        raise SelectorError(path, f"must be a list, not {type(obj).__name__}")
    return obj
