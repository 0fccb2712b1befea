"""Every stable code that a client may see, and what it means; clients branch on these words."""

REFUSALS = {
    "invalid_json": "The body is not JSON, or not UTF-8, or a name stands twice in one object.",
    "invalid_request": "A field is missing, unknown, mistyped or out of range; `field` names it.",
    "unknown_task": "No such task type.",
    "too_large": "The message is larger than this daemon reads.",
    "retained_request": "Requests and cancels must not be retained.",
    "expired": "`expires_at` had passed when it came.",
    "conflict": "Another job stands in the way; `existing_job_id` names it.",
    "queue_full": "Too many jobs wait; ask again after `retry_after_ms`.",
    "job_not_found": "No job has this id.",
}
"""Why a request, a cancel or a delete over MQTT is answered `rejected`."""

DELETE_REFUSALS = {
    "vector_store_error": "The vector database failed.",
    "vector_store_unreachable": "The vector database is away.",
    "vector_store_unauthorized": "The vector database does not let us in.",
    "vector_store_unusable": "The vectors' folder cannot be used; the message says what to do.",
    "vector_store_locked": "Another process has the vectors' folder open.",
    "collection_mismatch": "The collection is of another shape than ours.",
}
"""Further reasons of deletes: what could not be removed is there still, and so are the jobs."""

FAILURES = {
    "media_not_found": "The media store has no such picture.",
    "media_store_refused": "The media store refuses us this picture.",
    "media_store_redirected": "The media store sent us elsewhere, where we do not go.",
    "media_store_error": "The media store failed.",
    "media_store_timeout": "The media store did not answer in time.",
    "media_store_unreachable": "The media store was away for too long.",
    "too_large": "The file is larger than this daemon reads.",
    "empty": "The file is empty.",
    "unsupported_format": "The file is of no format that we take.",
    "decode_error": "The file is broken.",
    "too_many_pixels": "The picture is larger than this daemon decodes.",
    "decoder_crashed": "The process that decoded the file died, as often as it was tried.",
    "decode_timeout": "Decoding took longer than this daemon allows.",
    "vector_store_error": "The vector database failed.",
    "vector_store_unreachable": "The vector database was away for too long.",
    "vector_store_unauthorized": "The vector database does not let us in.",
    "vector_store_unusable": "The vectors' folder cannot be used; the message says what to do.",
    "vector_store_locked": "Another process has the vectors' folder open.",
    "collection_mismatch": "The collection is of another shape than ours.",
    "model_unknown": "The collection holds vectors of a model that nobody knows.",
    "model_mismatch": "The collection holds another model's vectors.",
    "bad_vector": "The vector is not sound.",
    "bad_payload": "The payload of a point is no JSON object.",
    "bad_point_id": "The point's id is none.",
    "bad_buffer": "The array is not what the model takes; from Python only.",
    "model_error": "The model could not be loaded, or failed.",
    "out_of_memory": "There was not enough memory.",
    "timeout": "The job took longer than this daemon allows.",
    "worker_lost": "The process that ran the job died, as often as it may be tried.",
    "internal": "A fault of the daemon; its log has the details.",
    "expired": "`expires_at` had passed when its turn came.",
    "cancelled": "A client ended it.",
    "superseded": "A newer request with `force` took its place.",
}
"""Why a job ended in `error` or `sync_failed`: its `error_message` begins with one of these."""


def told(codes: dict[str, str]) -> str:
    """Return codes and meanings as a list in Markdown."""
    return "\n".join(f"* `{code}`: {meaning}" for code, meaning in codes.items())
