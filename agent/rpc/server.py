# SPDX-License-Identifier: Apache-2.0
"""The gRPC server on <run_dir>/agent.sock: asks an AgentView, answers in messages.

The socket is mode 0600: whoever opens it is root. No call changes state but Check with
`repair`. Calls run in a small pool of threads; a monitor holds one for as long as it
lives, so their number is bounded below the pool's size.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import grpc

from agent.core.flow import FlowSubscription
from agent.core.views import (
    AgentView,
    Busy,
    ExplainQuery,
    InvalidQuery,
    NotFound,
    NotReady,
    ViewError,
)
from agent.rpc.convert import flow_filter, monitor_event, to_message
from api import agent_pb2 as pb
from api.agent_pb2_grpc import AgentServicer, add_AgentServicer_to_server

SOCKET_NAME = "agent.sock"
MAX_MONITORS = 4
THREADS = 8
MAX_CALLS = 32
"""Calls accepted at a time; more are refused with RESOURCE_EXHAUSTED."""
MAX_REQUEST = 64 * 1024
CHUNK = 1024 * 1024
"""Bytes of a dump file per message; gRPC's own limit for a message is 4 MiB."""
MAX_LAST = 65_536
_POLL_SECONDS = 1.0
_MAX_SOCKET_PATH = 106
"""sun_path has 108 bytes with the terminating zero (unix(7)), and the place where the
socket is made has a name longer by one."""

_CODES: dict[type[ViewError], grpc.StatusCode] = {
    NotFound: grpc.StatusCode.NOT_FOUND,
    InvalidQuery: grpc.StatusCode.INVALID_ARGUMENT,
    NotReady: grpc.StatusCode.UNAVAILABLE,
    Busy: grpc.StatusCode.RESOURCE_EXHAUSTED,
}

Result = TypeVar("Result")
log = logging.getLogger(__name__)


class SocketError(Exception):
    """The UNIX socket cannot be had. The message says why and what to do."""


