"""InferdClient, the client library's interface: submit jobs and wait for them, one or many."""

import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from daemon.jobs import JsonObject
from demos.client.errors import ClientError, ClosedError, NoAnswerError, RejectedError
from demos.client.following import EventHook, Follower, ProgressHook
from demos.client.http import base_url, find_job
from demos.client.link import Secured, Version
from demos.client.outcomes import Outcome, Submitted, Tally
from demos.client.parallel import in_order
from demos.client.watch import Pace

BROKER = "mqtt://localhost:1883"


class InferdClient:
    """Asks inferd for jobs and waits for their ends. A context manager; any thread may use it.

    Args:
        broker: `mqtt[s]://[user:password@]host[:port]`; None does without events, over REST only.
        inference_url: `host:port` or URL of the REST API: the way around a broker that is away.
        rest: ask over REST; the broker, where there is one, still brings the events.
        token: bearer token for the REST API.
        version: of MQTT, `5` or `3.1.1`; with the latter a broker's refusals are not heard.
        ca_file: CA certificate (PEM) for `mqtts`; else the system's.
        cert_file: our certificate, where the broker wants one.
        key_file: its private key.
        quiet_seconds: silence after which the REST API is asked how a job stands.
        poll_seconds: distance of those questions while the broker is away.
        reach_seconds: how long to try before the first sign of life of a broker or REST API;
            after one, outages are waited out for as long as the call has time.
        on_event: called with (name, event) for every event of a job that is submitted or waited
            for, such as ("started", {...}), until `wait` has returned; in the library's thread, so
            it must return soon, and not call back.

    Raises:
        ValueError: an address is none, REST is wanted without `inference_url`, or a certificate
            cannot be used.
    """

    def __init__(
        self,
        broker: str | None = BROKER,
        *,
        inference_url: str | None = None,
        rest: bool = False,
        token: str | None = None,
        version: Version = "5",
        ca_file: Path | None = None,
        cert_file: Path | None = None,
        key_file: Path | None = None,
        quiet_seconds: float = 5.0,
        poll_seconds: float = 1.0,
        reach_seconds: float = 10.0,
        on_event: EventHook | None = None,
    ) -> None:
        self._rest = None if inference_url is None else base_url(inference_url)
        self._is_rest = rest or broker is None
        if self._is_rest and self._rest is None:
            raise ValueError("asking over REST needs inference_url")
        self._token = token
        self._follower = Follower(
            broker,
            secured=Secured(ca_file, cert_file, key_file),
            version=version,
            rest=self._rest,
            token=token,
            pace=Pace(self._rest is not None, quiet_seconds, poll_seconds),
            reach_seconds=reach_seconds,
            on_event=on_event,
        )

    def __enter__(self) -> Self:
        self._follower.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect, within seconds; who still waits gets a ClosedError. Safe twice."""
        self._follower.close()

    def submit(
        self,
        task_type: str,
        media_store_id: int | str,
        *,
        priority: int = 5,
        job_id: str | None = None,
        request_id: str | None = None,
        expires_at: int | None = None,
        force: bool = False,
        rest: bool | None = None,
        timeout: float = 60.0,
        on_progress: ProgressHook | None = None,
    ) -> Submitted:
        """Ask for a job; return once the daemon has durably accepted it.

        Args:
            task_type: such as `image_embedding`.
            media_store_id: the picture.
            priority: 0 (last) to 10 (first).
            job_id: a UUID; with the same one again it is the same job. Made here if not given.
            request_id: your own word for it, echoed in events.
            expires_at: epoch milliseconds after which you do not want it any more.
            force: take the place of the job that stands for this picture and task.
            rest: ask over REST, or not, whatever the client was made for.
            timeout: seconds to keep asking. A full queue is asked again as well.
            on_progress: called a few times a second.

        Raises:
            RejectedError: refused; with `conflict` it names the job that stands.
            NoAnswerError: neither accepted nor rejected in time.
            UnreachableError: neither broker nor REST API was ever reached.
            ClosedError: the client was closed meanwhile.
        """
        body: JsonObject = {
            "media_store_id": int(media_store_id),
            "job_id": job_id or str(uuid.uuid4()),
            "priority": priority,
        }
        for name, value in (("request_id", request_id), ("expires_at", expires_at)):
            if value is not None:
                body[name] = value
        if force:
            body["force"] = True
        is_rest = self._is_rest if rest is None else rest
        if is_rest and self._rest is None:
            raise ValueError("asking over REST needs inference_url")
        watch = self._follower.watch(body["job_id"], task_type, body, is_rest=is_rest)
        try:
            self._follower.follow(watch, lambda: watch.is_decided, timeout, on_progress)
            if watch.rejected is not None:
                raise watch.rejected
            if watch.accepted is None:
                raise NoAnswerError(
                    f"no daemon accepted the request within {timeout:g} s"
                    f" ({self._follower.trouble}): is it running, and on the same broker?",
                    job_id=watch.job_id,
                )
        except BaseException:
            # Ctrl-C too: nobody will wait for it, so nothing more of it should come.
            self.forget(watch.job_id)
            raise
        return Submitted(
            job_id=watch.job_id,
            task_type=task_type,
            media_store_id=body["media_store_id"],
            job=watch.accepted,
            over=watch.over,
            is_duplicate=watch.is_duplicate,
        )

    def wait(
        self,
        job_id: str,
        timeout: float = 300.0,
        *,
        on_progress: ProgressHook | None = None,
    ) -> JsonObject:
        """Return a job once it has ended, in `completed`, `error` or `sync_failed`.

        Of a job that another client asked for, an end that lies in the past is seen over REST only.

        Args:
            job_id: a job, as a rule one of `submit`'s.
            timeout: seconds to wait. The job goes on whatever happens here.
            on_progress: called a few times a second.

        Raises:
            NoAnswerError: not in time; it may be waited for again.
            RejectedError: code `not_found`: no such job, or it was deleted meanwhile.
            ClosedError: the client was closed meanwhile.
        """
        watch = self._follower.watch(job_id)
        self._follower.follow(watch, lambda: watch.is_over or watch.is_gone, timeout, on_progress)
        if watch.is_over:
            self.forget(job_id)
            assert watch.job is not None
            return watch.job
        if watch.is_gone:
            self.forget(job_id)
            raise RejectedError("not_found", "there is no such job", job_id=job_id)
        known = watch.job["status"] if watch.job else "nothing"
        raise NoAnswerError(
            f"the job has not ended within {timeout:g} s; known of it: {known}", job_id=job_id
        )

    def job(self, job_id: str) -> JsonObject | None:
        """Return a job as the REST API shows it, or None where there is none.

        Raises:
            UnreachableError: no answer came, or one that makes no sense.
            ValueError: the client knows no `inference_url`.
        """
        if self._rest is None:
            raise ValueError("looking at a job needs inference_url")
        return find_job(self._rest, job_id, token=self._token)

    def forget(self, job_id: str) -> None:
        """Stop listening to a job that nobody will wait for; the job itself goes on."""
        self._follower.forget(job_id)

    def submit_many(
        self,
        requests: Iterable[Mapping[str, Any]],
        *,
        on_progress: Callable[[Tally], None] | None = None,
        in_flight: int = 64,
        wait: bool = True,
        timeout: float = 3600.0,
    ) -> list[Outcome]:
        """Ask for many jobs and return what became of each, in their order.

        What fails does not stop the others.

        Args:
            requests: arguments of `submit`, such as
                `{"task_type": "image_embedding", "media_store_id": 1}`.
            on_progress: called after each one.
            in_flight: how many are under way at a time.
            wait: until they have ended; else until they are accepted, which counts as completed.
            timeout: seconds for each one.
        """
        asked = list(requests)
        tally = Tally(len(asked))

        def count(outcome: Outcome) -> None:
            nonlocal tally
            tally = tally.plus(outcome)
            if on_progress is not None:
                on_progress(tally)

        def one(request: Mapping[str, Any]) -> Outcome:
            return self.submit_one(request, wait=wait, timeout=timeout)

        try:
            return in_order(one, asked, in_flight, count)
        except BaseException:
            # Such as Ctrl-C: the threads end because the client does.
            self.close()
            raise

    def submit_one(
        self, request: Mapping[str, Any], *, wait: bool = True, timeout: float = 3600.0
    ) -> Outcome:
        """Ask for one job and return what became of it, errors included.

        Raises:
            ClosedError: the client was closed meanwhile.
        """
        ends_at = time.monotonic() + timeout
        submitted = None
        try:
            submitted = self.submit(**{"timeout": timeout, **request})
            if not wait:
                self.forget(submitted.job_id)
                return Outcome(request, submitted)
            job = self.wait(submitted.job_id, max(0.0, ends_at - time.monotonic()))
        except ClosedError:
            raise
        except ClientError as error:
            if submitted is not None:
                self.forget(submitted.job_id)
            return Outcome(request, submitted, error=error)
        return Outcome(request, submitted, job)
