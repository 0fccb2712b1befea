"""Every topic that the daemon sends on: its address, what it carries, QoS, and whether it stays."""

from dataclasses import dataclass

from daemon import topics
from daemon.events import Event
from daemon.wire import events, home, worker
from daemon.wire.codes import DELETE_REFUSALS, FAILURES, REFUSALS, told
from daemon.wire.schema import WireModel

JOB, TASK, WORKER = "{job_id}", "{task_type}", "{worker_id}"
MEDIA = "{media_store_id}"
"""Stand in an address for what differs."""
HOME = "homeassistant/{component}/{node_id}/{object_id}/config"


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """One channel on which the daemon sends one message."""

    address: str
    model: type[WireModel]
    parameters: dict[str, str]
    """Of the address: by its name there, the name of its description here."""
    text: str
    qos: int = 1
    is_retained: bool = False
    is_answer: bool = False
    """Also sent to the response topic of the request."""


def _job_event(event: Event, model: type[WireModel], text: str, *, qos: int = 1) -> Channel:
    return Channel(
        address=topics.job_event(JOB, event),
        model=model,
        parameters={"job_id": "job_id"},
        text=text,
        qos=qos,
        is_answer=True,
    )


def _worker_topic(address: str, model: type[WireModel], text: str, *, qos: int = 1) -> Channel:
    parameters = {"worker_id": "worker_id"}
    return Channel(
        address=address, model=model, parameters=parameters, text=text, qos=qos, is_retained=True
    )


def sent_channels() -> dict[str, Channel]:
    """Return the channels by name."""
    refusals = f"`data.code` is one of:\n\n{told(REFUSALS)}"
    ends = f"`error_message` of a failed job is `code: sentence`:\n\n{told(FAILURES)}"
    return {
        "accepted": _job_event(
            Event.ACCEPTED, events.JobAccepted, "The job is durably queued, or was there before."
        ),
        "rejected": _job_event(
            Event.REJECTED,
            events.JobRejected,
            f"The request was not queued, or the cancel not done. {refusals}",
        ),
        "started": _job_event(Event.STARTED, events.JobStarted, "An attempt began."),
        "progress": _job_event(
            Event.PROGRESS,
            events.JobProgress,
            "A stage began; sent as it happens, at most 100 a second, and not kept. "
            "INFERD_MQTT__PROGRESS=false turns it off.",
            qos=0,
        ),
        "completed": _job_event(
            Event.COMPLETED, events.JobCompleted, f"The job ended, well or not. {ends}"
        ),
        "failed": _job_event(
            Event.FAILED,
            events.JobFailed,
            "In addition to `completed`, for jobs that ended in `error` or `sync_failed`.",
        ),
        "deadLetter": Channel(
            address=f"{topics.ROOT}/rejected/{TASK}",
            model=events.DeadLetter,
            parameters={"task_type": "refused_task"},
            text="A request without a usable job_id, a cancel of an unknown job, or a delete was "
            f"refused. {refusals}\n\nOf deletes also:\n\n{told(DELETE_REFUSALS)}",
            is_answer=True,
        ),
        "mediaDeleted": Channel(
            address=topics.media_deleted(MEDIA),
            model=events.MediaDeleted,
            parameters={"media_store_id": "media_store_id"},
            text="A picture was removed, asked for over MQTT or REST. Each daemon that was asked "
            "says what it removed itself.",
            is_answer=True,
        ),
        "availability": _worker_topic(
            topics.availability(WORKER),
            worker.Availability,
            "Whether a daemon takes and does work; the last will says `offline` for it.",
        ),
        "wake": Channel(
            address=topics.wake(TASK),
            model=worker.WakeUp,
            parameters={"task_type": "woken"},
            text="Tells other daemons on the queue at once that jobs of a task type wait, at most "
            "ten times a second; only where there are others. They look by themselves as well.",
            qos=0,
        ),
        "info": _worker_topic(
            topics.info(WORKER),
            worker.Info,
            "What a daemon is; at each connect and when its models change.",
        ),
        "homeEntity": Channel(
            address=HOME,
            model=home.HomeEntity,
            parameters={name: name for name in ("component", "node_id", "object_id")},
            text="What Home Assistant needs to show a sensor or a switch of a daemon; at each "
            "connect and when Home Assistant starts, below INFERD_HOME_ASSISTANT__PREFIX, and only "
            "with INFERD_HOME_ASSISTANT__ENABLED. Empty where it is taken back.",
            is_retained=True,
        ),
        "stats": _worker_topic(
            topics.stats(WORKER),
            worker.Stats,
            "How busy a daemon is; every INFERD_MQTT__STATS_SECONDS, at a connect, and when work "
            "begins or ends.",
            qos=0,
        ),
    }