class AgentService(AgentServicer):
    """Delegates each call to the view; see api/agent.proto for what they mean."""

    def __init__(self, view: AgentView, max_monitors: int = MAX_MONITORS) -> None:
        self._view = view
        self._monitors = threading.BoundedSemaphore(max_monitors)
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Ends all monitor streams within a second."""
        self._stopping.set()

    def Status(self, request: pb.StatusRequest, context: grpc.ServicerContext) -> pb.AgentStatus:
        """See the .proto file, as for all methods of this class."""
        return to_message(_ask(context, self._view.status), pb.AgentStatus)

    def ListEndpoints(
        self, request: pb.ListEndpointsRequest, context: grpc.ServicerContext
    ) -> pb.EndpointList:
        found = _ask(context, self._view.endpoints)
        return pb.EndpointList(endpoints=[to_message(item, pb.EndpointInfo) for item in found])

    def GetEndpoint(
        self, request: pb.GetEndpointRequest, context: grpc.ServicerContext
    ) -> pb.EndpointInfo:
        return to_message(_ask(context, lambda: self._view.endpoint(request.key)), pb.EndpointInfo)

    def ListIdentities(
        self, request: pb.ListIdentitiesRequest, context: grpc.ServicerContext
    ) -> pb.IdentityList:
        found = _ask(context, self._view.identities)
        return pb.IdentityList(identities=[to_message(item, pb.IdentityInfo) for item in found])

    def ListPolicies(
        self, request: pb.ListPoliciesRequest, context: grpc.ServicerContext
    ) -> pb.PolicyList:
        return to_message(_ask(context, self._view.policies), pb.PolicyList)

    def Selectors(
        self, request: pb.SelectorsRequest, context: grpc.ServicerContext
    ) -> pb.SelectorList:
        found = _ask(context, self._view.selectors)
        return pb.SelectorList(selectors=[to_message(item, pb.SelectorInfo) for item in found])

    def Explain(self, request: pb.ExplainQuery, context: grpc.ServicerContext) -> pb.Explanation:
        def explain() -> pb.Explanation:
            if request.protocol > 255:
                raise InvalidQuery(f"protocol: {request.protocol} is not within 0-255")
            if request.port > 65535:
                raise InvalidQuery(f"port: {request.port} is not within 0-65535")
            query = ExplainQuery(
                request.source, request.destination, request.protocol, request.port
            )
            return to_message(self._view.explain(query), pb.Explanation)

        return _ask(context, explain)

    def Check(self, request: pb.CheckRequest, context: grpc.ServicerContext) -> pb.CheckReport:
        report = _ask(context, lambda: self._view.check(request.repair))
        return to_message(report, pb.CheckReport)

    def Numbers(self, request: pb.NumbersRequest, context: grpc.ServicerContext) -> pb.NumberNames:
        return to_message(_ask(context, self._view.numbers), pb.NumberNames)

    def Metrics(self, request: pb.MetricsRequest, context: grpc.ServicerContext) -> pb.MetricList:
        found = _ask(context, self._view.metrics)
        return pb.MetricList(samples=[to_message(item, pb.MetricSample) for item in found])

    def Dump(self, request: pb.DumpRequest, context: grpc.ServicerContext) -> Iterator[pb.DumpFile]:
        files = iter(_ask(context, self._view.dump))
        while (file := _ask(context, lambda: next(files, None))) is not None:
            for start in range(0, max(len(file.content), 1), CHUNK):
                part = file.content[start : start + CHUNK]
                yield pb.DumpFile(name=file.name, content=part)

    def Monitor(
        self, request: pb.MonitorRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.MonitorBatch]:
        if not self._monitors.acquire(blocking=False):
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "as many monitors as the agent allows are running: stop one of them",
            )
        try:
            subscription = _ask(context, lambda: self._subscribe(request))
            # Without this a stream with nothing to send would not see its client go.
            context.add_callback(subscription.close)
            yield from self._events(subscription)
        finally:
            self._monitors.release()

    def _subscribe(self, request: pb.MonitorRequest) -> FlowSubscription:
        last = min(request.last, MAX_LAST)
        return self._view.monitor(flow_filter(request), last, not request.no_follow)

    def _events(self, subscription: FlowSubscription) -> Iterator[pb.MonitorBatch]:
        with contextlib.closing(subscription):
            while not self._stopping.is_set():
                batch = subscription.next(_POLL_SECONDS)
                if batch is None:
                    return
                if batch:
                    yield pb.MonitorBatch(events=map(monitor_event, batch))


class AgentServer:
    """The service on its socket. One instance per agent; not to be started twice."""

    def __init__(self, view: AgentView, run_dir: Path) -> None:
        self._service = AgentService(view)
        self._path = run_dir / SOCKET_NAME
        self._server: grpc.Server | None = None
        self._inode = 0

    @property
    def path(self) -> Path:
        """Where clients connect."""
        return self._path

    def start(self) -> None:
        """Listens. Raises SocketError: path too long, another agent there, folder missing.

        The socket is made in a folder that only root may enter and moved into place when
        its mode is right: at no time can another user open it, and a dead agent's socket
        is replaced in one step.
        """
        if len(os.fsencode(self._path)) > _MAX_SOCKET_PATH:
            raise SocketError(f"{self._path}: path too long for a UNIX socket; shorten run_dir")
        _refuse_live_socket(self._path)
        server = grpc.server(
            ThreadPoolExecutor(THREADS, thread_name_prefix="rpc"),
            maximum_concurrent_rpcs=MAX_CALLS,
            options=[
                ("grpc.max_receive_message_length", MAX_REQUEST),
                ("grpc.so_reuseport", 0),
            ],
        )
        add_AgentServicer_to_server(self._service, server)  # type: ignore[no-untyped-call]
        try:
            folder = Path(tempfile.mkdtemp(prefix=".", dir=self._path.parent))
        except OSError as error:
            raise SocketError(
                f"cannot make a socket in {self._path.parent}: {error.strerror}; "
                "create the folder or set run_dir"
            ) from error
        try:
            draft = folder / "s"
            try:
                server.add_insecure_port(f"unix:{draft}")
            except RuntimeError as error:
                raise SocketError(f"cannot listen on {self._path}: {error}") from error
            draft.chmod(0o600)
            self._inode = draft.stat().st_ino
            server.start()
            draft.replace(self._path)
        except BaseException:
            server.stop(None)
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._server = server

    def stop(self, grace: float = 1.0) -> None:
        """Refuses new calls, gives running ones `grace` seconds, removes the socket."""
        if self._server is None:
            return
        self._service.stop()
        # Removed first: a client that comes now learns that nobody listens. Only our own:
        # a successor may have put its socket in place already.
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        self._server.stop(grace).wait()
        self._server = None


def _ask(context: grpc.ServicerContext, question: Callable[[], Result]) -> Result:
    """The answer, or the call ended with the status that the error stands for."""
    try:
        return question()
    except ViewError as error:
        code = next(
            (code for kind, code in _CODES.items() if isinstance(error, kind)),
            grpc.StatusCode.FAILED_PRECONDITION,
        )
        context.abort(code, str(error))
    except Exception as error:
        log.exception("a call failed")
        context.abort(
            grpc.StatusCode.INTERNAL,
            f"the agent failed to answer ({type(error).__name__}); its log has the details",
        )
    raise AssertionError("abort always raises")


def _refuse_live_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
                return
            raise SocketError(f"{path}: {error.strerror or error}") from error
    raise SocketError(f"{path}: another agent is listening; give this one its own run_dir")
