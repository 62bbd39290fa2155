# SPDX-License-Identifier: Apache-2.0
"""Nothing secret leaves in a bug report, and what is not secret stays readable."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cli.redact import redact, redact_value

SECRET = "s3cr3tv4lu3"


@pytest.mark.parametrize(
    "text",
    [
        f"password: {SECRET}",
        f"DB_PASSWORD={SECRET}",
        f'"client-key-data": "{SECRET}"',
        f"token: '{SECRET} with spaces'",
        f'{{"spec": "{{\\"apiKey\\": \\"{SECRET}\\"}}"}}',
        f"Authorization: Bearer {SECRET}",
        f"proxy https://user:{SECRET}@proxy:3128/",
        f"-----BEGIN EC PRIVATE KEY-----\n{SECRET}\n-----END EC PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}\ncut off",
        f"eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.{SECRET}",
        f"    certificate-authority-data: {SECRET}==",
    ],
)
def test_secrets_are_masked(text: str) -> None:
    masked = redact(f"before\n{text}\nafter: 1")
    assert SECRET not in masked
    assert masked.startswith("before\n")


@pytest.mark.parametrize(
    "text",
    [
        "default/client:40000 (ID:1235) -> default/web:80 by default deny",
        '{"labels": ["k8s:app=web", "io.cilium.k8s.policy.serviceaccount=default"]}',
        "10.0.0.0/24 dev bri0 proto 196 metric 1024",
        "net.ipv4.ip_forward = 1",
    ],
)
def test_the_rest_stays(text: str) -> None:
    assert redact(text) == text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(
    value=json_values,
    key=st.sampled_from(["token", "apiKey", "password", "client-key-data", "secret"]),
    secret=st.integers(10**12, 10**13) | st.text(alphabet='abc\\"\n ', min_size=4),
    nested=st.booleans(),
)
def test_json_stays_json(value: object, key: str, secret: object, nested: bool) -> None:
    inner: object = {"a": value, key: secret, "z": [1]}
    data = {"inner": json.dumps({key: str(secret)}) if nested else inner}
    result = redact_value(data)
    found = json.loads(result["inner"]) if nested else result["inner"]
    assert found[key] == "[redacted]"
    if not nested:
        assert found["z"] == [1]


@given(st.text() | st.from_regex(r"[^ ]*(token|secret)[\"'\\\\]{0,3}[:=].*"))
def test_any_text_is_survived(text: str) -> None:
    redact(text)
