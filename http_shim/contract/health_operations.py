"""The operations that tell how the daemon is, described; all are open to everybody."""

from daemon.jobs import JsonObject
from daemon.metrics import CONTENT_TYPE
from daemon.wire.schema import WORKER_ID
from http_shim.contract.answers import FullHealth, Greeting, Health, Live, Stalled
from http_shim.contract.operations import Answer, Operation

_HEALTH: JsonObject = {
    "status": "ok",
    "version": "0.1.0",
    "worker_id": WORKER_ID,
    "uptime_seconds": 12.5,
    "checks": {
        "broker": {"ok": True, "connects": 1},
        "worker": {"ok": True, "in_flight": 0},
    },
}
_AWAY: JsonObject = {
    **_HEALTH,
    "status": "unavailable",
    "checks": {
        "broker": {"ok": False, "code": "broker_unreachable", "message": "not connected yet"}
    },
}

HEALTH_OPERATIONS = (
    Operation(
        method="get",
        path="/",
        name="greet",
        tag="health",
        summary="Say who answers here; to a browser, show the console.",
        answers={
            200: Answer(
                text="A greeting, or the console where HTML is asked for.",
                or_as=("text/html",),
                model=Greeting,
                example={"message": "inferd is running", "jobs": "/job", "health": "/health"},
            )
        },
    ),
    Operation(
        method="get",
        path="/health",
        name="reportHealth",
        tag="health",
        summary="Tell all that is known of the daemon and of what it depends on.",
        answers={
            200: Answer(
                text="The report, whatever is away.",
                model=FullHealth,
                example={**_HEALTH, "database": "ok", "worker": "ok", "queue_size": 0},
            )
        },
    ),
    Operation(
        method="get",
        path="/health/live",
        name="reportLive",
        tag="health",
        summary="Say that the process answers.",
        answers={
            200: Answer(text="It does.", model=Live, example={"status": "ok"}),
            503: Answer(
                text="It does, but a model's call hangs: it should be started again.",
                model=Stalled,
                example={
                    "status": "stalled",
                    "code": "model_stalled",
                    "message": "clip has been busy with one call (infer) for 120 s",
                },
            ),
        },
    ),
    Operation(
        method="get",
        path="/health/ready",
        name="reportReady",
        tag="health",
        summary="Say whether work may be sent here.",
        answers={
            200: Answer(text="It may.", model=Health, example=_HEALTH),
            503: Answer(text="It may not; the report says why.", model=Health, example=_AWAY),
        },
    ),
    Operation(
        method="get",
        path="/metrics",
        name="showMetrics",
        tag="health",
        summary="Show counters, histograms and gauges as Prometheus' text.",
        answers={200: Answer(text="The metrics.", media_type=CONTENT_TYPE)},
    ),
    Operation(
        method="get",
        path="/openapi.json",
        name="showContract",
        tag="health",
        summary="Show this document.",
        answers={200: Answer(text="This document.", media_type="application/json")},
    ),
)
