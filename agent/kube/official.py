# SPDX-License-Identifier: Apache-2.0
"""The parts of the official `kubernetes` client that say how to reach an API server, without the
rest of it.

`import kubernetes.config` runs the package's `__init__`, which brings the dynamic client, streams,
informers and generated code along: 30 MiB resident. The loaders themselves need `Configuration`
alone. So the packages above them are put in place without running their `__init__`, as Python does
for namespace packages, and taken away again afterwards: whoever imports `kubernetes` later gets the
whole, unaltered. Resident, above a bare interpreter: urllib3, which all requests need, 9 MiB; with
the loader for pods 11 MiB; with the one for kubeconfig files, which needs requests and oauthlib,
18 MiB.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from types import ModuleType
from typing import Any, Final

_PACKAGES: Final = ("kubernetes", "kubernetes.client", "kubernetes.config", "kubernetes.utils")
_importing = threading.Lock()  # the table of modules is the process's, and so is its lock
_loaded: dict[str, ModuleType] = {}


def official(name: str) -> Any:
    """A module of the client by its full name, such as `kubernetes.config.kube_config`.

    Raises ImportError. The module is the same at every call.
    """
    with _importing:
        if name in sys.modules:
            return sys.modules[name]  # somebody has imported the whole client
        if name not in _loaded:
            _loaded.update(_import_without_parents(name))
        return _loaded[name]


def _import_without_parents(name: str) -> dict[str, ModuleType]:
    """The module and those of the client that it brought, by name."""
    before = {key for key in sys.modules if _is_official(key)}
    sys.modules.update(_loaded)
    try:
        for package in _PACKAGES:
            if package not in sys.modules:
                sys.modules[package] = _bare(package)
        client = sys.modules["kubernetes.client"]
        if not hasattr(client, "Configuration"):
            configuration = importlib.import_module("kubernetes.client.configuration")
            client.Configuration = configuration.Configuration  # type: ignore[attr-defined]
            client.ApiClient = _api_client  # type: ignore[attr-defined]
        importlib.import_module(name)
        return {key: one for key, one in sys.modules.items() if _is_official(key)}
    finally:
        for key in [key for key in sys.modules if _is_official(key) and key not in before]:
            del sys.modules[key]


def _bare(package: str) -> ModuleType:
    """A package that finds its modules but has not run."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ImportError(f"the package {package} is not installed", name=package)
    return importlib.util.module_from_spec(spec)


def _is_official(name: str) -> bool:
    return name == "kubernetes" or name.startswith("kubernetes.")


def _api_client(*args: Any, **named: Any) -> Any:
    """The client's own HTTP client. Only the refresh of an OIDC token asks for it, and it is worth
    its memory then."""
    return importlib.import_module("kubernetes.client").ApiClient(*args, **named)
