from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ObjectState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OBJECT_STATE_UNSPECIFIED: _ClassVar[ObjectState]
    OBJECT_STATE_PENDING: _ClassVar[ObjectState]
    OBJECT_STATE_DONE: _ClassVar[ObjectState]
    OBJECT_STATE_FAILED: _ClassVar[ObjectState]

class Direction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DIRECTION_UNKNOWN: _ClassVar[Direction]
    DIRECTION_INGRESS: _ClassVar[Direction]
    DIRECTION_EGRESS: _ClassVar[Direction]

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNKNOWN: _ClassVar[Verdict]
    VERDICT_FORWARDED: _ClassVar[Verdict]
    VERDICT_DROPPED: _ClassVar[Verdict]

class FlowType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FLOW_TYPE_UNKNOWN: _ClassVar[FlowType]
    FLOW_TYPE_DROP: _ClassVar[FlowType]
    FLOW_TYPE_TRACE: _ClassVar[FlowType]
    FLOW_TYPE_POLICY_VERDICT: _ClassVar[FlowType]
OBJECT_STATE_UNSPECIFIED: ObjectState
OBJECT_STATE_PENDING: ObjectState
OBJECT_STATE_DONE: ObjectState
OBJECT_STATE_FAILED: ObjectState
DIRECTION_UNKNOWN: Direction
DIRECTION_INGRESS: Direction
DIRECTION_EGRESS: Direction
VERDICT_UNKNOWN: Verdict
VERDICT_FORWARDED: Verdict
VERDICT_DROPPED: Verdict
FLOW_TYPE_UNKNOWN: FlowType
FLOW_TYPE_DROP: FlowType
FLOW_TYPE_TRACE: FlowType
FLOW_TYPE_POLICY_VERDICT: FlowType

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListEndpointsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListIdentitiesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPoliciesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SelectorsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NumbersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MetricsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DumpRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SourceStatus(_message.Message):
    __slots__ = ("name", "synced", "detail")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SYNCED_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    name: str
    synced: bool
    detail: str
    def __init__(self, name: _Optional[str] = ..., synced: _Optional[bool] = ..., detail: _Optional[str] = ...) -> None: ...

