"""A small client library for inferd, on paho-mqtt: it blocks, and any thread may use it.

    from demos.client import InferdClient, upload

    media_store_id = upload("localhost:8000", picture.read_bytes(), picture.name)
    with InferdClient("mqtt://localhost:1883", inference_url="localhost:8001") as inferd:
        submitted = inferd.submit("face_detection", media_store_id, priority=7)
        job = inferd.wait(submitted.job_id, timeout=60)
        print(job["status"], job["result"])

What it holds to, so that nothing is missed and nothing is done twice:

* It makes the job_id, and listens to the job's events (SUBACK) before it asks.
* It asks again with the same job_id, at growing distances, until the daemon has accepted or
  rejected; inferd makes that one job however often it hears it.
* After a lost connection it listens and asks again: the answer says how the job stands, so an event
  that came meanwhile is not missed.
* With `inference_url` it asks and polls over REST where the broker is away or silent.

Its files:

    client     what a caller sees: submit, wait, many    outcomes   what a caller gets
    following  does what is due for each job, in time    watch      what is known of one job: pure
    link       the connection to the broker, by paho     http       REST and uploads
    parallel   work in threads, handed out as it comes   errors
    bulk       many, in batch messages                   ledger     what of them is due: pure

and what command lines share:

    configured the daemon's settings for its clients     arguments  words, checked
    sources    ids, lists and folders, as streams        uploads    many, and again after outages
    management options, requests and exit codes of commands that ask over REST
    reports    what is told of one request among many    terminal   bars (tqdm) and lines
    journal    what went well, in a file: resumable      submit_options
    exit_codes
"""

from demos.client.client import BROKER, InferdClient
from demos.client.errors import (
    ClientError,
    ClosedError,
    NoAnswerError,
    RejectedError,
    UnreachableError,
    UploadRefusedError,
)
from demos.client.http import upload
from demos.client.outcomes import Outcome, Progress, Submitted, Tally

__all__ = [
    "BROKER",
    "ClientError",
    "ClosedError",
    "InferdClient",
    "NoAnswerError",
    "Outcome",
    "Progress",
    "RejectedError",
    "Submitted",
    "Tally",
    "UnreachableError",
    "UploadRefusedError",
    "upload",
]
