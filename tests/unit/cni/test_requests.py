# SPDX-License-Identifier: Apache-2.0
"""Frames and requests: what is accepted, and which error each fault gets."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.config import Attachment, Command
from cni.environment import PodRef
from cni.errors import CniError, ErrorCode
from cni.protocol import (
    HEADER_SIZE,
    MAX_ANSWER,
    Frame,
    FrameError,
    Reply,
    Request,
    encode_answer,
    encode_frame,
    failure_of,
    parse_frame,
    parse_request,
)
from cni.results import NEWEST, VERSIONS

CONFIG: dict[str, Any] = {"cniVersion": "1.1.0", "name": "pods", "type": "bristle-cni"}
VARIABLES = {
    "CNI_COMMAND": b"ADD",
    "CNI_CONTAINERID": b"4f0a1b",
    "CNI_NETNS": b"/var/run/netns/blue",
    "CNI_IFNAME": b"eth0",
    "CNI_ARGS": b"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;X=y;"
    b"K8S_POD_INFRA_CONTAINER_ID=4f0a1b;K8S_POD_UID=cafe",
    "CNI_PATH": b"/opt/cni/bin",
}
PREVIOUS = {"interfaces": [{"name": "eth0"}], "ips": [{"address": "10.0.0.1/24", "interface": 0}]}


def request(
    variables: dict[str, bytes] | None = None, config: dict[str, Any] | bytes | None = None
) -> Request:
    """Parses the requests above with some variables and keys replaced (None: removed)."""
    if not isinstance(config, bytes):
        merged = {**CONFIG, **(config or {})}
        config = json.dumps({k: v for k, v in merged.items() if v is not ...}).encode()
    return parse_request(Frame({**VARIABLES, **(variables or {})}, config))


def fault(
    variables: dict[str, bytes] | None = None, config: dict[str, Any] | bytes | None = None
) -> CniError:
    """The error of such a request."""
    with pytest.raises(CniError) as caught:
        request(variables, config)
    return caught.value


# ---- frames ----------------------------------------------------------------------------------

names = st.from_regex(r"CNI_[A-Z]{0,8}", fullmatch=True)
values = st.binary(max_size=40).filter(lambda value: b"\0" not in value)
frames = st.builds(Frame, st.dictionaries(names, values, max_size=5), st.binary(max_size=200))


@given(frames)
def test_frame_round_trip(frame: Frame) -> None:
    assert parse_frame(encode_frame(frame)) == frame


@given(frames, st.data())
def test_damaged_frame_is_a_frame_error_or_a_frame(frame: Frame, data: st.DataObject) -> None:
    raw = bytearray(encode_frame(frame))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.integers(0, len(raw))) :]
    try:
        parsed = parse_frame(bytes(raw))
    except FrameError:
        return
    assert len(encode_frame(parsed)) <= len(raw) + HEADER_SIZE


@given(frames, st.data())
def test_truncated_frame_is_refused(frame: Frame, data: st.DataObject) -> None:
    raw = encode_frame(frame)
    with pytest.raises(FrameError):
        parse_frame(raw[: data.draw(st.integers(0, len(raw) - 1))])


def test_answer_that_is_too_large_becomes_an_error() -> None:
    raw = encode_answer(Reply(b"x" * (MAX_ANSWER + 1)))
    assert raw[4] == 1 and json.loads(raw[12:])["code"] == ErrorCode.INTERNAL


# ---- good requests ---------------------------------------------------------------------------


def test_add_of_a_chained_plugin() -> None:
    parsed = request(
        config={
            "prevResult": PREVIOUS,
            "capabilities": {"portMappings": True, "bandwidth": False},
            "runtimeConfig": {"portMappings": [{"hostPort": 80}]},
            "runDir": "/run/b",
            "stateDir": "/state",
            "dns": {"nameservers": ["10.0.0.10"]},
            "ipam": {},
        }
    )
    assert (parsed.command, parsed.netns) == (Command.ADD, "/var/run/netns/blue")
    assert parsed.attachment == Attachment("4f0a1b", "eth0")
    assert parsed.pod == PodRef("shop", "web-0", "cafe", "4f0a1b")
    config = parsed.config
    assert (config.run_dir, config.state_dir) == ("/run/b", "/state")
    assert (
        config.prev_result is not None and str(config.prev_result.ips[0].address) == "10.0.0.1/24"
    )
    assert config.capabilities == {"portMappings"}
    assert config.runtime_config["portMappings"] == [{"hostPort": 80}]
    assert config.dns.nameservers == ("10.0.0.10",)


def test_no_kubernetes_is_no_pod() -> None:
    assert request({"CNI_ARGS": b""}).pod is None


def test_removals_need_no_more_than_they_must() -> None:
    """What a DEL does not need cannot hinder it."""
    parsed = request(
        {"CNI_COMMAND": b"DEL", "CNI_NETNS": b"", "CNI_ARGS": b"nonsense"},
        {"prevResult": "?", "ipam": 3, "dns": [], "type": ..., "runtimeConfig": 1, "runDir": "x"},
    )
    assert parsed.attachment == Attachment("4f0a1b", "eth0")
    assert parsed.config.prev_result is None and parsed.netns == "" and parsed.pod is None


def test_gc_keeps_what_either_key_names() -> None:
    def entry(container: str) -> dict[str, str]:
        return {"containerID": container, "ifname": "eth0"}

    gc = {"CNI_COMMAND": b"GC", "CNI_CONTAINERID": b"", "CNI_IFNAME": b"", "CNI_NETNS": b""}
    keys = {"cni.dev/valid-attachments": [entry("a")], "cni.dev/attachments": [entry("b")]}
    expected = {Attachment("a", "eth0"), Attachment("b", "eth0")}
    assert request(gc, keys).config.valid_attachments == expected
    assert request(gc, {"cni.dev/valid-attachments": None}).config.valid_attachments == set()


def test_status_and_version_need_no_container() -> None:
    assert request({"CNI_COMMAND": b"STATUS", "CNI_CONTAINERID": b""}).command is Command.STATUS
    assert request({"CNI_COMMAND": b"VERSION"}, b"").config.version == NEWEST


# ---- every error with its code ---------------------------------------------------------------

ENVIRONMENT_FAULTS: list[tuple[str, bytes]] = [
    ("CNI_COMMAND", b""),
    ("CNI_COMMAND", b"add"),
    ("CNI_COMMAND", b"\xff"),
    ("CNI_CONTAINERID", b""),
    ("CNI_CONTAINERID", b"-a"),
    ("CNI_CONTAINERID", b"a/b"),
    ("CNI_CONTAINERID", b"a\n"),
    ("CNI_CONTAINERID", "\u0661".encode()),
    ("CNI_NETNS", b""),
    ("CNI_NETNS", b"/\xff"),
    ("CNI_IFNAME", b""),
    ("CNI_IFNAME", b"."),
    ("CNI_IFNAME", b".."),
    ("CNI_IFNAME", b"sixteen-bytes-ab"),
    ("CNI_IFNAME", "éééééééé".encode()),
    ("CNI_IFNAME", b"a/b"),
    ("CNI_IFNAME", b"a:b"),
    ("CNI_IFNAME", b"eth%d"),
    ("CNI_IFNAME", b"a b"),
    ("CNI_IFNAME", "a\u2003b".encode()),
    ("CNI_ARGS", b"A"),
    ("CNI_ARGS", b"A=b=c"),
    ("CNI_ARGS", b"A=b"),
    ("CNI_ARGS", b"IgnoreUnknown=maybe"),
    ("CNI_ARGS", b"K8S_POD_NAMESPACE=shop"),
    ("CNI_ARGS", b"K8S_POD_NAME=web"),
    ("CNI_ARGS", b"K8S_POD_NAMESPACE=a/b;K8S_POD_NAME=web"),
    ("CNI_ARGS", b"K8S_POD_NAMESPACE=shop;K8S_POD_NAME=../web"),
]


@pytest.mark.parametrize(("name", "value"), ENVIRONMENT_FAULTS)
def test_environment_fault_names_the_variable(name: str, value: bytes) -> None:
    error = fault({name: value})
    assert error.code is ErrorCode.INVALID_ENVIRONMENT and name in error.message


CONFIG_FAULTS: list[tuple[ErrorCode, str, dict[str, Any]]] = [
    (ErrorCode.INCOMPATIBLE_VERSION, "0.2.0", {"cniVersion": "0.2.0"}),
    (ErrorCode.INCOMPATIBLE_VERSION, "2.0.0", {"cniVersion": "2.0.0"}),
    (ErrorCode.INCOMPATIBLE_VERSION, "0.1.0", {"cniVersion": ...}),
    (ErrorCode.INVALID_CONFIG, "cniVersion", {"cniVersion": 1}),
    (ErrorCode.INVALID_CONFIG, "name", {"name": ...}),
    (ErrorCode.INVALID_CONFIG, "name", {"name": "-x"}),
    (ErrorCode.INVALID_CONFIG, "name", {"name": "a\n"}),
    (ErrorCode.INVALID_CONFIG, "type", {"type": ...}),
    (ErrorCode.INVALID_CONFIG, "runDir", {"runDir": "run"}),
    (ErrorCode.INVALID_CONFIG, "stateDir", {"stateDir": 1}),
    (ErrorCode.INVALID_CONFIG, "capabilities.x", {"capabilities": {"x": "yes"}}),
    (ErrorCode.INVALID_CONFIG, "runtimeConfig", {"runtimeConfig": []}),
    (ErrorCode.INVALID_CONFIG, "dns.search[0]", {"dns": {"search": [1]}}),
    (ErrorCode.UNSUPPORTED_FIELD, "ipam.type 'host-local'", {"ipam": {"type": "host-local"}}),
    (ErrorCode.UNSUPPORTED_FIELD, "ipMasq true", {"ipMasq": True}),
    (ErrorCode.INVALID_CONFIG, "prevResult", {"prevResult": []}),
    (
        ErrorCode.INVALID_CONFIG,
        "prevResult.interfaces[0].name",
        {"prevResult": {"interfaces": [{}]}},
    ),
    (
        ErrorCode.INVALID_CONFIG,
        "prevResult.ips[0].address",
        {"prevResult": {"ips": [{"address": "10.0.0.1"}]}},
    ),
    (
        ErrorCode.INVALID_CONFIG,
        "prevResult.ips[0].interface",
        {"prevResult": {"ips": [{"address": "10.0.0.1/24", "interface": 0}]}},
    ),
    (
        ErrorCode.INVALID_CONFIG,
        "prevResult.ips[0].version",
        {"prevResult": {"ips": [{"address": "10.0.0.1/24", "version": "6"}]}},
    ),
    (
        ErrorCode.INVALID_CONFIG,
        "prevResult.routes[0].gw",
        {"prevResult": {"routes": [{"dst": "0.0.0.0/0", "gw": "fe80::1"}]}},
    ),
]


@pytest.mark.parametrize(("code", "named", "config"), CONFIG_FAULTS)
def test_config_fault_names_the_field(code: ErrorCode, named: str, config: dict[str, Any]) -> None:
    error = fault(config=config)
    assert error.code is code and named in error.message


@pytest.mark.parametrize(
    "stdin",
    [
        b"",
        b"nonsense",
        b"[]",
        b'"x"',
        b'{"a":1} x',
        b'{"a":NaN}',
        b'{"a":"\xff"}',
        b"[" * 100_000,
        b'{"a":' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_json_object(stdin: bytes) -> None:
    assert fault(config=stdin).code is ErrorCode.DECODING_FAILURE


@pytest.mark.parametrize(
    ("command", "first"), [(b"CHECK", "0.4.0"), (b"GC", "1.1.0"), (b"STATUS", "1.1.0")]
)
def test_commands_are_of_their_versions(command: bytes, first: str) -> None:
    keys = {"prevResult": PREVIOUS, "cni.dev/valid-attachments": []}
    for version in VERSIONS:
        config = {**keys, "cniVersion": version}
        if VERSIONS.index(version) < VERSIONS.index(first):
            assert fault({"CNI_COMMAND": command}, config).code is ErrorCode.INCOMPATIBLE_VERSION
        else:
            assert request({"CNI_COMMAND": command}, config).config.version == version


def test_gc_without_a_list_removes_nothing() -> None:
    error = fault({"CNI_COMMAND": b"GC"})
    assert error.code is ErrorCode.INVALID_CONFIG and "cni.dev/valid-attachments" in error.message
    entry = {"cni.dev/attachments": [{"containerID": "a"}]}
    assert fault({"CNI_COMMAND": b"GC"}, entry).code is ErrorCode.INVALID_CONFIG


def test_check_needs_the_previous_result() -> None:
    assert "prevResult" in fault({"CNI_COMMAND": b"CHECK"}).message


# ---- fuzz ------------------------------------------------------------------------------------

RESULT_KEYS = (
    *("interfaces", "ips", "routes", "dns", "name", "address", "gateway", "interface", "dst", "gw"),
    *("version", "mtu", "type", "search", "containerID", "ifname", "sandbox"),
)
CONFIG_KEYS = (
    *("cniVersion", "name", "type", "ipam", "ipMasq", "dns", "prevResult", "capabilities", "args"),
    *("runtimeConfig", "runDir", "stateDir", "cni.dev/valid-attachments", "cni.dev/attachments"),
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["10.0.0.1/24", "fe80::1", "0.4.0", "/run", "\ud800", "10.0.0.1/²"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(RESULT_KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)
config_keys = st.sampled_from(CONFIG_KEYS)


@given(
    st.sampled_from([command.encode() for command in Command]),
    st.dictionaries(config_keys, json_values, max_size=6),
    st.dictionaries(st.sampled_from(sorted(VARIABLES)), values, max_size=2),
)
def test_any_request_is_parsed_or_refused(
    command: bytes, config: dict[str, Any], variables: dict[str, bytes]
) -> None:
    variables = {**VARIABLES, "CNI_COMMAND": command, **variables}
    frame = Frame(variables, json.dumps({**CONFIG, **config}).encode())
    try:
        parse_request(frame)
    except CniError as error:
        assert error.code in (1, 2, 4, 6, 7) and error.message
        body = json.loads(failure_of(frame, error).body)
        assert body["code"] == error.code and body["cniVersion"] in VERSIONS


@given(st.binary(max_size=60))
def test_any_stdin_is_parsed_or_refused(stdin: bytes) -> None:
    with pytest.raises(CniError) as caught:
        parse_request(Frame(VARIABLES, stdin))
    assert caught.value.code in (1, 6)
