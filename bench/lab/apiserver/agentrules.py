# SPDX-License-Identifier: Apache-2.0
"""Rules of leases and events, which agents write (pure).

The two kinds of events are one resource: stored as core/v1, seen as either.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.lab.apiserver.errors import (
    Object,
    Problem,
    forbidden_field,
    invalid_value,
    required,
    unsupported,
)
from bench.lab.apiserver.kinds import Strategy
from bench.lab.apiserver.validation import qualified_name, subdomain

NOTE_BYTES = 1024
SHORT_BYTES = 128
NEW_TO_OLD = {
    "regarding": "involvedObject",
    "note": "message",
    "deprecatedSource": "source",
    "deprecatedFirstTimestamp": "firstTimestamp",
    "deprecatedLastTimestamp": "lastTimestamp",
    "deprecatedCount": "count",
    "reportingController": "reportingComponent",
}
OLD_TO_NEW = {old: new for new, old in NEW_TO_OLD.items()}
IMMUTABLE = (
    "involvedObject",
    "reason",
    "message",
    "source",
    "firstTimestamp",
    "lastTimestamp",
    "count",
    "type",
    "eventTime",
    "action",
    "related",
    "reportingComponent",
    "reportingInstance",
)


class LeaseStrategy(Strategy):
    """Leases: an update must name the version that it replaces."""

    unconditional = False
    create_on_update = True

    def complete(self, item: Object) -> None:
        item.setdefault("spec", {})

    def validate(self, item: Object) -> Iterator[Problem]:
        spec = item["spec"]
        seconds = spec.get("leaseDurationSeconds")
        if seconds is not None and seconds <= 0:
            yield invalid_value("spec.leaseDurationSeconds", seconds, "must be greater than 0")
        transitions = spec.get("leaseTransitions")
        if transitions is not None and transitions < 0:
            text = "must be greater than or equal to 0"
            yield invalid_value("spec.leaseTransitions", transitions, text)
        strategy = spec.get("strategy")
        if strategy is not None:
            if "/" not in strategy and strategy != "OldestEmulationVersion":
                yield unsupported("spec.strategy", strategy, ("OldestEmulationVersion",))
            elif "/" in strategy:
                for text in qualified_name(strategy):
                    yield invalid_value("spec.strategy", strategy, text)
        if spec.get("preferredHolder") and not strategy:
            text = "may only be specified if `strategy` is defined"
            yield forbidden_field("spec.preferredHolder", text)


class EventStrategy(Strategy):
    """Events as core/v1, the form they are stored in."""

    create_on_update = True
    fields = frozenset(
        {
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        }
    )

    def complete(self, item: Object) -> None:
        # Written even when empty.
        for key in ("involvedObject", "source"):
            item.setdefault(key, {})
        for key in ("firstTimestamp", "lastTimestamp", "eventTime"):
            item.setdefault(key, None)
        for key in ("reportingComponent", "reportingInstance"):
            item.setdefault(key, "")

    def validate(self, item: Object) -> Iterator[Problem]:
        about = item["involvedObject"].get("namespace", "")
        namespace = item["metadata"]["namespace"]
        if not item["eventTime"]:
            fits = about == namespace if about else namespace == "default"
        else:
            fits = bool(about) or namespace in ("default", "kube-system")
            yield from self._new(item)
        if not fits:
            text = "does not match event.namespace"
            yield invalid_value("involvedObject.namespace", about, text)

    def _new(self, item: Object) -> Iterator[Problem]:
        """What events with an eventTime must have."""
        controller = item["reportingComponent"]
        if not controller:
            yield required("reportingController")
        for text in qualified_name(controller):
            yield invalid_value("reportingController", controller, text)
        for key in ("reportingInstance", "action", "reason"):
            value = item.get(key) or ""
            if not value:
                yield required(key)
            if len(value.encode()) > SHORT_BYTES:
                yield invalid_value(key, "", f"can have at most {SHORT_BYTES} characters")
        if len((item.get("message") or "").encode()) > NOTE_BYTES:
            yield invalid_value("message", "", f"can have at most {NOTE_BYTES} characters")

    def field_value(self, item: Object, path: str) -> str:
        if path == "source":
            return str(item["source"].get("component") or item["reportingComponent"])
        return super().field_value(item, path)


class NewEventStrategy(EventStrategy):
    """Events as events.k8s.io/v1, with further rules."""

    def validate_create(self, item: Object) -> Iterator[Problem]:
        name = item["metadata"]["name"]
        for text in subdomain(name):
            yield invalid_value("metadata.name", name, text)
        yield from _series(item)
        if not item["eventTime"]:
            yield required("eventTime")
        if item.get("type") not in ("Normal", "Warning"):
            yield invalid_value("type", "", f"has invalid value: {item.get('type', '')}")
        for key in ("firstTimestamp", "lastTimestamp", "count"):
            if item.get(key):
                yield invalid_value(key, "", "needs to be unset")
        if item["source"]:
            yield invalid_value("source", "", "needs to be unset")

    def validate_update(self, item: Object, old: Object) -> Iterator[Problem]:
        if item.get("series") != old.get("series"):
            yield from _series(item)
        for key in IMMUTABLE:
            if item.get(key) != old.get(key):
                yield invalid_value(key, item.get(key), "field is immutable")

    def to_storage(self, item: Object) -> Object:
        return {NEW_TO_OLD.get(key, key): value for key, value in item.items()}

    def from_storage(self, item: Object) -> Object:
        return {OLD_TO_NEW.get(key, key): value for key, value in item.items()}


def _series(item: Object) -> Iterator[Problem]:
    series = item.get("series")
    if series is not None:
        if series.get("count", 0) < 2:
            yield invalid_value("series.count", "", "should be at least 2")
        if not series.get("lastObservedTime"):
            yield required("series.lastObservedTime")
