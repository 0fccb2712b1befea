"""Recognises vendors' out-of-memory errors, and gives unused memory back to the system.

No vendor is imported here: their errors are known by name and by what they say.
"""

import contextlib
import ctypes
import re
from collections.abc import Iterator

from daemon.errors import OutOfMemoryError

HOST = "cpu"
MOST_WORDS = 200
"""How much of a vendor's message goes into ours; torch's goes on with advice."""

_HOST_WORDS = re.compile(
    r"DefaultCPUAllocator|std::bad_alloc|bad allocation|Insufficient memory|Cannot allocate memory|"
    r"Failed to allocate \d+ bytes of memory"
)
_DEVICE_WORDS = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|CUDA failure 2\b|cudaErrorMemoryAllocation|"
    r"CU(BLAS|DNN)_STATUS_(ALLOC_FAILED|INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED)"
)
_EITHER_WORDS = re.compile(r"Failed to allocate memory|BFCArena")
"""ONNX Runtime's arena says the same whatever it is an arena of."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of malloc.h."""
_LARGEST_KEPT_BYTES = 32 << 20
"""What glibc's own rule rises to after one free of so much."""


@contextlib.contextmanager
def memory_watched(name: str, device: str) -> Iterator[None]:
    """Turn a vendor's out-of-memory error into OutOfMemoryError.

    Args:
        name: of the model, for the message.
        device: where it runs; an error that is plainly the host's says `cpu` all the same.

    Raises:
        OutOfMemoryError: memory ran out; all else passes as it came.
    """
    try:
        yield
    except OutOfMemoryError:
        raise
    except Exception as error:
        # The vendor's error gets no name that lasts: as a cycle with its frames, and all that
        # they hold, it would live until the next garbage collection.
        ours = _translated(error, name, device)
        if ours is None:
            raise
        raise ours from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a vendor's error, or what caused it, says that memory ran out."""
    return _memory_error(error) is not None


def keep_freed() -> None:
    """Have glibc keep freed memory for the next allocation, up to some 64 MB a thread.

    By itself it gives what a layer of a model left back to the system, which clears it for the
    next: 360 page faults a picture. `trim` gives all of it back.
    """
    # Only glibc has mallopt.
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST_KEPT_BYTES)


def trim() -> None:
    """Give freed memory back to the system: glibc keeps 260 MB of what a loading left."""
    # Only glibc has malloc_trim; elsewhere nothing needs to be done.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _translated(error: Exception, name: str, device: str) -> OutOfMemoryError | None:
    found = _memory_error(error)
    if found is None:
        return None
    words = str(found).partition("\n")[0][:MOST_WORDS] or type(found).__name__
    where = HOST if _is_of_host(found) else device
    return OutOfMemoryError(f"{name}: no memory left on {where}: {words}", device=where)


def _memory_error(error: BaseException | None) -> BaseException | None:
    """Return the first of an error and its causes that says so."""
    while error is not None:
        # torch.OutOfMemoryError, known by its name.
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return error
        text = str(error)
        if any(words.search(text) for words in (_HOST_WORDS, _DEVICE_WORDS, _EITHER_WORDS)):
            return error
        error = error.__cause__
    return None


def _is_of_host(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    text = str(error)
    return bool(_HOST_WORDS.search(text)) and not _DEVICE_WORDS.search(text)
