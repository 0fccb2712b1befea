"""A small media store to try inferd with: pictures in a folder, served by id.

    python -m demos.media_store --port 8000 --folder data/media

It has the routes that inferd and its clients use, and no authentication: keep it on localhost.
Previews (`/entity/{id}/preview`) are JPEGs of at most `--preview-side` pixels a side.
Ids rise by one a picture, also across restarts; client file names never become paths.
"""

import argparse
import asyncio
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

from demos.picture_types import HEAD_BYTES, sniff
from demos.store_previews import SIDE, StorePreviews

FILE_FIELDS = ("file", "image", "media_file")
MAX_UPLOAD_BYTES = 64 * 1024 * 1024
MAX_FIELD_BYTES = 64 * 1024
DEFAULT_TYPE = "application/octet-stream"
ID = r"{id:\d{1,18}}"

_MEDIA_TYPE = re.compile(r"[\w.+-]{1,60}/[\w.+-]{1,60}", re.ASCII)


class UploadTooLargeError(Exception):
    """More bytes came than one picture may have."""


@dataclass(frozen=True)
class Upload:
    """A file that has arrived, still under its temporary name."""

    path: Path
    file_size: int
    md5: str
    mime_type: str


class Pictures:
    """The folder: `{id}.bin` holds the bytes and `{id}.json` what is known of them.

    The JSON file is written last, so an entity exists with all of its bytes or not at all.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.part"):
            leftover.unlink()
        self._last_id = max(
            (int(path.stem) for path in folder.iterdir() if path.stem.isdecimal()), default=0
        )

    async def receive(self, part: BodyPartReader, max_bytes: int) -> Upload:
        """Write one multipart field to a temporary file.

        Raises:
            UploadTooLargeError: it has more than `max_bytes`; nothing is kept.
        """
        handle, name = tempfile.mkstemp(suffix=".part", dir=self._folder)
        path = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                return await self._copy(part, file, path, max_bytes)
        except BaseException:
            # A client that hangs up cancels us: half an upload must not stay.
            self.discard(path)
            raise

    @staticmethod
    def discard(path: Path) -> None:
        """Remove a temporary file that may have got its name already."""
        path.unlink(missing_ok=True)

    async def _copy(
        self, part: BodyPartReader, file: BinaryIO, path: Path, max_bytes: int
    ) -> Upload:
        digest = hashlib.md5(usedforsecurity=False)
        size = 0
        head = b""
        while chunk := await part.read_chunk(256 * 1024):
            size += len(chunk)
            if size > max_bytes:
                raise UploadTooLargeError
            head = head or bytes(chunk[:HEAD_BYTES])
            digest.update(chunk)
            await asyncio.to_thread(file.write, chunk)
        said = part.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        return Upload(path, size, digest.hexdigest(), media_type(head, said))

    def keep(self, upload: Upload, label: str | None) -> dict[str, Any]:
        """Give the upload an id; return the entity."""
        self._last_id += 1
        entity = {
            "id": self._last_id,
            "is_collection": False,
            "label": label,
            "mime_type": upload.mime_type,
            "file_size": upload.file_size,
            "md5": upload.md5,
            "added_date": time.time_ns() // 1_000_000,
        }
        upload.path.replace(self.file(self._last_id))
        draft = self._folder / f"{self._last_id}.json.part"
        draft.write_text(json.dumps(entity), encoding="utf-8")
        draft.replace(self._folder / f"{self._last_id}.json")
        return entity

    def entity(self, entity_id: int) -> dict[str, Any] | None:
        """Return what is known of one picture, or None."""
        try:
            text = (self._folder / f"{entity_id}.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        found: dict[str, Any] = json.loads(text)
        return found

    def file(self, entity_id: int) -> Path:
        """Return where the bytes of one picture are."""
        return self._folder / f"{entity_id}.bin"


def media_type(head: bytes, said: str) -> str:
    """Return the type that the first bytes show, else the one the client said, if it is one."""
    return sniff(head) or (said if _MEDIA_TYPE.fullmatch(said) else DEFAULT_TYPE)


PICTURES = web.AppKey("pictures", Pictures)
UPLOAD_LIMIT = web.AppKey("upload_limit", int)
PREVIEWS = web.AppKey("previews", StorePreviews)
FOREIGN = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox"}
"""Uploads are strangers' files: a browser must neither guess nor run them."""


