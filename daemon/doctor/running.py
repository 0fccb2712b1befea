"""The daemon's own word on itself: what its REST door says at /health."""

from collections.abc import Iterator
from typing import Any

from daemon.counts import counted
from daemon.doctor import mends, process
from daemon.doctor.facts import Facts
from daemon.doctor.findings import Finding, fail, ok, warn
from daemon.doctor.web import Answer, AwayError, ask
from daemon.identity import own_version
from daemon.jobs import JsonObject
from daemon.program import program
from daemon.spans import span

PART = "daemon"
SECONDS = 5.0
MOST_TOLD = 6
"""Settings that differ; more are only counted."""
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - asked, not bound
_MENDS = {
    "broker": "see the broker's lines above",
    "media_store": "see the media store's lines below",
    "vectors": "see the vectors' lines below",
    "models": "see the models' lines below, then restart the daemon",
    "database": "see the database's lines below",
    "auth": "check INFERD_AUTH__JWKS_URL and that the issuer answers: REST gives 503 till then",
}


def look(facts: Facts) -> Iterator[Finding]:
    """Ask the daemon that these settings are for."""
    http = facts.settings.http
    if not http.enabled or http.port == 0:
        why = "INFERD_HTTP__ENABLED=false" if not http.enabled else "INFERD_HTTP__PORT=0"
        yield ok(PART, f"its REST door cannot be asked ({why}): the broker's word counts")
        return
    url = address(http.host, http.port)
    try:
        answer = ask(f"{url}/health", seconds=SECONDS)
    except AwayError as error:
        yield _silent(url, error, facts)
        return
    yield from judge(url, answer, facts)
    if "worker_id" in answer.body:
        yield from settings_of(process.listener(http.port), facts)


def settings_of(pid: int | None, facts: Facts) -> Iterator[Finding]:
    """Tell where the daemon goes by other settings than those that all is judged by here."""
    theirs = None if pid is None else process.settings_of(pid)
    if pid is None or theirs is None:
        yield ok(PART, "its settings cannot be read from here: all is judged by those above")
        return
    told = process.differences(theirs, facts.settings)
    if not told:
        yield ok(PART, f"process {pid} was started with the settings that are judged here")
        return
    more = f"; and {len(told) - MOST_TOLD} more" if len(told) > MOST_TOLD else ""
    yield warn(
        PART,
        "settings_differ",
        f"process {pid} was started with other settings than all is judged by here:"
        f" {'; '.join(told[:MOST_TOLD])}{more}",
        f"{program()} doctor --process {pid} judges by what it was started with",
    )


def judge(url: str, answer: Answer, facts: Facts) -> Iterator[Finding]:
    """Judge what came from /health, and keep it for later checks where it is our daemon's."""
    report = answer.body
    if "checks" not in report or "worker_id" not in report:
        yield fail(
            PART,
            "not_inferd",
            f"{url}/health is answered by something else (HTTP {answer.status})",
            "set INFERD_HTTP__PORT to a port of the daemon's own",
        )
        return
    if report["worker_id"] != facts.worker_id:
        yield warn(
            PART,
            "another_daemon",
            f"{url} is the REST door of {report['worker_id']}, not of {facts.worker_id}",
            "run doctor with that daemon's settings, or give each daemon an INFERD_HTTP__PORT",
        )
        return
    facts.health = report
    up = report.get("uptime_seconds")
    up = up if isinstance(up, int | float) else 0
    said = f"{url}: version {report.get('version')}, up {span(up)}"
    if report.get("status") == "draining":
        mend = f"wait until it ended, then start it: {program()}"
        yield warn(PART, "daemon_draining", f"{said}, is stopping and takes no jobs", mend)
    else:
        yield ok(PART, f"{said}, says it is {report.get('status')}")
    if report.get("version") != own_version():
        found = f"it runs version {report.get('version')}, this is {own_version()}"
        yield warn(PART, "version_skew", found, "restart it from this version")
    for name, check in report["checks"].items():
        if isinstance(check, dict) and not check.get("ok", True):
            yield fail(
                PART,
                str(check.get("code", "unknown")),
                f"its check of {name} fails: {check.get('message', 'no reason given')}",
                _MENDS.get(name, "see the daemon's log, then restart it"),
            )
    yield from degraded(facts.health_check("models"))


def degraded(models: JsonObject) -> Iterator[Finding]:
    """Judge the models' check of /health: whether memory made a model fall back."""
    for name, model in models.items():
        if not isinstance(model, dict):
            continue
        copies = model.get("copies") or []
        for copy in copies or [model]:
            where = f"{name} of {copy.get('lane')}" if copies else name
            if words := copy.get("degraded"):
                yield warn(PART, "out_of_memory", f"{where} {_degradation(words)}", mends.MEMORY)
            if copies and copy.get("error"):
                found = f"{where} fails, and the other GPUs do its work; it is tried again"
                yield warn(PART, "model_error", found, "see the daemon's log, and nvidia-smi")


def _degradation(said: Any) -> str:
    if not isinstance(said, dict):
        return f"runs with less than was configured: {said}"
    why = str(said.get("why", "out_of_memory")).replace("_", " ")
    many = said.get("max_batch")
    many = counted(many, "picture") if isinstance(many, int) else f"{many} pictures"
    return (
        f"ran {why} and runs on {said.get('device')} for now, {many}"
        " at a time; it is slower, and climbs back by itself where it can"
    )


def address(host: str, port: int) -> str:
    """Return where a daemon that listens on that address is asked from this machine."""
    asked = _ANY_ADDRESS.get(host, host)
    return f"http://[{asked}]:{port}" if ":" in asked else f"http://{asked}:{port}"


def _silent(url: str, error: AwayError, facts: Facts) -> Finding:
    if facts.workers.get(facts.worker_id) in ("online", "paused", "draining"):
        return fail(
            PART,
            "rest_unreachable",
            f"the broker says that it is there, but {url}/health does not answer: {error.message}",
            "does it run on another machine (INFERD_HTTP__HOST) or with another INFERD_HTTP__PORT?"
            " else it hangs: see its log, then restart it",
        )
    return warn(
        PART,
        "daemon_away",
        f"no daemon answers at {url}: {error.message}",
        mends.START,
    )
