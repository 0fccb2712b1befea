"""The MQTT contract as an AsyncAPI 3.0 document: every topic, who sends what there, and how.

Written from the daemon's view: it receives requests and cancels, and sends everything else.
`daemon/asyncapi.json` is this document, kept in step by a test (`make schemas` writes it).
"""

from urllib.parse import urlsplit

from pydantic import BaseModel

from daemon import topics
from daemon.jobs import JsonObject, TaskType
from daemon.mqtt.home_discovery import OFF, ON, node_id
from daemon.requests import JobRequest
from daemon.settings import MqttSettings
from daemon.wire.channels import JOB, MEDIA, TASK, WORKER, Channel, sent_channels
from daemon.wire.events import DeadLetter, JobRejected
from daemon.wire.requests import Batch
from daemon.wire.schema import CONTRACT_VERSION, WORKER_ID, ref, schemas_of

_BINDING = "0.2.0"
HOME_STATUS = "homeassistant/status"

_INTRODUCTION = """\
Pictures into vectors and faces, asked over MQTT. JSON in UTF-8.

A careful client makes the job_id itself, subscribes to `inference/job/{job_id}/+`, waits for
SUBACK, publishes its request with QoS 1, and repeats it until it sees `accepted` or `rejected`.
The request is durable before it is acknowledged; a repeat makes no second job. `completed` comes
at every end of a job, and its `status` says which. Events come at least once: an `event_id` never
changes. Be ready for further fields and codes."""

_PARAMETERS: JsonObject = {
    "job_id": {
        "description": "A UUID in its usual spelling, as the client wrote it.",
        "examples": ["550e8400-e29b-41d4-a716-446655440000"],
    },
    "task_type": {"description": "What is to be done.", "enum": [task.value for task in TaskType]},
    "refused_task": {
        "description": "The last level of the topic that the request came on, `unknown` where that "
        "is no word, `cancel` for cancels, `delete` for deletes.",
        "examples": [TaskType.IMAGE_EMBEDDING.value, "cancel", "delete", "unknown"],
    },
    "woken": {
        "description": "A task type, or `_intake`: the intake roles are to be looked at.",
        "examples": [TaskType.IMAGE_EMBEDDING.value, topics.WAKE_INTAKE],
    },
    "media_store_id": {
        "description": "The picture's id in the media store, in decimal digits.",
        "examples": ["12345"],
    },
    "worker_id": {"description": "INFERD_MQTT__CLIENT_ID of a daemon.", "examples": [WORKER_ID]},
    "component": {"description": "A kind of entity.", "enum": ["sensor", "switch"]},
    "node_id": {
        "description": "A daemon, in letters that Home Assistant takes.",
        "examples": [node_id(WORKER_ID)],
    },
    "object_id": {
        "description": "One of its entities.",
        "examples": ["pending", "pause_image_embedding"],
    },
}


