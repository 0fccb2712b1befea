"""The body of `make demo`: real pictures through all three tasks, told as it happens."""

import argparse
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from daemon.command_line import Parser
from daemon.counts import counted
from daemon.errors import ConfigError
from daemon.jobs import JsonObject, TaskType
from daemon.settings import Settings
from demos.annotate import draw_faces
from demos.choose_models import Choice, choose_models
from demos.client import ClientError, InferdClient, RejectedError, upload
from demos.client.terminal import Waiting, print_out
from demos.stack import DOCUMENTED_PORTS, Stack, StackError, talk_to_a_person
from handlers.face_store import QdrantFaceStore
from handlers.image_store import QdrantImageStore

DEADLINE_SECONDS = 170
OUTPUT = Path("demo-output")
PICTURES = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/rocket.jpg"),
    ("skimage", "data/hubble_deep_field.jpg"),
    ("insightface", "data/images/t1.jpg"),
)
"""Sample pictures that come with libraries inferd needs anyway."""
GROUP = "t1.jpg"
"""The picture with the most faces: it is the one that is drawn into."""
QUERY = "astronaut.png"
_EPILOG = """\
exit codes:
  0  all went well, or it was stopped by Ctrl-C
  1  a part did not come up, or a job failed
  2  usage
  78  wrong configuration

examples:
  %(prog)s
  %(prog)s --stay
"""


@dataclass(frozen=True)
class Asked:
    """A job that was asked for."""

    job_id: str
    task_type: TaskType
    picture: str


def find_pictures() -> dict[str, Path]:
    """Return the sample pictures that are installed here, by name."""
    from importlib.util import find_spec  # noqa: PLC0415 - the packages themselves load slowly

    found = {}
    for package, name in PICTURES:
        spec = find_spec(package)
        if spec and spec.origin and (path := Path(spec.origin).parent / name).is_file():
            found[path.name] = path
    return found


