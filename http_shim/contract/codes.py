"""Every code that REST answers, and what it means."""

from daemon.wire.codes import FAILURES, REFUSALS

OWN = {
    "bad_request": "The body is not framed as HTTP demands.",
    "unauthorized": "No good token came with the request.",
    "forbidden": "The token does not grant this.",
    "not_found": "There is no such thing at this path.",
    "not_configured": "This daemon does not run the task type whose vectors these are.",
    "model_not_found": "Another model than the one that runs was asked for.",
    "model_unusable": "There is no such model, or its weights cannot be used; `detail` says why.",
    "model_in_use": "The collection is of this model already.",
    "model_change_running": "The collection changes to another model already.",
    "model_kept": "The model before the present one is kept still: drop it first.",
    "model_change_failures": "More pictures cannot be embedded than the change may do without.",
    "no_model_change": "No change of the model is under way.",
    "nothing_to_roll_back": "No model of before is kept, or a change is under way.",
    "nothing_to_drop": "No model of before is kept.",
    "changed_meanwhile": "Somebody changed it since you looked (`seen`), or at the same moment.",
    "vector_not_found": "No vector is stored for this.",
    "vectors_not_embedded": "The vectors are a Qdrant server's, or this daemon keeps none.",
    "no_face": "No face was found in the picture, or none at this place.",
    "bad_text": "The text cannot be read.",
    "method_not_allowed": "This path has other methods; see Allow.",
    "timeout": "It took too long.",
    "too_large": "The body is larger than this server reads.",
    "unsupported_media_type": "The body is packed, or of a kind that is not taken here.",
    "draining": "The daemon is stopping; ask another one, or later.",
    "storage": "The queue's database failed.",
    "auth_unavailable": "The issuer's keys are not there yet.",
    "busy": "Too much is asked for at once; ask again.",
    "internal": "A fault of the daemon; its log has the details.",
}
"""What REST alone answers, beside MQTT's refusals and a failed job's codes."""

ERRORS = {**FAILURES, **REFUSALS, **OWN}
