# SPDX-License-Identifier: Apache-2.0
"""The server itself: streams that end, limits, and messages that say all that views say."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from enum import IntEnum
from pathlib import Path
from typing import Any, get_type_hints

import grpc
import pytest
from google.protobuf.message import Message

from agent.core import flow as core_flow
from agent.core import views
from agent.core.flow import FlowFilter, FlowSubscription, FlowType, Verdict
from agent.rpc.convert import to_message
from agent.rpc.server import MAX_MONITORS, AgentServer
from agent.telemetry.flows import FlowHub
from api import agent_pb2 as pb
from api.agent_pb2_grpc import AgentStub
from tests.unit.cli.fake import ENDPOINT, EXPLANATION, STATUS, Agent, FakeView, flow


@pytest.fixture
def stub(agent: Agent) -> Iterator[Any]:
    """A client of the fake agent."""
    with grpc.insecure_channel(f"unix:{agent.run_dir}/agent.sock") as channel:
        yield AgentStub(channel)  # type: ignore[no-untyped-call]


@dataclass(slots=True)
class HubView(FakeView):
    """Monitors are served by a real hub."""

    hub: FlowHub = field(
        default_factory=lambda: FlowHub(
            wall_ns=time.time_ns, monotonic_ns=time.monotonic_ns, kernel_lost=lambda: 0
        )
    )

    def monitor(self, wanted: FlowFilter, last: int, follow: bool) -> FlowSubscription:
        return self.hub.subscribe(wanted, last, follow)


@pytest.fixture
def hub_server(tmp_path: Path) -> Iterator[tuple[AgentServer, HubView]]:
    """A server whose monitors go on for ever."""
    view = HubView()
    server = AgentServer(view, tmp_path)
    server.start()
    yield server, view
    server.stop()


def until(condition: Callable[[], bool]) -> None:
    """Waits for what another thread is about to do."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("did not come about in 30 s")


def test_monitors_are_bounded_and_a_client_that_leaves_makes_room(
    hub_server: tuple[AgentServer, HubView],
) -> None:
    server, view = hub_server
    with grpc.insecure_channel(f"unix:{server.path}") as channel:
        stub: Any = AgentStub(channel)  # type: ignore[no-untyped-call]
        streams = [stub.Monitor(pb.MonitorRequest()) for _ in range(MAX_MONITORS)]
        until(lambda: view.hub.readers == MAX_MONITORS)
        with pytest.raises(grpc.RpcError) as refused:
            next(stub.Monitor(pb.MonitorRequest()))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # Other calls still find a thread.
        assert stub.Status(pb.StatusRequest(), timeout=30).node_name == "node-a"
        streams.pop().cancel()
        until(lambda: view.hub.readers == MAX_MONITORS - 1)

        def accepted() -> bool:
            streams.append(stub.Monitor(pb.MonitorRequest()))
            return view.hub.readers == MAX_MONITORS

        until(accepted)


def test_stopping_ends_the_streams(tmp_path: Path) -> None:
    view = HubView()
    server = AgentServer(view, tmp_path)
    server.start()
    ended = threading.Event()

    def watch() -> None:
        with grpc.insecure_channel(f"unix:{server.path}") as channel:
            stub: Any = AgentStub(channel)  # type: ignore[no-untyped-call]
            # No RpcError: the stream ends in order, it is not cut off.
            assert list(stub.Monitor(pb.MonitorRequest())) == []
            ended.set()

    client = threading.Thread(target=watch)
    client.start()
    until(lambda: view.hub.readers == 1)
    server.stop(grace=20)
    assert ended.wait(30)
    client.join()
    assert view.hub.readers == 0


@pytest.mark.parametrize(
    ("request_", "field_"),
    [
        (pb.ExplainQuery(protocol=256), "protocol"),
        (pb.ExplainQuery(protocol=6, port=65536), "port"),
    ],
)
def test_numbers_out_of_range_never_reach_the_agent(
    agent: Agent, stub: Any, request_: pb.ExplainQuery, field_: str
) -> None:
    with pytest.raises(grpc.RpcError, match=f"{field_}: ") as refused:
        stub.Explain(request_)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not agent.view.queries


def test_unknown_filter_values_are_refused(stub: Any) -> None:
    request = pb.MonitorRequest()
    request.MergeFromString(b"\x08\x63")  # types: 99
    with pytest.raises(grpc.RpcError, match="types: 99 is not one of drop=1"):
        list(stub.Monitor(request))


def test_a_large_file_comes_in_parts(stub: Any) -> None:
    first, *parts = stub.Dump(pb.DumpRequest())
    assert first.name == "../state/store.json"
    assert len(parts) == 3
    assert b"".join(part.content for part in parts) == b"x" * 3_000_000


PAIRS = [
    (getattr(views, name), getattr(pb, name))
    for name in dir(views)
    if isinstance(getattr(views, name), type)
    and hasattr(getattr(views, name), "__dataclass_fields__")
    and name not in ("FlowFilter",)
]


@pytest.mark.parametrize(("view", "message"), PAIRS, ids=lambda kind: kind.__name__)
def test_messages_have_the_fields_of_views(view: Any, message: type[Message]) -> None:
    assert {f.name for f in fields(view)} == set(message.DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (views.ObjectState, "ObjectState"),
        (core_flow.Direction, "Direction"),
        (core_flow.FlowType, "FlowType"),
        (core_flow.Verdict, "Verdict"),
    ],
)
def test_enums_agree(kind: type[IntEnum], name: str) -> None:
    wire = pb.DESCRIPTOR.enum_types_by_name[name].values_by_number
    for member in kind:
        assert wire[member.value].name.endswith(f"_{member.name}")


def test_values_survive_the_wire() -> None:
    for value in (STATUS, ENDPOINT, EXPLANATION):
        message = to_message(value, getattr(pb, type(value).__name__))
        assert back(type(message).FromString(message.SerializeToString()), type(value)) == value


def back(message: Any, kind: Any) -> Any:
    """The dataclass `kind` that `message` was made of."""
    hints = get_type_hints(kind)
    return kind(**{name: _back(message, name, hint) for name, hint in hints.items()})


def _back(message: Any, name: str, hint: Any) -> Any:
    value, described = getattr(message, name), message.DESCRIPTOR.fields_by_name[name]
    types = [t for t in getattr(hint, "__args__", (hint,)) if hasattr(t, "__dataclass_fields__")]
    if described.is_repeated:
        return tuple(back(item, types[0]) if types else item for item in value)
    if types:
        return back(value, types[0]) if message.HasField(name) else None
    return hint(value) if isinstance(hint, type) else value


def test_flow_without_addresses(agent: Agent) -> None:
    agent.view.items = [
        [flow(FlowType.DROP, Verdict.DROPPED, source=None, destination=None, reason=139)]
    ]
    assert "Unsupported L3 protocol INGRESS DROPPED" in agent.run("monitor").stdout