def create_app(
    folder: Path, *, max_upload_bytes: int = MAX_UPLOAD_BYTES, preview_side: int = SIDE
) -> web.Application:
    """Return the media store over one folder, which is made where it is absent.

    Args:
        folder: where pictures are.
        max_upload_bytes: larger uploads are refused.
        preview_side: longest side of a preview in pixels; 0: there are none.
    """
    app = web.Application(middlewares=[_errors_as_json], client_max_size=max_upload_bytes)
    app[PICTURES] = Pictures(folder)
    app[UPLOAD_LIMIT] = max_upload_bytes
    app[PREVIEWS] = StorePreviews(folder, preview_side)
    app.add_routes(
        [
            web.get("/", _index),
            web.post("/entity/", _create),
            web.get(f"/entity/{ID}", _entity),
            web.get(f"/entity/{ID}/file", _file),
            web.get(f"/entity/{ID}/preview", _preview),
            web.post(f"/entity/{ID}/face-detection-results", _face_results),
        ]
    )
    return app


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPError as error:
        return web.json_response({"detail": error.reason}, status=error.status)


def _refused(status: int, detail: str) -> web.Response:
    return web.json_response({"detail": detail}, status=status)


async def _index(_: web.Request) -> web.Response:
    return web.json_response({"message": "media_store service is running"})


async def _create(request: web.Request) -> web.Response:
    if not request.content_type.startswith("multipart/"):
        return _refused(400, "send multipart/form-data with the picture in the field 'file'")
    pictures = request.app[PICTURES]
    label: str | None = None
    upload: Upload | None = None
    try:
        async for part in await request.multipart():
            if not isinstance(part, BodyPartReader):
                continue
            if part.name in FILE_FIELDS and upload is None:
                upload = await pictures.receive(part, request.app[UPLOAD_LIMIT])
            elif part.name == "label":
                label = (await part.read_chunk(MAX_FIELD_BYTES)).decode(errors="replace")
        if upload is None:
            return _refused(400, "a picture is required in the field 'file'")
        if upload.file_size == 0:
            return _refused(400, "the picture is empty")
        entity = pictures.keep(upload, label)
        return web.json_response(entity, status=201)
    except UploadTooLargeError:
        return _refused(413, f"a picture may have {request.app[UPLOAD_LIMIT]} bytes")
    except (ValueError, HttpProcessingError) as error:
        return _refused(400, f"not a proper multipart body: {error}")
    finally:
        if upload is not None:
            pictures.discard(upload.path)


async def _entity(request: web.Request) -> web.Response:
    entity = _known(request)
    return web.json_response(entity)


async def _file(request: web.Request) -> web.StreamResponse:
    entity = _known(request)
    return web.FileResponse(
        request.app[PICTURES].file(entity["id"]),
        headers={"Content-Type": entity["mime_type"], **FOREIGN},
    )


async def _preview(request: web.Request) -> web.StreamResponse:
    entity = _known(request)
    original = request.app[PICTURES].file(entity["id"])
    preview = await request.app[PREVIEWS].of(entity["id"], original)
    if preview is None:
        raise web.HTTPNotFound(reason=f"entity {entity['id']} has no preview")
    headers = {"Content-Type": "image/jpeg", **preview.headers, **FOREIGN}
    return web.FileResponse(preview.path, headers=headers)


async def _face_results(request: web.Request) -> web.Response:
    entity = _known(request)
    try:
        await request.json()
    except ValueError:
        return _refused(400, "the body is not JSON")
    return web.json_response(
        {
            "status": "accepted",
            "entity_id": entity["id"],
            "message": "Face detection results accepted",
        }
    )


def _known(request: web.Request) -> dict[str, Any]:
    entity = request.app[PICTURES].entity(int(request.match_info["id"]))
    if entity is None:
        raise web.HTTPNotFound(reason=f"no entity {int(request.match_info['id'])}")
    return entity


def main(arguments: list[str] | None = None) -> int:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m demos.media_store", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    parser.add_argument(
        "--folder", type=Path, default=Path("data/media"), help="where pictures are kept"
    )
    parser.add_argument(
        "--preview-side",
        type=int,
        default=SIDE,
        help=f"longest side of a preview in pixels, such as 640 ({SIDE}); 0: no previews",
    )
    options = parser.parse_args(arguments)
    if options.preview_side < 0:
        parser.error("--preview-side is a number of pixels")
    app = create_app(options.folder, preview_side=options.preview_side)
    web.run_app(app, host=options.host, port=options.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
