"""The exit codes that all command lines share, and which error gets which."""

from demos.client.errors import (
    ClientError,
    NoAnswerError,
    RejectedError,
    UnreachableError,
    UploadRefusedError,
)

COMPLETED = 0
JOB_FAILED = 1
USAGE = 2
UNREACHABLE = 3
TIMED_OUT = 4
REJECTED = 5
INTERRUPTED = 130


def exit_code(error: ClientError) -> int:
    """Return the code that tells of an error."""
    match error:
        case RejectedError() | UploadRefusedError():
            return REJECTED
        case NoAnswerError():
            return TIMED_OUT
        case UnreachableError():
            return UNREACHABLE
        case _:
            return JOB_FAILED
