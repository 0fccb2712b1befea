"""What a careful client asks for, step by step, whatever dies meanwhile."""

import http.client
import json
import signal
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.broker import Client
from tests.crash.invariants import Expected
from tests.crash.points import Phase
from tests.crash.recorder import Heard
from tests.crash.store import Store
from tests.crash.succession import Succession

FACES = 3
"""Of a picture whose faces are embedded: as many chunks of an upsert."""
REFUSALS = 7
"""More than it takes to give up, so that delivery is tried in the background too, though a kill
between an answer and its commit costs one that nobody counted."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """Jobs that more will happen to."""

    first: Expected
    """To be done again by force."""
    gone: Expected
    """To be forgotten."""
    wiped: Expected
    """To be removed with its picture."""
    hanging: Expected
    """To be cancelled while it runs."""
    bad: Expected
    """To be tried again."""
    worse: Expected
    """To be tried again with all that failed alike."""


@dataclass
class Script:
    """One client's requests; `expected` says what must become of each."""

    client: Client
    store: Store
    succession: Succession
    heard: Heard
    extra: int = 0
    """Further pictures for each task type."""
    expected: list[Expected] = field(default_factory=list)
    _last_id: int = 0

    def run(self) -> None:
        """Do it all; return once everything has ended."""
        self._wait(self._is_online, "the daemon is online")
        self._rest("POST", "/queue/face_embedding/pause", {200})
        self.succession.pass_phase(Phase.PAUSE)

        asked = self._ask_for_all()
        self._wait(self._all_answered, "all requests are answered")
        old = self._waiting_job()
        self.succession.pass_phase(Phase.INTAKE)
        self.succession.pass_phase(Phase.WORK)
        self._wait_until_running(asked.hanging)
        self.succession.pass_phase(Phase.HELD)
        if self.succession.awaits(Phase.STOP):
            self._stop(asked.hanging)
            self.succession.pass_phase(Phase.STOP)
            self._wait_until_running(asked.hanging)

        self._cancel(old)
        self._cancel(asked.hanging)
        self.succession.pass_phase(Phase.CANCEL)
        self._rest("POST", "/queue/face_embedding/resume", {200})
        self.succession.pass_phase(Phase.RESUME)
        self.succession.pass_phase(Phase.FACES)

        self._finish(asked)
        self.succession.pass_phase(Phase.LATE)
        self._wait(self._is_over, f"all jobs have ended; not so: {self._open_jobs()}")

    # -- the steps -----------------------------------------------------------------------------

    def _ask_for_all(self) -> "_Asked":
        """Ask for one job of each kind; return those that more will happen to."""
        hanging = self._job("face_detection", "error", {"cancelled"})
        self.store.hangs.add(hanging.media_id)
        self._send(hanging, priority=0)
        first = self._job("image_embedding")
        self._send(first, priority=9)
        self._send(first, priority=9)
        rival = self._expect(first.task_type, first.media_id, "rejected", {"conflict"})
        self._send(rival)
        gone = self._job("image_embedding")
        self._send(gone, priority=1, expires_at=4_000_000_000_000)
        flaky = self._job("image_embedding")
        self.store.fails[flaky.media_id] = 1
        self._send(flaky)
        wiped = self._job("image_embedding")
        self._send(wiped)
        bad, worse = (
            self._expect("image_embedding", self._next_id(), "error", _UNREADABLE) for _ in range(2)
        )
        for each in (bad, worse):
            self.store.put_bytes(each.media_id, b"not a picture", "image/png")
            self._send(each)
        refused = self._job("face_detection", faces=2)
        self.store.refuses[refused.media_id] = REFUSALS
        self._send(refused)
        self._send_batch()
        self.client.publish("inference/request/face_detection", b"{not json")
        over_rest = self._job("face_detection", faces=1)
        self._rest(
            "POST",
            "/job/face_detection",
            {201},
            {"media_store_id": over_rest.media_id, "priority": 5, "job_id": over_rest.job_id},
        )
        return _Asked(first, gone, wiped, hanging, bad, worse)

    def _send_batch(self) -> None:
        jobs = [self._job("face_embedding", faces=FACES), self._job("face_embedding")]
        jobs += [self._job("face_embedding", faces=2) for _ in range(2 + self.extra)]
        wrong = self._expect("face_embedding", -1, "rejected", {"invalid_request"})
        entries = [{"media_store_id": j.media_id, "job_id": j.job_id} for j in (*jobs, wrong)]
        self.client.publish("inference/request/face_embedding", {"requests": entries})
        for task in ("image_embedding", "face_detection"):
            for _ in range(self.extra):
                self._send(self._job(task, faces=1))

    def _waiting_job(self) -> Expected:
        """Let one waiting job be superseded by force; return another one, to be cancelled."""
        old = self._job("face_embedding", faces=1)
        self._send(old)
        self._answered(old)
        new = self._expect(old.task_type, old.media_id, "completed", faces=1)
        self._send(new, force=True)
        self._answered(new)
        old.becomes("error", {"superseded"}, has_row=False)
        waiting = self._job("face_embedding", "error", {"cancelled"}, faces=1)
        self._send(waiting)
        self._answered(waiting)
        return waiting

    def _wait_until_running(self, job: Expected) -> None:
        self._wait(lambda: self._is_running(job), "the job that hangs is running")

    def _stop(self, hanging: Expected) -> None:
        """Ask the daemon to stop while it has a job in its hands that cannot end."""
        life = self.succession.current
        assert life is not None
        self._wait(lambda: life.is_connected, "the daemon that is to stop is connected")
        self._wait(
            lambda: (
                any(line.get("message") == "inferd is running" for line in life.lines())
                and self._is_running(hanging)
            ),
            "the job that hangs is running",
        )
        life.signal(signal.SIGTERM)

    def _is_running(self, job: Expected) -> bool:
        status, found = self._try_rest("GET", f"/job/{job.job_id}", None)
        return status == 200 and found["status"] == "processing"

    def _cancel(self, job: Expected) -> None:
        self.client.publish(f"inference/cancel/{job.job_id}")
        self._wait(lambda: self.heard.ended(job.job_id) == "error", "the job is cancelled")

    def _finish(self, asked: "_Asked") -> None:
        """Do again by force what is done, forget what is done, try again what failed."""
        first, gone, bad = asked.first, asked.gone, asked.bad
        self._wait(lambda: self.heard.ended(first.job_id) == "completed", "the first job is done")
        again = self._expect(first.task_type, first.media_id, "completed", faces=first.faces)
        self._send(again, force=True)
        self._answered(again)
        first.becomes("completed", set(), has_row=False)
        self._wait(lambda: self.heard.ended(gone.job_id) == "completed", "the job is done")
        # Asked again after a death, it may be gone already.
        self._rest("DELETE", f"/job/{gone.job_id}", {204, 404})
        gone.becomes("completed", set(), has_row=False)
        self._wait(lambda: self.heard.ended(bad.job_id) == "error", "the bad picture failed")
        # Or pending already.
        self._rest("POST", f"/job/{bad.job_id}/retry", {200, 409})
        self._wait(lambda: self.heard.ended(asked.wiped.job_id) == "completed", "the job is done")
        self._rest("DELETE", f"/media/{asked.wiped.media_id}", {200})
        asked.wiped.becomes("completed", set(), has_row=False)
        self._wait(lambda: self.heard.ended(asked.worse.job_id) == "error", "it failed as well")
        failed = self.heard.latest(asked.worse.job_id)
        assert failed is not None
        code = failed["data"]["error_message"].partition(":")[0]
        self._rest("POST", "/job/retry", {200}, {"code": code})

    # -- small parts ---------------------------------------------------------------------------

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _job(
        self,
        task: str,
        status: str = "completed",
        codes: set[str] | frozenset[str] = frozenset(),
        *,
        faces: int = 0,
    ) -> Expected:
        media_id = self._next_id()
        self.store.put(media_id, faces)
        return self._expect(task, media_id, status, codes, faces=faces)

    def _expect(
        self,
        task: str,
        media_id: int,
        status: str,
        codes: set[str] | frozenset[str] = frozenset(),
        *,
        faces: int = 0,
    ) -> Expected:
        expected = Expected(
            job_id=str(uuid.uuid4()),
            task_type=task,
            media_id=media_id,
            status=status,
            codes=frozenset(codes),
            has_row=status != "rejected",
            faces=faces,
        )
        self.expected.append(expected)
        return expected

    def _send(self, job: Expected, **more: Any) -> None:
        body = {"media_store_id": job.media_id, "job_id": job.job_id, **more}
        assert self.client.publish(f"inference/request/{job.task_type}", body) == 0

    def _answered(self, job: Expected) -> None:
        self._wait(lambda: self.heard.is_answered(job.job_id), "a request is answered")

    def _all_answered(self) -> bool:
        asked = [job for job in self.expected if job.first_seq == 1]
        return all(self.heard.is_answered(job.job_id) for job in asked)

    def _is_over(self) -> bool:
        """Whether all has ended: a job that is tried again has told of its first end before."""
        status, found = self._try_rest("GET", "/queue", None)
        is_idle = status == 200 and not any(found[what] for what in ("pending", "processing"))
        return is_idle and not self._open_jobs()

    def _open_jobs(self) -> list[str]:
        return [
            f"{job} {self.heard.names(job.job_id)}"
            for job in self.expected
            if job.status != "rejected" and self.heard.ended(job.job_id) != job.status
        ]

    def _is_online(self) -> bool:
        return any(said["state"] == "online" for said in self.heard.states)

    def _wait(self, predicate: Any, what: str) -> None:
        def is_true() -> bool:
            self.heard.listen()
            return bool(predicate())

        self.succession.wait_until(is_true, what)

    def _rest(
        self, method: str, path: str, wanted: set[int], body: Mapping[str, Any] | None = None
    ) -> None:
        """Ask until there is an answer: what was lost on its way is asked again."""

        def is_answered() -> bool:
            status, found = self._try_rest(method, path, body)
            assert status in wanted | {0, 503}, (method, path, status, found)
            return status in wanted

        self._wait(is_answered, f"{method} {path}")

    def _try_rest(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[int, Any]:
        """Return status and JSON; status 0 where nobody answers."""
        life = self.succession.current
        port = life.port if life else None
        if port is None:
            return 0, None
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except (OSError, http.client.HTTPException):
            return 0, None


_UNREADABLE = {"unsupported_format", "decode_error"}
