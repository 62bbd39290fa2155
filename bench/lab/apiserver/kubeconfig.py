# SPDX-License-Identifier: Apache-2.0
"""How a client finds the server: a kubeconfig file, or the folder of a service account in a pod."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import yaml


def write_kubeconfig(path: Path, server: str, token: str = "", ca: Path | None = None) -> None:
    """Writes a kubeconfig file with one context. ca: file with the authority's certificate."""
    cluster: dict[str, Any] = {"server": server}
    if ca is not None:
        cluster["certificate-authority"] = str(ca)
    user = {"token": token} if token else {}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": "lab", "user": user}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        "current-context": "lab",
    }
    fresh = path.with_name(f".{path.name}.new")
    fresh.touch(mode=0o600)
    fresh.write_text(yaml.safe_dump(document))
    os.replace(fresh, path)


def write_service_account(
    folder: Path, token: str, ca: Path | None = None, namespace: str = "default"
) -> None:
    """Lays out `token`, `ca.crt` and `namespace` as a kubelet does for a pod, or renews them.

    The files are links into `..data`, itself a link that is replaced: all change at once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"..{secrets.token_hex(4)}"
    data.mkdir()
    (data / "token").write_text(token)
    (data / "namespace").write_text(namespace)
    if ca is not None:
        shutil.copy(ca, data / "ca.crt")
    link = folder / "..data"
    old = link.resolve() if link.is_symlink() else None
    fresh = folder / "..data_tmp"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(data.name)
    os.replace(fresh, link)
    for file in data.iterdir():
        place = folder / file.name
        if not place.is_symlink():
            place.symlink_to(Path("..data", file.name))
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
