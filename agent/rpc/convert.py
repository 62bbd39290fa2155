# SPDX-License-Identifier: Apache-2.0
"""Values of agent/core to messages of api/agent.proto.

Views and messages have the same field names, so one function serves them all; flows are
flattened by hand, because a message should not mirror how the kernel packs an event.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, cast

from google.protobuf.message import Message

from agent.core.flow import (
    PORT_PROTOCOLS,
    Flow,
    FlowEvent,
    FlowFilter,
    FlowsLost,
    FlowType,
    Party,
    Verdict,
    drop_reason_name,
    observation_name,
    protocol_name,
    tcp_flag_names,
)
from agent.core.views import InvalidQuery
from api import agent_pb2 as pb

M = TypeVar("M", bound=Message)
K = TypeVar("K", FlowType, Verdict)

__all__ = ["flow_filter", "monitor_event", "to_message"]


def to_message(value: Any, message: type[M]) -> M:
    """The message that says what the dataclass `value` says, field by field of equal name.

    Unset optional parts (None) stay unset.
    """
    return message(**_arguments(value))


def monitor_event(item: Flow | FlowsLost) -> pb.MonitorEvent:
    """One item of a subscription as it goes over the wire."""
    if isinstance(item, FlowsLost):
        return pb.MonitorEvent(lost=pb.FlowsLost(source=item.source, count=item.count))
    return pb.MonitorEvent(flow=_flow(item))


def flow_filter(request: pb.MonitorRequest) -> FlowFilter:
    """The filter that a request asks for. Raises InvalidQuery on numbers that mean nothing."""
    return FlowFilter(
        types=frozenset(_member(FlowType, number, "types") for number in request.types),
        verdicts=frozenset(_member(Verdict, number, "verdicts") for number in request.verdicts),
        pods=tuple(request.pods),
    )


def _member(kind: type[K], number: int, field: str) -> K:
    try:
        return kind(number)
    except ValueError:
        known = ", ".join(f"{m.name.lower()}={m.value}" for m in kind)
        raise InvalidQuery(f"{field}: {number} is not one of {known}") from None


def _arguments(value: Any) -> dict[str, Any]:
    arguments = {}
    for field in fields(value):
        part = _part(getattr(value, field.name))
        if part is not None:
            arguments[field.name] = part
    return arguments


def _part(part: Any) -> Any:
    # A message's constructor takes dicts for its sub-messages.
    if is_dataclass(part):
        return _arguments(part)
    if isinstance(part, Sequence) and not isinstance(part, (str, bytes)):
        return [_part(item) for item in part]
    return part


def _flow(flow: Flow) -> pb.Flow:
    event = flow.event
    ports = event.protocol in PORT_PROTOCOLS
    message = pb.Flow(
        time_unix_ns=flow.time_unix_ns,
        type=cast("pb.FlowType", event.type),
        verdict=cast("pb.Verdict", event.verdict),
        drop_reason=event.reason,
        drop_reason_text=drop_reason_name(event.reason) if event.reason else "",
        direction=cast("pb.Direction", event.direction),
        observation=event.observation,
        observation_text=observation_name(event.observation),
        source=_party(flow.source, event, True, ports),
        destination=_party(flow.destination, event, False, ports),
        protocol=event.protocol,
        protocol_text=protocol_name(event.protocol) if event.source is not None else "",
        tcp_flags=tcp_flag_names(event.tcp_flags),
        icmp_type=event.icmp_type,
        icmp_code=event.icmp_code,
        is_reply=event.reply,
        is_fragment=event.fragment,
        length=event.length,
        endpoint=event.endpoint,
        ifindex=event.ifindex,
        rule=event.rule,
        decided_by=flow.decided_by,
    )
    if flow.policy is not None:
        message.policy.CopyFrom(to_message(flow.policy, pb.PolicyRule))
    return message


def _party(party: Party, event: FlowEvent, source: bool, ports: bool) -> pb.FlowParty:
    address = event.source if source else event.destination
    port = event.source_port if source else event.destination_port
    mac = event.source_mac if source else event.destination_mac
    return pb.FlowParty(
        address="" if address is None else str(address),
        port=port if ports else 0,
        identity=event.source_identity if source else event.destination_identity,
        namespace=party.namespace,
        pod=party.pod,
        labels=party.labels,
        mac=mac.hex(":"),
    )