def document() -> JsonObject:
    """Return the whole document, ready for JSON."""
    sent = sent_channels()
    models: list[type[BaseModel]] = [JobRequest, Batch, *(each.model for each in sent.values())]
    answers = [name for name, each in sent.items() if each.is_answer]
    refusals = [name for name in answers if sent[name].model in (JobRejected, DeadLetter)]
    of_jobs = [name for name in answers if name != "mediaDeleted"]
    reply = {
        "address": {
            "location": "$message.payload#/reply_to",
            "description": "Else the MQTT 5 response topic; without either, none.",
        },
        "channel": {"$ref": "#/channels/reply"},
        "messages": [_message_of("reply", name) for name in of_jobs],
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "inferd over MQTT",
            "version": CONTRACT_VERSION,
            "description": _INTRODUCTION,
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {"broker": _server()},
        "channels": _channels(sent, answers),
        "operations": {
            "receiveRequest": {
                "action": "receive",
                "channel": {"$ref": "#/channels/request"},
                "summary": "Ask for one job, or for many in one message.",
                "description": "Acknowledged once it is durably queued or durably refused. "
                "Answered by `accepted` or `rejected`, then by the job's events, on its own topics "
                "and where a response topic asked for them.",
                "messages": [_message_of("request", name) for name in ("request", "batch")],
                "bindings": _operation_binding(1, is_retained=False),
                "reply": reply,
            },
            "receiveCancel": {
                "action": "receive",
                "channel": {"$ref": "#/channels/cancel"},
                "summary": "End a job.",
                "description": "One that waits, or runs in this daemon, ends in `error`, code "
                "`cancelled`. One that had ended says its last events again. One that runs in "
                "another daemon: `rejected`, `conflict`. Unknown or retained ones: dead letters.",
                "messages": [_message_of("cancel", "cancel")],
                "bindings": _operation_binding(1, is_retained=False),
                "reply": {
                    "channel": {"$ref": "#/channels/reply"},
                    "messages": [_message_of("reply", name) for name in refusals],
                },
            },
            "receiveDelete": {
                "action": "receive",
                "channel": {"$ref": "#/channels/delete"},
                "summary": "Remove a picture's vectors and jobs.",
                "description": "A job that waits, or runs in this daemon, is cancelled first. Safe "
                "to repeat; harmless where nothing is known. Every daemon that hears it removes "
                "what it can reach, and says so. Retained ones: dead letters.",
                "messages": [_message_of("delete", "delete")],
                "bindings": _operation_binding(1, is_retained=False),
                "reply": {
                    "channel": {"$ref": "#/channels/reply"},
                    "messages": [
                        _message_of("reply", name) for name in ("mediaDeleted", "deadLetter")
                    ],
                },
            },
            "receivePause": {
                "action": "receive",
                "channel": {"$ref": "#/channels/pause"},
                "summary": "Pause or resume a task type, as Home Assistant's switches do.",
                "description": "Only with INFERD_HOME_ASSISTANT__ENABLED. Whatever else comes, "
                "retained ones too, is passed over. The availability says what is paused.",
                "messages": [_message_of("pause", "pause")],
                "bindings": _operation_binding(1, is_retained=False),
            },
            "receiveHomeStatus": {
                "action": "receive",
                "channel": {"$ref": "#/channels/homeStatus"},
                "summary": "Hear that Home Assistant has started, and announce again.",
                "messages": [_message_of("homeStatus", "homeStatus")],
                "bindings": _operation_binding(1, is_retained=False),
            },
            **{f"send{_upper(name)}": _sending(name, each) for name, each in sent.items()},
            "sendReply": {
                "action": "send",
                "channel": {"$ref": "#/channels/reply"},
                "summary": "Repeat an event where a response topic asked for it.",
                "description": "The same bytes as on the job's own topic, with the request's "
                "correlation data. Progress comes with QoS 0.",
                "messages": [_message_of("reply", name) for name in answers],
                "bindings": _operation_binding(1, is_retained=False),
            },
        },
        "components": {
            "parameters": _PARAMETERS,
            "messages": _messages(sent),
            "schemas": schemas_of(models),
        },
    }


def _server() -> JsonObject:
    url = urlsplit(MqttSettings.model_fields["url"].default.get_secret_value())
    keepalive: int = MqttSettings.model_fields["keepalive_seconds"].default
    version: str = MqttSettings.model_fields["version"].default
    return {
        "host": f"{url.hostname}:{url.port}",
        "protocol": url.scheme,
        "protocolVersion": version,
        "description": "INFERD_MQTT__URL, mqtts:// for TLS. Clients may speak 3.1.1 as well; "
        "MQTT 5 adds response topics and correlation data. The bindings are the daemon's own.",
        "security": [{"type": "userPassword", "description": "As the broker wants it."}],
        "bindings": {
            "mqtt": {
                "cleanSession": False,
                "keepAlive": keepalive,
                "sessionExpiryInterval": 0xFFFFFFFF,
                "lastWill": {
                    "topic": topics.availability(WORKER),
                    "qos": 1,
                    "message": "An Availability whose state is `offline`.",
                    "retain": True,
                },
                "bindingVersion": _BINDING,
            }
        },
    }


