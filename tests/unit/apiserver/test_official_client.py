# SPDX-License-Identifier: Apache-2.0
"""The official Python client, unchanged, against this server."""

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from kubernetes import client, config, dynamic, watch
from kubernetes.client.rest import ApiException

from bench.lab.apiserver import ApiServer, write_kubeconfig, write_service_account
from tests.unit.apiserver.web import definition, event, node, pod, thing


@pytest.fixture
def api(server: ApiServer, tmp_path: Path) -> Iterator[Any]:
    """A client that a kubeconfig file configured."""
    file = tmp_path / "kubeconfig"
    write_kubeconfig(file, server.url, ca=server.ca)
    with config.new_client_from_config(str(file)) as made:
        yield made


def test_pods(server: ApiServer, api: Any) -> None:
    core = client.CoreV1Api(api)
    made = core.create_namespaced_pod("default", pod(nodeName="n1"))
    assert made.metadata.uid and made.status.phase == "Pending"
    status = {"status": {"phase": "Running", "podIP": "10.0.0.1"}}
    done = core.patch_namespaced_pod_status("a", "default", status)
    assert done.status.pod_ips[0].ip == "10.0.0.1"
    listed = core.list_pod_for_all_namespaces(field_selector="spec.nodeName=n1", limit=1)
    assert [item.metadata.name for item in listed.items] == ["a"]
    with pytest.raises(ApiException) as error:
        core.create_namespaced_pod("default", pod())
    assert error.value.status == 409 and error.value.reason == "Conflict"
    core.delete_namespaced_pod("a", "default")
    assert core.list_namespaced_pod("default").items == []


def test_watch(server: ApiServer, api: Any) -> None:
    core = client.CoreV1Api(api)
    server.create(pod("a"))
    seen = []
    stream = watch.Watch()
    for item in stream.stream(core.list_namespaced_pod, "default", timeout_seconds=20):
        seen.append((item["type"], item["object"].metadata.name))
        if len(seen) == 1:
            server.create(pod("b"))
        elif len(seen) == 2:
            server.delete("Pod", "a", "default")
        elif len(seen) == 4:
            stream.stop()
    assert seen == [("ADDED", "a"), ("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "a")]


def test_a_watch_of_a_forgotten_version(server: ApiServer, api: Any) -> None:
    core = client.CoreV1Api(api)
    server.create(pod("a"))
    old = core.list_namespaced_pod("default").metadata.resource_version
    server.create(pod("b"))
    server.compact()
    with pytest.raises(ApiException) as error:
        for _ in watch.Watch().stream(
            core.list_namespaced_pod, "default", resource_version=old, timeout_seconds=5
        ):
            pass
    assert error.value.status == 410


def test_leases_elect_a_leader(api: Any) -> None:
    leases = client.CoordinationV1Api(api)
    now = datetime.datetime.now(datetime.UTC)
    body = client.V1Lease(
        metadata=client.V1ObjectMeta(name="leader"),
        spec=client.V1LeaseSpec(
            holder_identity="a", lease_duration_seconds=15, acquire_time=now, renew_time=now
        ),
    )
    mine = leases.create_namespaced_lease("default", body)
    assert mine.spec.renew_time == now
    theirs = leases.read_namespaced_lease("leader", "default")
    mine.spec.renew_time = now + datetime.timedelta(seconds=1, microseconds=7)
    assert leases.replace_namespaced_lease("leader", "default", mine).spec.holder_identity == "a"
    theirs.spec.holder_identity = "b"
    with pytest.raises(ApiException) as error:
        leases.replace_namespaced_lease("leader", "default", theirs)
    assert error.value.status == 409


def test_custom_objects(server: ApiServer, api: Any) -> None:
    client.ApiextensionsV1Api(api).create_custom_resource_definition(definition())
    things = client.CustomObjectsApi(api)
    where = ("example.io", "v1", "things")
    made = things.create_cluster_custom_object(*where, thing())
    assert made["spec"]["mode"] == "on"
    things.patch_cluster_custom_object(*where, "t", {"spec": {"size": 3}})
    status = {"status": {"ready": True}}
    done = things.patch_cluster_custom_object_status(*where, "t", status)
    assert done["status"] == {"ready": True} and done["spec"]["size"] == 3
    assert things.list_cluster_custom_object(*where)["kind"] == "ThingList"
    things.delete_cluster_custom_object(*where, "t")
    with pytest.raises(ApiException) as error:
        things.get_cluster_custom_object(*where, "t")
    assert error.value.status == 404


def test_nodes_and_events(api: Any) -> None:
    core = client.CoreV1Api(api)
    core.create_node(node(taints=[{"key": "a", "effect": "NoSchedule"}]))
    condition = {"type": "NetworkUnavailable", "status": "False", "reason": "AgentReady"}
    done = core.patch_node_status("n1", {"status": {"conditions": [condition]}})
    assert done.status.conditions[0].reason == "AgentReady"
    assert core.patch_node("n1", {"spec": {"taints": []}}).spec.taints is None
    events = client.EventsV1Api(api)
    with pytest.raises(ApiException) as error:
        # This client writes a time without a fraction where it is a whole second.
        events.create_namespaced_event("default", event())
    assert error.value.status == 400 and "parsing time" in error.value.body
    moment = "2024-05-01T10:00:00.000001Z"
    events.create_namespaced_event("default", event(eventTime=moment))
    (found,) = core.list_namespaced_event("default").items
    assert found.message == "table is full" and found.reporting_component == "example.io/agent"


def test_the_dynamic_client_discovers_and_applies(server: ApiServer, api: Any) -> None:
    server.create(definition())
    found = dynamic.DynamicClient(api)
    things = found.resources.get(api_version="example.io/v1", kind="Thing")
    made = things.server_side_apply(body=thing(), name="t", field_manager="me")
    assert made.metadata.managedFields[0].manager == "me"
    pods = found.resources.get(api_version="v1", kind="Pod")
    pods.create(body=pod(), namespace="default")
    assert [item.metadata.name for item in pods.get(namespace="default").items] == ["a"]


def test_as_a_pod_in_the_cluster(tmp_path: Path) -> None:
    """A service account's folder, TLS, and a token that is renewed."""
    with ApiServer(tls=True, tokens={"first": "system:serviceaccount:a:b"}) as server:
        folder = tmp_path / "serviceaccount"
        write_service_account(folder, "first", server.ca, "a")
        loader = config.incluster_config.InClusterConfigLoader(
            token_filename=str(folder / "token"),
            cert_filename=str(folder / "ca.crt"),
            environ={
                "KUBERNETES_SERVICE_HOST": server.host,
                "KUBERNETES_SERVICE_PORT": str(server.port),
            },
        )
        settings = client.Configuration()
        loader.load_and_set(settings)
        with client.ApiClient(settings) as made:
            core = client.CoreV1Api(made)
            assert len(core.list_namespace().items) == 4
        server.set_tokens({"second": "system:serviceaccount:a:b"})
        before = {path.name for path in folder.iterdir()}
        write_service_account(folder, "second", server.ca, "a")
        assert (folder / "token").read_text() == "second"
        assert (folder / "namespace").read_text() == "a"
        assert len(before) == len(list(folder.iterdir()))  # the old data is gone
        loader.load_and_set(settings)
        with client.ApiClient(settings) as made:
            assert client.CoreV1Api(made).list_node().items == []
    with pytest.raises(urllib3.exceptions.MaxRetryError):
        client.CoreV1Api(client.ApiClient(settings)).list_node(_request_timeout=1)
