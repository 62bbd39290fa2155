# SPDX-License-Identifier: Apache-2.0
"""Tests that say nothing about Kubernetes' own API libraries, and why (`make kube-check`)."""

from __future__ import annotations

_RULES = "rules and defaults of core kinds are kube-apiserver's own, not of its libraries"
_CONTROLLERS = "there are no controllers that would end or collect anything"
_LATER = "definitions take effect a moment later"
_AGGREGATOR = "/apis names the groups of definitions by an aggregator alone"
_CACHE = "the watch cache remembers what etcd has forgotten"
_WIRE = "plain HTTP on the wire"
_LAB = "about the lab's own server"

DIFFERENCES = {
    "test_the_server_fills_in_what_is_its_own": _RULES,
    "test_leases_are_checked": _RULES,
    "test_status_and_the_rest_are_apart": _RULES,
    "test_a_pods_spec_stays": _RULES,
    "test_node_conditions_merge_and_taints_do_not": _RULES,
    "test_events_need_what_they_need": _RULES,
    "test_events_are_seen_in_both_forms": _RULES,
    "test_policies_are_checked": _RULES,
    "test_services_get_addresses_that_stay": _RULES,
    "test_slices_are_checked": _RULES,
    "test_pods": _RULES,
    "test_a_kubelet_ends_pods": _CONTROLLERS,
    "test_dependants_go_with_their_owners": _CONTROLLERS,
    "test_dependants_of_dependants": _CONTROLLERS,
    "test_who_names_an_owner_that_is_gone_goes_too": _CONTROLLERS,
    "test_a_namespace_goes_with_its_contents": _CONTROLLERS,
    "test_a_definition_is_established": _LATER,
    "test_the_dynamic_client_discovers_and_applies": _AGGREGATOR,
    "test_definitions_take_their_objects_along": _LATER,
    "test_definitions_wait_for_their_objects": _LATER,
    "test_watches_end_when_the_definition_changes": _LATER,
    "test_a_page_of_a_forgotten_state": _CACHE,
    "test_versions_of_a_list": _CACHE,
    "test_forgotten_versions": _CACHE,
    "test_a_watch_of_a_forgotten_version": _CACHE,
    "test_large_objects_are_refused": _WIRE,
    "test_what_is_no_http": _WIRE,
    "test_connections_are_kept": _WIRE,
    "test_bodies_in_chunks": _WIRE,
    "test_tls": _WIRE,
    "test_media_types": _LAB,
    "test_rules_that_nothing_here_could_check_are_refused": _LAB,
    "test_many_pods_at_once": _LAB,
}
