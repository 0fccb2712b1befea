"""Where a store's demo keeps its vectors: a temporary folder, or a server's collection of its own.

Random vectors must never lie among a model's: on a server a demo works in `..._demo`.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import TypeVar

from daemon.errors import InferdError
from daemon.settings import Settings
from handlers.vectors.qdrant_store import QdrantStore

StoreT = TypeVar("StoreT", bound=QdrantStore)


def run_demo(
    store: type[StoreT], show: Callable[[StoreT], None], arguments: Sequence[str], *, prog: str
) -> int:
    """Call `show` with an open store as the command line says; return the exit code.

    Args:
        store: the class to show; with `--url` its collection is named `..._demo`.
        show: deletes what it stores, so that it can be done twice on one server.
        arguments: of the command line.
        prog: names the command in its help.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Store a few random vectors, find them again, delete them. They are kept in "
        "a temporary folder, unless a server is named.",
    )
    parser.add_argument(
        "--url", help="a Qdrant server; its key is INFERD_QDRANT__API_KEY, its collection ..._demo"
    )
    url = parser.parse_args(arguments).url
    demo_store = type(store.__name__, (store,), {"collection": f"{store.collection}_demo"})
    try:
        if url is None:
            with tempfile.TemporaryDirectory() as folder, demo_store(path=folder) as opened:
                show(opened)
        else:
            secret = Settings.from_env(os.environ).qdrant.api_key
            key = secret.get_secret_value() if secret else None
            with demo_store(url=url, api_key=key) as opened:
                show(opened)
                say(f"the collection {opened.collection} stays on the server, empty")
    except InferdError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def say(line: str) -> None:
    """Print one line."""
    sys.stdout.write(f"{line}\n")
