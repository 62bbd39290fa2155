# SPDX-License-Identifier: Apache-2.0
"""Socket redirect on this node: whether it can be had, whether it is on, and what it does.

Nothing here may keep the agent from running: what is missing or wrong is told in `status`, and
connections go by the stack, as they would without. A self-test of the kernel decides how much is
done; its result is kept for the boot, so that an agent that starts again need not repeat it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from agent.config_model import SocketRedirectConfig
from agent.core.delta import Delta
from agent.core.sockets import Mode
from agent.core.views import SocketRedirectStatus
from agent.kernel.datapath import Datapath
from agent.kernel.features import cgroup2_mounts
from agent.kernel.loader import Loader, LoadError
from agent.kernel.maps import MapError
from agent.kernel.sock_diag import SocketNotFound, destroy
from agent.kernel.socket_redirect import RedirectUnavailable, SocketRedirect, give_up
from agent.kernel.syscall import BpfError
from agent.loop import Loop, LoopStopped
from agent.selftest import Outcome, SelfTestError, run_self_test
from agent.state_file import StateFileError, write_durably
from agent.telemetry.metrics import Family, socket_families
from bpf.layouts import SocketCounter, SocketFlag, SocketOutcome, SocketState

log = logging.getLogger(__name__)

RESULT: Final = "selftest.json"
WATCH_SECONDS = 1.0
LOOK_SECONDS = 5.0
STALLED_SECONDS: Final = 2.0
STALLS: Final = 3
"""Connections that stalled before redirect is given up on this node."""

_READINGS: Final = 5
_IN_VAIN: Final = SocketCounter.SOCKETS_BY_OUTCOME + SocketOutcome.SOCKET_STUCK
_UNUSABLE: Final = (RedirectUnavailable, LoadError, MapError, BpfError, OSError)


class Redirect:
    """Made before the loop; `attach` belongs to the take-over, `start` after it."""

    def __init__(
        self,
        config: SocketRedirectConfig,
        datapath: Datapath,
        cgroup: Path | None,
        *,
        bpffs_dir: Path,
        work_dir: Path,
        state_dir: Path,
        boot_id: str,
    ) -> None:
        self._config = config
        self._datapath = datapath
        self._cgroup = cgroup
        self._bpffs_dir = bpffs_dir
        self._work_dir = work_dir
        self._result = state_dir / RESULT
        self._boot_id = boot_id
        self._kernel: SocketRedirect | None = None
        self._why_off = "" if config.enabled else "socket_redirect.enabled is false"
        self._outcomes: Sequence[Outcome] = ()
        self._tested = False
        self._loop: Loop | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._stuck: dict[tuple[int, int, int], tuple[int, float]] = {}
        self._in_vain = 0
        self.stalls = 0
        """Connections whose receiver did not get what was redirected to it."""

    # ---- start -----------------------------------------------------------------------------------

    def open(self) -> None:
        """Maps and programs, if this kernel can; else the reason is kept."""
        if not self._config.enabled:
            for pin in give_up(self._bpffs_dir):
                log.info("socket redirect is off: %s removed", pin)
            return
        kernel = SocketRedirect(self._bpffs_dir, Loader(self._work_dir), self._config.max_sockets)
        try:
            self._cgroup = cgroup2_folder(self._cgroup) if self._cgroup else cgroup2_mount()
            kernel.open()
            kernel.load(self._datapath.descriptors())
        except _UNUSABLE as error:
            kernel.close()
            self._give_up(str(error))
            return
        self._kernel = kernel
        self._outcomes = self._known_outcomes()
        self._tested = bool(self._outcomes)
        if self._tested:
            self._judge()

    def attach(self) -> None:
        """These programs instead of a former agent's."""
        if self._kernel is None or self._cgroup is None:
            return
        try:
            self._kernel.configure(self.ceiling is not Mode.OFF, self._config.unread_max)
            self._kernel.attach(self._cgroup)
        except _UNUSABLE as error:
            self._kernel.close()
            self._kernel = None
            self._give_up(str(error))

    def start(self, loop: Loop) -> None:
        """The self-test, where none is known, and the watch over live connections."""
        self._loop = loop
        if self._kernel is None:
            return
        self._thread = threading.Thread(target=self._run, name="redirect", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watch; what is in force stays."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Give descriptors back."""
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None

    # ---- what is known ---------------------------------------------------------------------------

    @property
    def ceiling(self) -> Mode:
        """The most that is done."""
        if self._kernel is None or self._why_off:
            return Mode.OFF
        if self._config.force:
            return Mode.ALL
        if not self._tested:
            return Mode.OFF
        return Mode.ON if self._failed(blocking=True) else Mode.ALL

    @property
    def status(self) -> SocketRedirectStatus:
        """For `bristle status`."""
        ceiling = self.ceiling
        why = self._why_off
        if not why and self._kernel is not None and not self._tested and not self._config.force:
            why = "the self-test is running"
        elif not why and ceiling is Mode.ON:
            failed = self._failed(blocking=True)
            why = "for sockets that never block in a call: " + "; ".join(map(str, failed))
        return SocketRedirectStatus(
            enabled=self._config.enabled,
            mode=ceiling.value,
            detail=why,
            forced=self._config.force,
            cgroup=str(self._cgroup or ""),
            stalls=self.stalls,
            failed_checks=tuple(map(str, self._failed())),
        )

    def problems(self) -> Mapping[str, str]:
        """What was asked for and cannot be had."""
        if self._config.enabled and self._why_off:
            return {"socket redirect": f"off: {self._why_off}; connections go by the stack"}
        return {}

    def families(self) -> list[Family]:
        """Its metrics; none where it is off."""
        kernel = self._kernel
        if kernel is None:
            return []
        # What closes between the two readings is in neither or in both: read until nothing did.
        for _ in range(_READINGS):
            closed = kernel.traffic()
            living = kernel.living_traffic()
            if kernel.traffic() == closed:
                break
        return socket_families(kernel.counters(), closed, living, self.stalls)

    # ---- inside ----------------------------------------------------------------------------------

    def _give_up(self, why: str) -> None:
        self._why_off = why
        log.warning("socket redirect is off: %s", why)
        give_up(self._bpffs_dir)

    def _failed(self, blocking: bool | None = None) -> list[Outcome]:
        """Checks that failed, of one kind or of both."""
        return [one for one in self._outcomes if one.detail and blocking in (None, one.blocking)]

    def _judge(self) -> None:
        """What the self-test found decides, unless it is forced."""
        for one in self._failed():
            log.info("socket redirect: the kernel fails the check %s", one)
        serious = self._failed(blocking=False)
        if serious and not self._config.force:
            self._why_off = "this kernel fails the self-test: " + "; ".join(map(str, serious))

    def _run(self) -> None:
        if not self._tested:
            self._test()
        looked = time.monotonic()
        while not self._stopping.wait(WATCH_SECONDS):
            now = time.monotonic()
            try:
                self._watch(now)
                if now - looked >= LOOK_SECONDS:
                    looked = now
                    self._look_after()
            except _UNUSABLE as error:
                log.warning("socket redirect: live connections cannot be watched: %s", error)

    def _look_after(self) -> None:
        """What others took away is put back."""
        kernel, cgroup = self._kernel, self._cgroup
        if kernel is None or cgroup is None or kernel.attached(cgroup):
            return
        log.warning("socket redirect was not attached as it should be; repaired")
        kernel.attach(cgroup)

    def _test(self) -> None:
        assert self._cgroup is not None
        try:
            self._outcomes = run_self_test(self._work_dir, self._cgroup)
            self._tested = True
            self._judge()
            self._keep_outcomes()
        except SelfTestError as error:
            if not self._config.force:
                self._why_off = f"the self-test could not be run: {error}"
        self._apply()

    def _apply(self) -> None:
        """The ceiling is another: switch, and let the endpoints' entries follow."""
        loop, kernel, ceiling = self._loop, self._kernel, self.ceiling
        if loop is None or kernel is None:
            return

        def change() -> None:
            delta = Delta()
            loop.desired.sockets.set_ceiling(ceiling, loop.store, delta)
            if delta:
                loop.datapath.apply(delta)

        try:
            kernel.configure(ceiling is not Mode.OFF, self._config.unread_max)
            loop.call(change, in_force=False)
        except LoopStopped:
            return
        except (TimeoutError, MapError, OSError) as error:
            # The loop's comparison with the kernel finds what is missing.
            log.warning("socket redirect could not be switched at once: %s", error)
        if self._why_off:
            log.warning("socket redirect is off: %s", self._why_off)
        else:
            log.info("socket redirect: %s", ceiling.value)

    def _watch(self, now: float) -> None:
        """A receiver that called splice, which does not see redirected bytes, while some waited,
        and in which the same ones wait still, will never get them: it is ended, so that its
        application is told instead of waiting."""
        if self._kernel is None:
            return
        # Listing all sockets each second would cost a busy node much for nothing.
        in_vain = self._kernel.counters()[_IN_VAIN]
        if in_vain == self._in_vain and not self._stuck:
            return
        self._in_vain = in_vain
        found = {}
        for one in self._kernel.sockets():
            state = one.state
            if not one.unread or one.queued or not state.flags & SocketFlag.SOCKET_IN_VAIN:
                continue
            key = (state.client, state.server, state.side)
            former = self._stuck.get(key)
            since = former[1] if former is not None and former[0] == one.unread else now
            found[key] = (one.unread, since)
            if now - since >= STALLED_SECONDS and since >= 0:
                found[key] = (one.unread, -1.0)
                self.stalls += 1
                log.warning(
                    "socket redirect: endpoint %d reads port %d by splice, which %d redirected"
                    " bytes do not reach: %s; its connections go by the stack from now on",
                    state.endpoint, socket.ntohs(state.destination_port), one.unread,
                    _ended(state),
                )  # fmt: skip
        self._stuck = found
        if self.stalls >= STALLS and not self._why_off and not self._config.force:
            self._why_off = f"{self.stalls} connections stalled"
            self._apply()

    # ---- the self-test's result ------------------------------------------------------------------

    def _fingerprint(self) -> str:
        assert self._kernel is not None
        return hashlib.sha256(f"{self._boot_id} {self._kernel.tag()}".encode()).hexdigest()

    def _known_outcomes(self) -> list[Outcome]:
        try:
            kept = json.loads(self._result.read_bytes())
            if kept["of"] != self._fingerprint():
                return []
            return [Outcome(**one) for one in kept["outcomes"]]
        except (OSError, ValueError, TypeError, KeyError):
            return []

    def _keep_outcomes(self) -> None:
        kept = {
            "of": self._fingerprint(),
            "outcomes": [asdict(one) for one in self._outcomes],
        }
        try:
            write_durably(self._result, json.dumps(kept).encode())
        except StateFileError as error:
            log.warning("the self-test's result is not kept: %s", error)


def _ended(state: SocketState) -> str:
    """Ends a socket; what became of it."""
    try:
        destroy(state.netns, state.cookie)
    except (SocketNotFound, OSError) as error:
        return f"the connection could not be ended: {error}"
    return "the connection was ended"


def cgroup2_folder(folder: Path) -> Path:
    """This folder, or where version 2 is below it, on hosts that have version 1 beside it.

    Raises RedirectUnavailable where neither is of a cgroup2 file system.
    """
    for one in (folder, folder / "unified"):
        if (one / "cgroup.controllers").exists():  # which version 1 has not
            return one
    raise RedirectUnavailable(f"cgroup_root: {folder} is no folder of a cgroup2 file system")


def cgroup2_mount() -> Path:
    """Where the cgroup2 file system is mounted: alone, or beside version 1 (`unified`).

    Raises RedirectUnavailable.
    """
    for folder in cgroup2_mounts():
        return folder
    raise RedirectUnavailable("no cgroup2 file system is mounted")