class Show:
    """One run of the demo over a stack."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._began = time.monotonic()
        self._asked: dict[str, Asked] = {}
        self._finished: dict[str, JsonObject] = {}
        self.ids: dict[str, int] = {}
        self.uploads = 0

    def run(self, pictures: dict[str, Path]) -> None:
        """Upload, ask over MQTT and REST, follow the events, show the results."""
        with InferdClient(
            f"mqtt://127.0.0.1:{self._stack.broker_port}",
            inference_url=self._stack.inferd_url,
            on_event=self._tell,
        ) as client:
            _title("1. Pictures go to the media store")
            for name, path in pictures.items():
                self.ids[name] = self._upload(path)
                print_out(f"   {name:24} -> id {self.ids[name]}")
            _title("2. Ask over MQTT, hear the events")
            self._ask_over_mqtt(client)
            _title("3. Ask over REST")
            self._ask_over_rest(client, pictures)
        self._show_results()
        self._draw(pictures)

    def _upload(self, path: Path) -> int:
        self.uploads += 1
        return upload(self._stack.media_store_url, path.read_bytes(), path.name)

    def _ask_over_mqtt(self, client: InferdClient) -> None:
        for name in self.ids:
            for task_type in TaskType:
                job_id = str(uuid.uuid4())
                self._asked[job_id] = Asked(job_id, task_type, name)
        first = next(iter(self._asked.values()))
        print_out(
            f"   inference/request/{first.task_type}  media_store_id {self.ids[first.picture]}"
        )
        print_out(f"   ... {len(self._asked)} requests, 3 tasks for each picture\n")
        requests = [
            {
                "task_type": asked.task_type,
                "media_store_id": self.ids[asked.picture],
                "job_id": asked.job_id,
            }
            for asked in self._asked.values()
        ]
        for outcome in client.submit_many(requests, timeout=DEADLINE_SECONDS):
            if outcome.error is not None:
                raise outcome.error
            if outcome.job is not None:
                self._finished[outcome.job["job_id"]] = outcome.job

    def _ask_over_rest(self, client: InferdClient, pictures: dict[str, Path]) -> None:
        media_store_id = self._upload(pictures.get(GROUP) or next(iter(pictures.values())))
        task_type = TaskType.FACE_DETECTION
        asked = Asked(str(uuid.uuid4()), task_type, "the same, again")
        self._asked[asked.job_id] = asked
        submitted = client.submit(
            task_type, media_store_id, priority=8, job_id=asked.job_id, rest=True
        )
        body = {"media_store_id": media_store_id, "priority": 8}
        print_out(f"   POST /job/{task_type} {body} -> 201 {submitted.job['status']}")
        self._finished[asked.job_id] = client.wait(asked.job_id, DEADLINE_SECONDS)
        try:
            client.submit(task_type, media_store_id, priority=8, rest=True)
        except RejectedError as error:
            print_out(f"   the same again -> {error.code}: {error.message}")
        job = client.job(asked.job_id)
        print_out(f"   GET /job/{asked.job_id} -> {job['status'] if job else 'nothing'}")

    def _tell(self, kind: str, event: JsonObject) -> None:
        asked = self._asked.get(event["job_id"])
        # Progress is for progress bars: several lines a job would bury the rest here.
        if asked is None or kind == "progress":
            return
        seconds = time.monotonic() - self._began
        about = f"{asked.task_type:16} {asked.picture}"
        says = summary(event["data"]) if kind == "completed" else ""
        print_out(f"   {seconds:6.2f} s  {kind:10} {about:42} {says}")

    def _show_results(self) -> None:
        _title("4. Results and where the time went (ms)")
        for job_id, asked in self._asked.items():
            job = self._finished[job_id]
            spent = (job["result"] or {}).get("inference", {}).get("timings_ms", {})
            parts = "  ".join(f"{name} {ms:.0f}" for name, ms in spent.items())
            print_out(f"   {asked.task_type:16} {asked.picture:24} {parts}")
        ran: dict[str, JsonObject] = {}
        for job_id, asked in self._asked.items():
            result = self._finished[job_id]["result"]
            if result:
                ran[asked.task_type] = result["inference"]
        print_out("")
        for task_type, inference in ran.items():
            told = ", ".join(
                str(inference[key]) for key in ("model", "weights", "device", "precision")
            )
            print_out(f"   {task_type:16} {told}")
            for note in inference.get("notes", []):
                print_out(f"   {'':16} note: {note}")

    def _draw(self, pictures: dict[str, Path]) -> None:
        for asked in self._asked.values():
            result = self._finished[asked.job_id]["result"]
            if asked.picture == GROUP and asked.task_type is TaskType.FACE_DETECTION and result:
                _title("5. An annotated picture")
                target = OUTPUT / "faces.png"
                drawn = draw_faces(pictures[GROUP].read_bytes(), result)
                try:
                    OUTPUT.mkdir(exist_ok=True)
                    target.write_bytes(drawn)
                except OSError as error:
                    print_out(f"   cannot write {target}: {error.strerror}")
                    continue
                found = counted(result["face_count"], "face")
                print_out(f"   {target}: {found} with boxes and landmarks")

    @property
    def failures(self) -> list[str]:
        """What did not end well."""
        return [
            f"{self._asked[job_id].task_type} {self._asked[job_id].picture}: {job['error_message']}"
            for job_id, job in self._finished.items()
            if job["status"] != "completed"
        ]


def summary(job: JsonObject) -> str:
    """Return a finished job in a few words."""
    result = job["result"]
    if result is None:
        return f"{job['status']}: {job['error_message']}"
    if "face_count" in result:
        count = result["face_count"]
        stored = f" in {result['collection']}" if count and "collection" in result else ""
        return f"{counted(count, 'face')}{stored}"
    return f"{result['embedding_dimension']} numbers in {result['collection']}"


def search(folder: Path, ids: dict[str, int]) -> None:
    """Search the vectors the daemon stored, through the documented Python API."""
    _title("6. Search the vectors (the daemon has stopped; its store is opened from Python)")
    names = {number: name for name, number in ids.items()}
    with QdrantImageStore(path=folder / "data" / "vectors") as images:
        query = images.get_vector(ids[QUERY])
        if query is None:
            raise StackError(f"the vector of {QUERY} is not in the store")
        print_out(f"   pictures most like {QUERY}:")
        for match in images.search(query.vector, limit=4):
            print_out(f"   {match.score:7.4f}  {names.get(int(match.point_id), match.point_id)}")
    with QdrantFaceStore(path=folder / "data" / "vectors") as faces:
        known = faces.search_by_media_store_id(ids[QUERY])
        if not known:
            print_out(f"   no face was stored for {QUERY}")
            return
        print_out(f"\n   faces most like the one in {QUERY}:")
        for match in faces.search(known[0].vector, limit=4):
            picture = names.get(match.payload["media_store_id"], "the same, again")
            print_out(f"   {match.score:7.4f}  face {match.payload['face_index']} of {picture}")


def _title(text: str) -> None:
    print_out(f"\n{text}\n{'-' * len(text)}")


def print_models(choice: Choice) -> None:
    """Say which models will run, and what must be known of them."""
    for line in choice.told:
        print_out(f"   {line}")
    for line in choice.warnings:
        print_out(f"   *** {line} ***")


def load_models(stack: Stack) -> None:
    """Wait until they are in memory, and say how long that took.

    Raises:
        StackError: they did not load.
    """
    began = time.monotonic()
    with Waiting("   loading models"):
        stack.wait_for_models()
    print_out(f"   models loaded in {time.monotonic() - began:.1f} s")


def _show(stack: Stack, *, stay: bool) -> int:
    show = Show(stack)
    show.run(find_pictures())
    code = stack.stop_daemon()
    if code != 0:
        raise StackError(f"the daemon ended with {code}:\n{stack.last_words('daemon')}")
    for failure in show.failures:
        print_out(f"   FAILED {failure}")
    if show.failures:
        return 1
    search(stack.folder, show.ids)
    if stay:
        stack.start_daemon()
        stack.wait_for_daemon()
        _stay(stack, show.uploads)
    print_out("\n   next: `make pictures FOLDER=~/Pictures` takes your own, `make run` stays up")
    return 0


def _stay(stack: Stack, uploads: int) -> None:
    _title("7. Up until Ctrl-C")
    print_out(f"   broker       mqtt://127.0.0.1:{stack.broker_port}   (inference/request/+)")
    print_out(f"   REST         {stack.inferd_url}   (POST /job/image_embedding, GET /health)")
    print_out(f"   console      {stack.inferd_url}/  (open it in a browser)")
    print_out(f"   media store  {stack.media_store_url}   ({counted(uploads, 'picture')} in it)")
    print_out(f"   files        {stack.folder}")
    if (stack.broker_port, stack.media_store_port, stack.http_port) != DOCUMENTED_PORTS:
        print_out(
            "\n   some usual ports are taken; so that inferd's commands find these, type first:"
        )
        print_out(
            f"   export INFERD_MQTT__URL=mqtt://127.0.0.1:{stack.broker_port}"
            f" INFERD_MEDIA_STORE__URL={stack.media_store_url}"
            f" INFERD_HTTP__PORT={stack.http_port}"
        )
    stack.stay()


def main(argv: Sequence[str] | None = None, *, prog: str = "python -m demos.quickstart") -> int:
    """Run the demo; return its exit code."""
    arguments = make_parser(prog).parse_args(argv)
    talk_to_a_person()
    try:
        choice = choose_models()
    except ConfigError as error:
        print(f"inferd: {error}", file=sys.stderr)
        return 78
    _title("inferd: pictures in, vectors and faces out")
    print_models(choice)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="inferd-demo-") as folder,
            Stack(Path(folder), choice.environ) as stack,
        ):
            print_out(f"   up: broker :{stack.broker_port}, REST :{stack.http_port}")
            load_models(stack)
            return _show(stack, stay=arguments.stay)
    except KeyboardInterrupt:
        print_out("\nstopped")
        return 0
    except (StackError, ClientError, OSError) as error:
        print(f"\nthe demo failed: {error}", file=sys.stderr)
        return 1


def make_parser(prog: str, _settings: Settings | None = None) -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = Parser(
        prog=prog,
        description="Start a broker, a media store and the daemon here, and show them at work on"
        " sample pictures. Nothing of it stays, but demo-output/faces.png.",
        epilog=_EPILOG,
    )
    parser.add_argument("--stay", action="store_true", help="stay up afterwards, until Ctrl-C")
    return parser


if __name__ == "__main__":
    sys.exit(main())
