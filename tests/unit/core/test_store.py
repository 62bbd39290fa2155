# SPDX-License-Identifier: Apache-2.0
"""Services and their slices as the store has them, and what it says has changed."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from agent.core.events import (
    EndpointSlice,
    EndpointSliceRemoved,
    EndpointSliceUpserted,
    Service,
    ServicePort,
    ServiceRemoved,
    ServiceUpserted,
)
from agent.core.store import Store

SOURCE = "test"
WEB, API = ("shop", "web"), ("shop", "api")
HTTP = ServicePort("http", 6, 80)
SERVICE = Service("shop", "web", ("10.96.0.11",), (HTTP,))
SLICE = EndpointSlice("shop", "web-1", "web", ("10.0.0.1",), (HTTP,))


def changed(store: Store) -> set[tuple[str, str]]:
    return store.take_changes().services


def test_services_come_change_and_go() -> None:
    store = Store([SOURCE])
    store.apply(ServiceUpserted(SOURCE, SERVICE))
    assert store.take_changes()
    assert not store.take_changes()
    other = replace(SERVICE, ports=())
    store.apply(ServiceUpserted(SOURCE, other))
    assert store.services == {WEB: other}
    assert changed(store) == {WEB}
    store.apply(ServiceRemoved(SOURCE, SERVICE.key))
    assert store.services == {}
    assert changed(store) == {WEB}


def test_a_slice_changes_its_service_whether_that_is_known_or_not() -> None:
    store = Store([SOURCE])
    second = replace(SLICE, name="web-0")
    for part in (SLICE, second):
        store.apply(EndpointSliceUpserted(SOURCE, part))
        assert changed(store) == {WEB}
    assert store.slices_of(WEB) == (second, SLICE)
    later = replace(SLICE, addresses=("10.0.0.2",))
    store.apply(EndpointSliceUpserted(SOURCE, later))
    assert changed(store) == {WEB}
    assert store.slices_of(WEB) == (second, later)
    store.apply(EndpointSliceRemoved(SOURCE, second.key))
    assert changed(store) == {WEB}
    assert store.slices_of(WEB) == (later,)
    assert store.slices_of(("other", "web")) == ()


def test_a_slice_that_moves_changes_both_services() -> None:
    store = Store([SOURCE])
    store.apply(EndpointSliceUpserted(SOURCE, SLICE))
    changed(store)
    moved = replace(SLICE, service="api")
    store.apply(EndpointSliceUpserted(SOURCE, moved))
    assert changed(store) == {WEB, API}
    assert (store.slices_of(WEB), store.slices_of(API)) == ((), (moved,))
    store.apply(EndpointSliceUpserted(SOURCE, replace(SLICE, service="")))
    assert changed(store) == {API}
    assert store.slices_of(API) == ()


def test_what_is_of_no_service_or_was_never_there_changes_nothing() -> None:
    store = Store([SOURCE])
    stray = replace(SLICE, service="")
    store.apply(EndpointSliceUpserted(SOURCE, stray))
    assert store.slices == {("shop", "web-1"): stray}
    store.apply(EndpointSliceRemoved(SOURCE, stray.key))
    store.apply(EndpointSliceRemoved(SOURCE, stray.key))
    assert store.slices == {}
    assert not store.changed


NAMES = st.sampled_from(["a", "b", "c"])
STEPS = st.lists(st.tuples(NAMES, NAMES, st.sampled_from(["", "web", "api", None])), max_size=20)


@given(STEPS)
def test_slices_are_found_by_their_service_whatever_came_before(
    steps: list[tuple[str, str, str | None]],
) -> None:
    """None: the slice is gone."""
    store = Store([SOURCE])
    expected: dict[tuple[str, str], EndpointSlice] = {}
    for namespace, name, service in steps:
        part = EndpointSlice(namespace, name, service or "")
        if service is None:
            store.apply(EndpointSliceRemoved(SOURCE, part.key))
            expected.pop((namespace, name), None)
        else:
            store.apply(EndpointSliceUpserted(SOURCE, part))
            expected[namespace, name] = part
    assert store.slices == expected
    for namespace in "abc":
        for service in ("web", "api", ""):
            assert store.slices_of((namespace, service)) == tuple(
                part
                for key, part in sorted(expected.items())
                if service and (key[0], part.service) == (namespace, service)
            )
