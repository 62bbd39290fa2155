# SPDX-License-Identifier: Apache-2.0
"""Where the API server is and who the agent is to it: read by the official client's loaders.

Two ways: a kubeconfig file with all it may hold (tokens, client certificates, exec plugins), and
the service account of a pod. Files that change on disk are read again before the next request:
service account tokens are exchanged every hour, certificate authorities once in a while.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, Protocol

from agent.kube.official import official

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")

# A connection on which nothing comes back is given up after half a minute, also while the agent
# only listens: seconds before the first probe, between two, and how many.
_KEEPALIVE: Final = {"idle": 15, "interval": 5, "count": 3}

Stamp = tuple[object, ...]


class CredentialsError(Exception):
    """There is no usable configuration; the message names the file or field."""


class Configured(Protocol):
    """The part of `kubernetes.client.Configuration` that is used here."""

    host: str
    api_key: dict[str, str]
    refresh_api_key_hook: Callable[[Configured], None] | None
    ssl_ca_cert: str | None
    cert_file: str | None
    key_file: str | None
    tls_server_name: str | None
    verify_ssl: bool
    proxy: str | None


class Credentials:
    """A configuration that follows its files. Not safe for several threads at once.

    load: makes it anew, and names the files that it is made of besides the certificates it names
        itself; raises CredentialsError.
    problem: why what is on disk could not be used, while older credentials go on to be; or empty.
    """

    def __init__(self, load: Callable[[], tuple[Configured, tuple[str, ...]]]) -> None:
        self.problem = ""
        self._load = load
        self._files: tuple[str, ...] = ()
        self._loaded: Configured | None = None
        self._stamps: Stamp = ()

    @property
    def configuration(self) -> Configured:
        """As it is now: read at the first use and whenever a file has changed.

        Raises CredentialsError. While the files are unusable after they were good, what was read
        last goes on to be used: they may just be in the making.
        """
        if self._loaded is not None and self._stamps == self._stamp(self._loaded):
            return self._loaded
        try:
            self.reload()
        except CredentialsError as error:
            if self._loaded is None:
                raise
            self.problem = str(error)
        assert self._loaded is not None
        return self._loaded

    def reload(self) -> None:
        """Read everything again, and run exec plugins again. Raises CredentialsError."""
        self._loaded, self._files = self._load()
        self._stamps = self._stamp(self._loaded)
        self.problem = ""

    def authorization(self) -> str | None:
        """The header of this name; None where a certificate or nothing at all says who asks.

        Raises CredentialsError.
        """
        configuration = self.configuration
        if configuration.refresh_api_key_hook is not None:
            # Renews what an exec plugin gave, shortly before it expires.
            _translated(lambda: _refresh(configuration))
        header = configuration.api_key.get("BearerToken")
        # The loaders keep the newline at the end of a file; a header cannot hold it.
        return header.strip() if header else None

    def transport(self) -> Stamp:
        """What a connection depends on: equal values, no need for a new one."""
        one = self.configuration
        settings = (one.host, one.verify_ssl, one.tls_server_name, one.proxy)
        return (*settings, *_stamps((one.ssl_ca_cert, one.cert_file, one.key_file)))

    def pool(self) -> Any:
        """A new `urllib3.PoolManager` with these certificates and proxies, as the official client
        makes it."""
        return official("kubernetes.client.rest").RESTClientObject(self.configuration).pool_manager

    def _stamp(self, loaded: Configured) -> Stamp:
        named = (loaded.ssl_ca_cert, loaded.cert_file, loaded.key_file)
        return _stamps((*self._files, *named))


def from_kubeconfig(path: str | Path, context: str | None = None) -> Credentials:
    """As a kubeconfig file says, by its current context or another one. Nothing is read yet."""
    return Credentials(lambda: _load_kubeconfig(Path(path), context))


def in_cluster(
    folder: Path = SERVICE_ACCOUNT, environ: dict[str, str] | None = None
) -> Credentials:
    """As the pod's service account. Nothing is read yet.

    folder: where the files `token` and `ca.crt` are mounted.
    environ: has KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT; None: the process's own.
    """
    token, ca = folder / "token", folder / "ca.crt"

    def load() -> tuple[Configured, tuple[str, ...]]:
        loader = official("kubernetes.config.incluster_config").InClusterConfigLoader(
            token_filename=str(token),
            cert_filename=str(ca),
            # Its own way of refreshing looks once a minute; here the file's change counts.
            try_refresh_token=False,
            environ=os.environ if environ is None else environ,
        )
        configuration = _empty()
        _translated(lambda: loader.load_and_set(configuration))
        return configuration, (str(token), str(ca))

    return Credentials(load)


def _load_kubeconfig(path: Path, context: str | None) -> tuple[Configured, tuple[str, ...]]:
    if not path.is_file():
        raise CredentialsError(f"{path}: there is no such file")
    module = official("kubernetes.config.kube_config")
    configuration = _empty()
    files = [str(path)]

    def load() -> None:
        config = module.KubeConfigMerger(str(path)).config
        loader = module.KubeConfigLoader(
            config_dict=config, active_context=context, config_base_path=None
        )
        loader.load_and_set(configuration)
        name = loader.current_context["context"].get("user")
        user = _user(config.value, name)
        if user.get("tokenFile"):
            files.append(os.path.join(path.parent, user["tokenFile"]))
        if user.get("exec") and not (
            configuration.api_key.get("BearerToken") or configuration.cert_file
        ):
            # The loader only logs why, and would go on as nobody.
            raise CredentialsError(f"the exec plugin of user {name} gave no credentials")

    _translated(load, f"{path}: ")
    return configuration, tuple(files)


def _user(config: Any, name: str | None) -> dict[str, Any]:
    """Settings of a user; the loader has checked what it needs of them."""
    for one in config["users"]:
        if one["name"] == name:
            settings: dict[str, Any] = one.value.get("user") or {}
            return settings
    return {}


def _empty() -> Configured:
    configuration: Any = official("kubernetes.client.configuration").Configuration()
    # Whether to try again is decided above, where it is known what was asked for.
    configuration.retries = False
    configuration.connection_pool_maxsize = 16
    keepalive = official("kubernetes.utils.keepalive")
    configuration.socket_options = keepalive.tcp_keepalive_socket_options(**_KEEPALIVE)
    typed: Configured = configuration
    return typed


def _refresh(configuration: Configured) -> None:
    if configuration.refresh_api_key_hook is not None:
        configuration.refresh_api_key_hook(configuration)


def _translated(work: Callable[[], None], prefix: str = "") -> None:
    """Runs a loader. Besides its own errors it lets through whatever a broken file makes of
    it: missing keys, wrong types, bad base64."""
    try:
        work()
    except CredentialsError as error:
        raise CredentialsError(f"{prefix}{error}") from None
    except Exception as error:
        text = str(error) or type(error).__name__
        raise CredentialsError(f"{prefix}{text}") from error


def _stamps(files: Iterable[str | None]) -> Stamp:
    return tuple(_stamp_of(file) for file in files)


def _stamp_of(file: str | None) -> Stamp | None:
    if file is None:
        return None
    try:
        status = os.stat(file)
    except OSError as error:
        return file, error.errno
    return file, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