class Problem(_message.Message):
    __slots__ = ("what", "message")
    WHAT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    what: str
    message: str
    def __init__(self, what: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class MapUsage(_message.Message):
    __slots__ = ("name", "entries", "capacity", "group")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    name: str
    entries: int
    capacity: int
    group: str
    def __init__(self, name: _Optional[str] = ..., entries: _Optional[int] = ..., capacity: _Optional[int] = ..., group: _Optional[str] = ...) -> None: ...

class PoolUsage(_message.Message):
    __slots__ = ("family", "cidr", "used", "capacity")
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    CIDR_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    family: str
    cidr: str
    used: int
    capacity: float
    def __init__(self, family: _Optional[str] = ..., cidr: _Optional[str] = ..., used: _Optional[int] = ..., capacity: _Optional[float] = ...) -> None: ...

class SocketRedirectStatus(_message.Message):
    __slots__ = ("enabled", "mode", "detail", "forced", "cgroup", "stalls", "failed_checks", "endpoints")
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    FORCED_FIELD_NUMBER: _ClassVar[int]
    CGROUP_FIELD_NUMBER: _ClassVar[int]
    STALLS_FIELD_NUMBER: _ClassVar[int]
    FAILED_CHECKS_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    enabled: bool
    mode: str
    detail: str
    forced: bool
    cgroup: str
    stalls: int
    failed_checks: _containers.RepeatedScalarFieldContainer[str]
    endpoints: int
    def __init__(self, enabled: _Optional[bool] = ..., mode: _Optional[str] = ..., detail: _Optional[str] = ..., forced: _Optional[bool] = ..., cgroup: _Optional[str] = ..., stalls: _Optional[int] = ..., failed_checks: _Optional[_Iterable[str]] = ..., endpoints: _Optional[int] = ...) -> None: ...

class AgentStatus(_message.Message):
    __slots__ = ("ready", "version", "node_name", "pid", "uptime_seconds", "policy_revision", "policy_epoch", "attach_mode", "sources", "problems", "maps", "pools", "devices", "endpoints", "endpoints_pending", "endpoints_failed", "identities", "policies", "policies_failed", "rejected", "events_lost", "socket_redirect")
    READY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NODE_NAME_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    POLICY_REVISION_FIELD_NUMBER: _ClassVar[int]
    POLICY_EPOCH_FIELD_NUMBER: _ClassVar[int]
    ATTACH_MODE_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    MAPS_FIELD_NUMBER: _ClassVar[int]
    POOLS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_PENDING_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FAILED_FIELD_NUMBER: _ClassVar[int]
    IDENTITIES_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FAILED_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    EVENTS_LOST_FIELD_NUMBER: _ClassVar[int]
    SOCKET_REDIRECT_FIELD_NUMBER: _ClassVar[int]
    ready: bool
    version: str
    node_name: str
    pid: int
    uptime_seconds: float
    policy_revision: int
    policy_epoch: int
    attach_mode: str
    sources: _containers.RepeatedCompositeFieldContainer[SourceStatus]
    problems: _containers.RepeatedCompositeFieldContainer[Problem]
    maps: _containers.RepeatedCompositeFieldContainer[MapUsage]
    pools: _containers.RepeatedCompositeFieldContainer[PoolUsage]
    devices: _containers.RepeatedScalarFieldContainer[str]
    endpoints: int
    endpoints_pending: int
    endpoints_failed: int
    identities: int
    policies: int
    policies_failed: int
    rejected: int
    events_lost: int
    socket_redirect: SocketRedirectStatus
    def __init__(self, ready: _Optional[bool] = ..., version: _Optional[str] = ..., node_name: _Optional[str] = ..., pid: _Optional[int] = ..., uptime_seconds: _Optional[float] = ..., policy_revision: _Optional[int] = ..., policy_epoch: _Optional[int] = ..., attach_mode: _Optional[str] = ..., sources: _Optional[_Iterable[_Union[SourceStatus, _Mapping]]] = ..., problems: _Optional[_Iterable[_Union[Problem, _Mapping]]] = ..., maps: _Optional[_Iterable[_Union[MapUsage, _Mapping]]] = ..., pools: _Optional[_Iterable[_Union[PoolUsage, _Mapping]]] = ..., devices: _Optional[_Iterable[str]] = ..., endpoints: _Optional[int] = ..., endpoints_pending: _Optional[int] = ..., endpoints_failed: _Optional[int] = ..., identities: _Optional[int] = ..., policies: _Optional[int] = ..., policies_failed: _Optional[int] = ..., rejected: _Optional[int] = ..., events_lost: _Optional[int] = ..., socket_redirect: _Optional[_Union[SocketRedirectStatus, _Mapping]] = ...) -> None: ...

class GetEndpointRequest(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: str
    def __init__(self, key: _Optional[str] = ...) -> None: ...

class EndpointInfo(_message.Message):
    __slots__ = ("id", "namespace", "pod", "state", "status", "identity", "reason", "labels", "ipv4", "ipv6", "mac", "device", "ifindex", "container_id", "ingress_enforced", "egress_enforced", "ingress_policies", "egress_policies", "ingress_table", "egress_table")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    IPV4_FIELD_NUMBER: _ClassVar[int]
    IPV6_FIELD_NUMBER: _ClassVar[int]
    MAC_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    IFINDEX_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    INGRESS_ENFORCED_FIELD_NUMBER: _ClassVar[int]
    EGRESS_ENFORCED_FIELD_NUMBER: _ClassVar[int]
    INGRESS_POLICIES_FIELD_NUMBER: _ClassVar[int]
    EGRESS_POLICIES_FIELD_NUMBER: _ClassVar[int]
    INGRESS_TABLE_FIELD_NUMBER: _ClassVar[int]
    EGRESS_TABLE_FIELD_NUMBER: _ClassVar[int]
    id: int
    namespace: str
    pod: str
    state: str
    status: ObjectState
    identity: int
    reason: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    ipv4: str
    ipv6: str
    mac: str
    device: str
    ifindex: int
    container_id: str
    ingress_enforced: bool
    egress_enforced: bool
    ingress_policies: _containers.RepeatedScalarFieldContainer[str]
    egress_policies: _containers.RepeatedScalarFieldContainer[str]
    ingress_table: int
    egress_table: int
    def __init__(self, id: _Optional[int] = ..., namespace: _Optional[str] = ..., pod: _Optional[str] = ..., state: _Optional[str] = ..., status: _Optional[_Union[ObjectState, str]] = ..., identity: _Optional[int] = ..., reason: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., ipv4: _Optional[str] = ..., ipv6: _Optional[str] = ..., mac: _Optional[str] = ..., device: _Optional[str] = ..., ifindex: _Optional[int] = ..., container_id: _Optional[str] = ..., ingress_enforced: _Optional[bool] = ..., egress_enforced: _Optional[bool] = ..., ingress_policies: _Optional[_Iterable[str]] = ..., egress_policies: _Optional[_Iterable[str]] = ..., ingress_table: _Optional[int] = ..., egress_table: _Optional[int] = ...) -> None: ...

class EndpointList(_message.Message):
    __slots__ = ("endpoints",)
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    endpoints: _containers.RepeatedCompositeFieldContainer[EndpointInfo]
    def __init__(self, endpoints: _Optional[_Iterable[_Union[EndpointInfo, _Mapping]]] = ...) -> None: ...

class IdentityInfo(_message.Message):
    __slots__ = ("number", "type", "labels", "references")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    number: int
    type: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    references: int
    def __init__(self, number: _Optional[int] = ..., type: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., references: _Optional[int] = ...) -> None: ...

class IdentityList(_message.Message):
    __slots__ = ("identities",)
    IDENTITIES_FIELD_NUMBER: _ClassVar[int]
    identities: _containers.RepeatedCompositeFieldContainer[IdentityInfo]
    def __init__(self, identities: _Optional[_Iterable[_Union[IdentityInfo, _Mapping]]] = ...) -> None: ...

class PolicyInfo(_message.Message):
    __slots__ = ("kind", "namespace", "name", "status", "reason", "ingress_rules", "egress_rules", "types", "endpoints", "spec_json")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    INGRESS_RULES_FIELD_NUMBER: _ClassVar[int]
    EGRESS_RULES_FIELD_NUMBER: _ClassVar[int]
    TYPES_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    kind: str
    namespace: str
    name: str
    status: ObjectState
    reason: str
    ingress_rules: int
    egress_rules: int
    types: _containers.RepeatedScalarFieldContainer[str]
    endpoints: int
    spec_json: str
    def __init__(self, kind: _Optional[str] = ..., namespace: _Optional[str] = ..., name: _Optional[str] = ..., status: _Optional[_Union[ObjectState, str]] = ..., reason: _Optional[str] = ..., ingress_rules: _Optional[int] = ..., egress_rules: _Optional[int] = ..., types: _Optional[_Iterable[str]] = ..., endpoints: _Optional[int] = ..., spec_json: _Optional[str] = ...) -> None: ...

class RejectedInfo(_message.Message):
    __slots__ = ("origin", "document", "resource", "field", "message", "last_good")
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    LAST_GOOD_FIELD_NUMBER: _ClassVar[int]
    origin: str
    document: int
    resource: str
    field: str
    message: str
    last_good: bool
    def __init__(self, origin: _Optional[str] = ..., document: _Optional[int] = ..., resource: _Optional[str] = ..., field: _Optional[str] = ..., message: _Optional[str] = ..., last_good: _Optional[bool] = ...) -> None: ...

class PolicyList(_message.Message):
    __slots__ = ("revision", "policies", "rejected")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    revision: int
    policies: _containers.RepeatedCompositeFieldContainer[PolicyInfo]
    rejected: _containers.RepeatedCompositeFieldContainer[RejectedInfo]
    def __init__(self, revision: _Optional[int] = ..., policies: _Optional[_Iterable[_Union[PolicyInfo, _Mapping]]] = ..., rejected: _Optional[_Iterable[_Union[RejectedInfo, _Mapping]]] = ...) -> None: ...

class SelectorInfo(_message.Message):
    __slots__ = ("selector", "identities", "policies")
    SELECTOR_FIELD_NUMBER: _ClassVar[int]
    IDENTITIES_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    selector: str
    identities: _containers.RepeatedScalarFieldContainer[int]
    policies: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, selector: _Optional[str] = ..., identities: _Optional[_Iterable[int]] = ..., policies: _Optional[_Iterable[str]] = ...) -> None: ...

class SelectorList(_message.Message):
    __slots__ = ("selectors",)
    SELECTORS_FIELD_NUMBER: _ClassVar[int]
    selectors: _containers.RepeatedCompositeFieldContainer[SelectorInfo]
    def __init__(self, selectors: _Optional[_Iterable[_Union[SelectorInfo, _Mapping]]] = ...) -> None: ...

class ExplainQuery(_message.Message):
    __slots__ = ("source", "destination", "protocol", "port")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    source: str
    destination: str
    protocol: int
    port: int
    def __init__(self, source: _Optional[str] = ..., destination: _Optional[str] = ..., protocol: _Optional[int] = ..., port: _Optional[int] = ...) -> None: ...

class RuleMention(_message.Message):
    __slots__ = ("policy", "index", "failed", "kind")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    policy: str
    index: int
    failed: _containers.RepeatedScalarFieldContainer[str]
    kind: str
    def __init__(self, policy: _Optional[str] = ..., index: _Optional[int] = ..., failed: _Optional[_Iterable[str]] = ..., kind: _Optional[str] = ...) -> None: ...

class KernelVerdict(_message.Message):
    __slots__ = ("available", "allowed", "decided_by", "reason", "note")
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    DECIDED_BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    available: bool
    allowed: bool
    decided_by: str
    reason: str
    note: str
    def __init__(self, available: _Optional[bool] = ..., allowed: _Optional[bool] = ..., decided_by: _Optional[str] = ..., reason: _Optional[str] = ..., note: _Optional[str] = ...) -> None: ...

class DirectionVerdict(_message.Message):
    __slots__ = ("direction", "evaluated", "allowed", "decided_by", "kernel", "agrees", "rule", "nearest", "note")
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    EVALUATED_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    DECIDED_BY_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    AGREES_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    NEAREST_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    direction: Direction
    evaluated: bool
    allowed: bool
    decided_by: str
    kernel: KernelVerdict
    agrees: bool
    rule: RuleMention
    nearest: RuleMention
    note: str
    def __init__(self, direction: _Optional[_Union[Direction, str]] = ..., evaluated: _Optional[bool] = ..., allowed: _Optional[bool] = ..., decided_by: _Optional[str] = ..., kernel: _Optional[_Union[KernelVerdict, _Mapping]] = ..., agrees: _Optional[bool] = ..., rule: _Optional[_Union[RuleMention, _Mapping]] = ..., nearest: _Optional[_Union[RuleMention, _Mapping]] = ..., note: _Optional[str] = ...) -> None: ...

class ExplainParty(_message.Message):
    __slots__ = ("text", "address", "identity", "labels")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    text: str
    address: str
    identity: int
    labels: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, text: _Optional[str] = ..., address: _Optional[str] = ..., identity: _Optional[int] = ..., labels: _Optional[_Iterable[str]] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("source", "destination", "protocol", "port", "allowed", "egress", "ingress")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    EGRESS_FIELD_NUMBER: _ClassVar[int]
    INGRESS_FIELD_NUMBER: _ClassVar[int]
    source: ExplainParty
    destination: ExplainParty
    protocol: int
    port: int
    allowed: bool
    egress: DirectionVerdict
    ingress: DirectionVerdict
    def __init__(self, source: _Optional[_Union[ExplainParty, _Mapping]] = ..., destination: _Optional[_Union[ExplainParty, _Mapping]] = ..., protocol: _Optional[int] = ..., port: _Optional[int] = ..., allowed: _Optional[bool] = ..., egress: _Optional[_Union[DirectionVerdict, _Mapping]] = ..., ingress: _Optional[_Union[DirectionVerdict, _Mapping]] = ...) -> None: ...

class CheckRequest(_message.Message):
    __slots__ = ("repair",)
    REPAIR_FIELD_NUMBER: _ClassVar[int]
    repair: bool
    def __init__(self, repair: _Optional[bool] = ...) -> None: ...

class CheckDifference(_message.Message):
    __slots__ = ("where", "direction", "peer", "protocol", "first_port", "last_port", "expected", "actual")
    WHERE_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    FIRST_PORT_FIELD_NUMBER: _ClassVar[int]
    LAST_PORT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    ACTUAL_FIELD_NUMBER: _ClassVar[int]
    where: str
    direction: Direction
    peer: str
    protocol: int
    first_port: int
    last_port: int
    expected: str
    actual: str
    def __init__(self, where: _Optional[str] = ..., direction: _Optional[_Union[Direction, str]] = ..., peer: _Optional[str] = ..., protocol: _Optional[int] = ..., first_port: _Optional[int] = ..., last_port: _Optional[int] = ..., expected: _Optional[str] = ..., actual: _Optional[str] = ...) -> None: ...

class CheckReport(_message.Message):
    __slots__ = ("tables", "classes", "intervals", "difference_count", "differences")
    TABLES_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    INTERVALS_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_COUNT_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    tables: int
    classes: int
    intervals: int
    difference_count: int
    differences: _containers.RepeatedCompositeFieldContainer[CheckDifference]
    def __init__(self, tables: _Optional[int] = ..., classes: _Optional[int] = ..., intervals: _Optional[int] = ..., difference_count: _Optional[int] = ..., differences: _Optional[_Iterable[_Union[CheckDifference, _Mapping]]] = ...) -> None: ...

class NumberName(_message.Message):
    __slots__ = ("number", "text")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    number: int
    text: str
    def __init__(self, number: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class NumberNames(_message.Message):
    __slots__ = ("rules", "tables", "classes", "endpoints", "identities")
    RULES_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    IDENTITIES_FIELD_NUMBER: _ClassVar[int]
    rules: _containers.RepeatedCompositeFieldContainer[NumberName]
    tables: _containers.RepeatedCompositeFieldContainer[NumberName]
    classes: _containers.RepeatedCompositeFieldContainer[NumberName]
    endpoints: _containers.RepeatedCompositeFieldContainer[NumberName]
    identities: _containers.RepeatedCompositeFieldContainer[NumberName]
    def __init__(self, rules: _Optional[_Iterable[_Union[NumberName, _Mapping]]] = ..., tables: _Optional[_Iterable[_Union[NumberName, _Mapping]]] = ..., classes: _Optional[_Iterable[_Union[NumberName, _Mapping]]] = ..., endpoints: _Optional[_Iterable[_Union[NumberName, _Mapping]]] = ..., identities: _Optional[_Iterable[_Union[NumberName, _Mapping]]] = ...) -> None: ...

class MonitorRequest(_message.Message):
    __slots__ = ("types", "verdicts", "pods", "last", "no_follow")
    TYPES_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    PODS_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    NO_FOLLOW_FIELD_NUMBER: _ClassVar[int]
    types: _containers.RepeatedScalarFieldContainer[FlowType]
    verdicts: _containers.RepeatedScalarFieldContainer[Verdict]
    pods: _containers.RepeatedScalarFieldContainer[str]
    last: int
    no_follow: bool
    def __init__(self, types: _Optional[_Iterable[_Union[FlowType, str]]] = ..., verdicts: _Optional[_Iterable[_Union[Verdict, str]]] = ..., pods: _Optional[_Iterable[str]] = ..., last: _Optional[int] = ..., no_follow: _Optional[bool] = ...) -> None: ...

class FlowParty(_message.Message):
    __slots__ = ("address", "port", "identity", "namespace", "pod", "labels", "mac")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    MAC_FIELD_NUMBER: _ClassVar[int]
    address: str
    port: int
    identity: int
    namespace: str
    pod: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    mac: str
    def __init__(self, address: _Optional[str] = ..., port: _Optional[int] = ..., identity: _Optional[int] = ..., namespace: _Optional[str] = ..., pod: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., mac: _Optional[str] = ...) -> None: ...

class Flow(_message.Message):
    __slots__ = ("time_unix_ns", "type", "verdict", "drop_reason", "drop_reason_text", "direction", "observation", "observation_text", "source", "destination", "protocol", "protocol_text", "tcp_flags", "icmp_type", "icmp_code", "is_reply", "is_fragment", "length", "endpoint", "ifindex", "rule", "decided_by", "policy")
    TIME_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    DROP_REASON_FIELD_NUMBER: _ClassVar[int]
    DROP_REASON_TEXT_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_TEXT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_TEXT_FIELD_NUMBER: _ClassVar[int]
    TCP_FLAGS_FIELD_NUMBER: _ClassVar[int]
    ICMP_TYPE_FIELD_NUMBER: _ClassVar[int]
    ICMP_CODE_FIELD_NUMBER: _ClassVar[int]
    IS_REPLY_FIELD_NUMBER: _ClassVar[int]
    IS_FRAGMENT_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    IFINDEX_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    DECIDED_BY_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    time_unix_ns: int
    type: FlowType
    verdict: Verdict
    drop_reason: int
    drop_reason_text: str
    direction: Direction
    observation: int
    observation_text: str
    source: FlowParty
    destination: FlowParty
    protocol: int
    protocol_text: str
    tcp_flags: _containers.RepeatedScalarFieldContainer[str]
    icmp_type: int
    icmp_code: int
    is_reply: bool
    is_fragment: bool
    length: int
    endpoint: int
    ifindex: int
    rule: int
    decided_by: str
    policy: PolicyRule
    def __init__(self, time_unix_ns: _Optional[int] = ..., type: _Optional[_Union[FlowType, str]] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., drop_reason: _Optional[int] = ..., drop_reason_text: _Optional[str] = ..., direction: _Optional[_Union[Direction, str]] = ..., observation: _Optional[int] = ..., observation_text: _Optional[str] = ..., source: _Optional[_Union[FlowParty, _Mapping]] = ..., destination: _Optional[_Union[FlowParty, _Mapping]] = ..., protocol: _Optional[int] = ..., protocol_text: _Optional[str] = ..., tcp_flags: _Optional[_Iterable[str]] = ..., icmp_type: _Optional[int] = ..., icmp_code: _Optional[int] = ..., is_reply: _Optional[bool] = ..., is_fragment: _Optional[bool] = ..., length: _Optional[int] = ..., endpoint: _Optional[int] = ..., ifindex: _Optional[int] = ..., rule: _Optional[int] = ..., decided_by: _Optional[str] = ..., policy: _Optional[_Union[PolicyRule, _Mapping]] = ...) -> None: ...

class PolicyRule(_message.Message):
    __slots__ = ("kind", "namespace", "name", "direction", "index")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    kind: str
    namespace: str
    name: str
    direction: Direction
    index: int
    def __init__(self, kind: _Optional[str] = ..., namespace: _Optional[str] = ..., name: _Optional[str] = ..., direction: _Optional[_Union[Direction, str]] = ..., index: _Optional[int] = ...) -> None: ...

class FlowsLost(_message.Message):
    __slots__ = ("source", "count")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    source: str
    count: int
    def __init__(self, source: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class MonitorEvent(_message.Message):
    __slots__ = ("flow", "lost")
    FLOW_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    flow: Flow
    lost: FlowsLost
    def __init__(self, flow: _Optional[_Union[Flow, _Mapping]] = ..., lost: _Optional[_Union[FlowsLost, _Mapping]] = ...) -> None: ...

class MonitorBatch(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[MonitorEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[MonitorEvent, _Mapping]]] = ...) -> None: ...

class MetricLabel(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class MetricSample(_message.Message):
    __slots__ = ("name", "value", "labels")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    labels: _containers.RepeatedCompositeFieldContainer[MetricLabel]
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ..., labels: _Optional[_Iterable[_Union[MetricLabel, _Mapping]]] = ...) -> None: ...

class MetricList(_message.Message):
    __slots__ = ("samples",)
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    samples: _containers.RepeatedCompositeFieldContainer[MetricSample]
    def __init__(self, samples: _Optional[_Iterable[_Union[MetricSample, _Mapping]]] = ...) -> None: ...

class DumpFile(_message.Message):
    __slots__ = ("name", "content")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    content: bytes
    def __init__(self, name: _Optional[str] = ..., content: _Optional[bytes] = ...) -> None: ...