def _channels(sent: dict[str, Channel], answers: list[str]) -> JsonObject:
    return {
        "request": {
            "address": f"{topics.ROOT}/request/{TASK}",
            "description": "What is asked. Never retained: that is refused.",
            "parameters": {"task_type": _parameter("task_type")},
            "messages": {name: _component("messages", name) for name in ("request", "batch")},
        },
        "cancel": {
            "address": f"{topics.ROOT}/cancel/{JOB}",
            "description": "Ends the job that the topic names.",
            "parameters": {"job_id": _parameter("job_id")},
            "messages": {"cancel": _component("messages", "cancel")},
        },
        "pause": {
            "address": topics.pause(WORKER, TASK),
            "description": "Pauses a task type for all daemons on this one's queue, or resumes it.",
            "parameters": {name: _parameter(name) for name in ("worker_id", "task_type")},
            "messages": {"pause": _component("messages", "pause")},
        },
        "homeStatus": {
            "address": HOME_STATUS,
            "description": "Home Assistant's birth and last will, below its prefix.",
            "messages": {"homeStatus": _component("messages", "homeStatus")},
        },
        "delete": {
            "address": f"{topics.ROOT}/delete/{MEDIA}",
            "description": "Removes the picture that the topic names.",
            "parameters": {"media_store_id": _parameter("media_store_id")},
            "messages": {"delete": _component("messages", "delete")},
        },
        **{
            name: {
                "address": each.address,
                "description": each.text,
                "parameters": {own: _parameter(known) for own, known in each.parameters.items()},
                "messages": {name: _component("messages", name)},
            }
            for name, each in sent.items()
        },
        "reply": {
            "address": None,
            "description": f"Below `{topics.ROOT}/reply/`, where the client asked for it: "
            f"at most {topics.MAX_REPLY_BYTES} bytes, no wildcards, no `$`.",
            "messages": {name: _component("messages", name) for name in answers},
        },
    }


def _messages(sent: dict[str, Channel]) -> JsonObject:
    five = {
        "responseTopic": {
            "type": "string",
            "pattern": f"^{topics.ROOT}/reply/",
            "maxLength": topics.MAX_REPLY_BYTES,
        },
        "correlationData": {"type": "string", "description": "Any bytes; they are returned."},
        "bindingVersion": _BINDING,
    }
    return {
        "request": {
            "name": "request",
            "title": "One request",
            "payload": ref(JobRequest),
            "bindings": {"mqtt": five},
        },
        "batch": {
            "name": "batch",
            "title": "Many requests",
            "payload": ref(Batch),
            "bindings": {"mqtt": five},
        },
        "cancel": {
            "name": "cancel",
            "title": "A cancel",
            "contentType": "application/octet-stream",
            "summary": "Whatever the payload, it means nothing; the topic says it all.",
            "payload": {},
            "bindings": {"mqtt": five},
        },
        "delete": {
            "name": "delete",
            "title": "A delete",
            "contentType": "application/octet-stream",
            "summary": "Whatever the payload, it means nothing; the topic says it all.",
            "payload": {},
            "bindings": {"mqtt": five},
        },
        "pause": {
            "name": "pause",
            "title": "A switch",
            "contentType": "text/plain",
            "summary": f"{ON} pauses, {OFF} resumes.",
            "payload": {"enum": [ON, OFF]},
        },
        "homeStatus": {
            "name": "homeStatus",
            "title": "Home Assistant's state",
            "contentType": "text/plain",
            "payload": {"enum": ["online", "offline"]},
        },
        **{
            name: {
                "name": name,
                "title": each.model.__name__,
                "summary": (each.model.__doc__ or "").partition("\n")[0],
                "payload": ref(each.model),
            }
            for name, each in sent.items()
        },
    }


def _sending(name: str, each: Channel) -> JsonObject:
    return {
        "action": "send",
        "channel": {"$ref": f"#/channels/{name}"},
        "summary": (each.model.__doc__ or "").partition("\n")[0],
        "messages": [_message_of(name, name)],
        "bindings": _operation_binding(each.qos, is_retained=each.is_retained),
    }


def _operation_binding(qos: int, *, is_retained: bool) -> JsonObject:
    return {"mqtt": {"qos": qos, "retain": is_retained, "bindingVersion": _BINDING}}


def _parameter(name: str) -> JsonObject:
    return _component("parameters", name)


def _component(kind: str, name: str) -> JsonObject:
    return {"$ref": f"#/components/{kind}/{name}"}


def _message_of(channel: str, name: str) -> JsonObject:
    return {"$ref": f"#/channels/{channel}/messages/{name}"}


def _upper(name: str) -> str:
    return name[0].upper() + name[1:]
