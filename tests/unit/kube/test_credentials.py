# SPDX-License-Identifier: Apache-2.0
"""Kubeconfig files and service accounts: good ones, changing ones and broken ones."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.kube.access import Access
from agent.kube.credentials import CredentialsError, from_kubeconfig, in_cluster
from agent.kube.errors import Unauthorized


def kubeconfig(path: Path, user: Any, cluster: Any = None, **changes: Any) -> Path:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": cluster or {"server": "https://192.0.2.1:6443/"}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
        **changes,
    }
    fresh = path.with_suffix(".new")
    fresh.write_text(yaml.safe_dump(document))
    os.replace(fresh, path)
    return path


def test_a_token(tmp_path: Path) -> None:
    file = kubeconfig(tmp_path / "config", {"token": "one"})
    credentials = from_kubeconfig(file)
    assert credentials.configuration.host == "https://192.0.2.1:6443"
    assert credentials.authorization() == "Bearer one"
    before = credentials.transport()
    kubeconfig(file, {"token": "two"})
    assert credentials.authorization() == "Bearer two"
    assert credentials.transport() == before  # connections can stay


def test_a_token_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("one\n")
    credentials = from_kubeconfig(kubeconfig(tmp_path / "config", {"tokenFile": "token"}))
    assert credentials.authorization() == "Bearer one"
    (tmp_path / "fresh").write_text("two\n")
    os.replace(tmp_path / "fresh", tmp_path / "token")
    assert credentials.authorization() == "Bearer two"


def test_certificates(tmp_path: Path) -> None:
    def encoded(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    user = {"client-certificate-data": encoded("cert"), "client-key-data": encoded("key")}
    cluster = {
        "server": "https://192.0.2.1:6443",
        "certificate-authority-data": encoded("ca"),
        "tls-server-name": "api.example.org",
    }
    credentials = from_kubeconfig(kubeconfig(tmp_path / "config", user, cluster))
    found = credentials.configuration
    assert credentials.authorization() is None
    files = (found.ssl_ca_cert, found.cert_file, found.key_file)
    assert [Path(file or "").read_text() for file in files] == ["ca", "cert", "key"]
    assert found.tls_server_name == "api.example.org"
    before = credentials.transport()
    changed = {**cluster, "certificate-authority-data": encoded("other ca")}
    kubeconfig(tmp_path / "config", user, changed)
    assert credentials.transport() != before


def plugin(folder: Path, answer: Any) -> dict[str, Any]:
    """A user whose token comes from a command, which counts how often it ran."""
    script = folder / "plugin"
    script.write_text(f"#!/bin/sh\necho x >> {folder}/ran\ncat {folder}/answer\n")
    script.chmod(0o755)
    status = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"}
    (folder / "answer").write_text(json.dumps({**status, "status": answer}))
    return {"exec": {"apiVersion": status["apiVersion"], "command": str(script), "args": []}}


def test_an_exec_plugin_runs_again_when_it_must(tmp_path: Path) -> None:
    lasting = {"token": "one", "expirationTimestamp": "2999-01-01T00:00:00Z"}
    user = plugin(tmp_path, lasting)
    credentials = from_kubeconfig(kubeconfig(tmp_path / "config", user))
    assert [credentials.authorization() for _ in range(3)] == ["Bearer one"] * 3
    assert (tmp_path / "ran").read_text().count("x") == 1
    plugin(tmp_path, {"token": "two", "expirationTimestamp": "2000-01-01T00:00:00Z"})
    credentials.reload()  # as after a 401
    assert credentials.authorization() == "Bearer two"
    plugin(tmp_path, {"token": "three"})
    assert credentials.authorization() == "Bearer three"  # "two" has expired


@pytest.mark.parametrize(
    ("user", "changes", "message"),
    [
        ({"exec": {"apiVersion": "v1", "command": "/nonexistent"}}, {}, "exec plugin of user u"),
        ({"token": "t"}, {"current-context": "other"}, "other"),
        ({"token": "t"}, {"clusters": []}, "c"),
        ({"token": "t"}, {"contexts": 5}, ""),
        ({"client-certificate": "absent.pem"}, {}, "absent.pem"),
        (5, {}, ""),
    ],
)
def test_what_is_wrong_with_a_kubeconfig(
    user: Any, changes: Any, message: str, tmp_path: Path
) -> None:
    file = kubeconfig(tmp_path / "config", user, **changes)
    with pytest.raises(CredentialsError) as caught:
        from_kubeconfig(file).authorization()
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["", "5", "{", "a: b", "\x00"])
def test_what_is_no_kubeconfig(text: str, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(text)
    with pytest.raises(CredentialsError):
        from_kubeconfig(tmp_path / "config").authorization()


def test_no_file_is_an_error_of_requests_too(tmp_path: Path) -> None:
    access = Access(from_kubeconfig(tmp_path / "absent"), "bristle/0.1")
    with pytest.raises(Unauthorized, match="there is no such file"):
        access.request("GET", "/api/v1/nodes")


def test_what_was_good_stays_in_use_while_a_file_is_in_the_making(tmp_path: Path) -> None:
    file = kubeconfig(tmp_path / "config", {"token": "one"})
    credentials = from_kubeconfig(file)
    assert credentials.authorization() == "Bearer one"
    file.write_text("{")
    assert credentials.authorization() == "Bearer one"
    assert str(file) in credentials.problem
    kubeconfig(file, {"token": "two"})
    assert credentials.authorization() == "Bearer two"
    assert not credentials.problem


ENVIRON = {"KUBERNETES_SERVICE_HOST": "2001:db8::1", "KUBERNETES_SERVICE_PORT": "443"}


def test_a_service_account(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("one\n")
    (tmp_path / "ca.crt").write_text("ca")
    credentials = in_cluster(tmp_path, ENVIRON)
    assert credentials.configuration.host == "https://[2001:db8::1]:443"
    header = credentials.authorization()
    assert header is not None
    assert header.split() == ["bearer", "one"]
    assert not header.endswith("\n")
    with pytest.raises(CredentialsError, match="host/port"):
        in_cluster(tmp_path, {}).authorization()
    (tmp_path / "token").unlink()
    with pytest.raises(CredentialsError, match="token"):
        in_cluster(tmp_path, ENVIRON).authorization()


def test_the_client_is_not_imported_as_a_whole() -> None:
    """Only what the loaders need; and whoever imports it later gets all of it."""
    code = (
        "import sys\n"
        "from agent.kube.official import official\n"
        "config = official('kubernetes.config.kube_config')\n"
        "official('kubernetes.client.rest')\n"
        "assert official('kubernetes.config.kube_config') is config\n"
        "assert not [name for name in sys.modules if name.startswith('kubernetes')]\n"
        "assert 'pydantic' not in sys.modules\n"
        "import kubernetes\n"
        "kubernetes.client.CoreV1Api\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
