"""The operations behind the console, described; the page at / is the greeting's."""

from daemon.jobs import JsonObject
from daemon.wire.schema import MediaStoreId, WireModel
from http_shim.console.picture_routes import AddQuery, ShowQuery
from http_shim.console.stream import CONTENT_TYPE
from http_shim.contract.operations import (
    BODY_ERRORS,
    QUEUE_ERRORS,
    Answer,
    Errors,
    Operation,
    query_parameters,
)


class AddedPicture(WireModel):
    """A picture that the media store has taken."""

    media_store_id: MediaStoreId


_OFF: Errors = {404: ["not_configured"]}
_MEDIA_STORE_AWAY = ["media_store_error", "media_store_timeout", "media_store_unreachable"]
_DECODER_AWAY = ["out_of_memory", "decoder_crashed", "decode_timeout"]
_NO_PICTURE = [
    *("empty", "unsupported_format", "decode_error", "too_many_pixels", "decode_timeout"),
    *("media_store_refused", "media_store_redirected"),
]
_AWAY: Errors = {
    503: [
        *_MEDIA_STORE_AWAY,
        "media_store_refused",
        *_DECODER_AWAY,
        *("busy", "timeout", "draining"),
    ]
}
_ID: JsonObject = {
    "description": "The picture, as the media store knows it.",
    "schema": {"type": "string", "pattern": "^[0-9]{1,19}$"},
}

CONSOLE_OPERATIONS = (
    Operation(
        method="get",
        path="/console/events",
        name="streamEvents",
        tag="console",
        summary="Tell what happens as it happens (server-sent events).",
        text="Begins with everything there is to know: `hello`, `queue`, `daemon`, `failures`, "
        "`latest`. Then `queue` and the others where they change, `job` with each event of a job "
        "as MQTT gets it, and `stage` as a job gets on; in a flood of jobs ends go first and the "
        "rest is thinned out. Who reads too slowly is cut off, and comes back for a fresh start.",
        access="token",
        answers={200: Answer(text="The stream.", media_type=CONTENT_TYPE)},
        errors=(_OFF, QUEUE_ERRORS, {503: ["busy"]}),
    ),
    Operation(
        method="get",
        path="/console/picture/{media_store_id}",
        name="showPicture",
        tag="console",
        summary="Show a picture of the media store, small.",
        text="A JPEG made anew of the picture's pixels.",
        access="token",
        path_parameters={"media_store_id": _ID},
        query=query_parameters(ShowQuery, {"side": "The longest side, in pixels."}),
        answers={
            200: Answer(
                text="The picture, upright.",
                media_type="image/jpeg",
                headers={
                    "X-Picture-Width": "Of the whole picture, in pixels, as in results.",
                    "X-Picture-Height": "Of the whole picture, in pixels.",
                },
            )
        },
        errors=(
            _OFF,
            {404: ["not_found", "media_not_found"], 422: ["invalid_request", "too_large"]},
            {422: _NO_PICTURE},
            _AWAY,
        ),
    ),
    Operation(
        method="post",
        path="/console/upload",
        name="addPicture",
        tag="console",
        summary="Put a picture into the media store.",
        text="The body is the picture's file, of at most INFERD_MEDIA_STORE__MAX_BYTES; what is "
        "no picture is refused here. Ask for jobs with the id that is answered.",
        access="write",
        query=query_parameters(AddQuery, {"name": "The file's name."}),
        body={"required": True, "description": "The picture's file.", "content": {"image/*": {}}},
        answers={
            201: Answer(text="It is there.", model=AddedPicture, example={"media_store_id": 12345})
        },
        errors=(_OFF, BODY_ERRORS, {422: ["invalid_request", *_NO_PICTURE]}, _AWAY),
    ),
    Operation(
        method="get",
        path="/console/{asset}",
        name="showAsset",
        tag="console",
        summary="Show a file of the console's page.",
        path_parameters={"asset": {"description": "Its name.", "schema": {"type": "string"}}},
        answers={
            200: Answer(text="The file.", media_type="*/*", headers={"ETag": "Its version."}),
            304: Answer(text="It is the one that the browser has.", media_type=None),
        },
        errors=({404: ["not_found", "not_configured"]},),
    ),
)
