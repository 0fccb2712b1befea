"""A server of the shape of Immich's machine learning: `POST /predict`, one picture a request.

`python -m bench.immich_server --onnx FILE` prints its port and serves until SIGTERM. Written for
this measurement after what Immich does by default on a CPU: one process, an event loop before a
pool of as many threads as cores; Pillow decodes and resizes every pixel; ONNX Runtime in fp32 with
two threads within an operator, one between them, an arena that grows as asked; one picture a run;
the embedding comes back as a JSON text. Immich has FastAPI and uvicorn in front: here it is
aiohttp, which inferd has anyway and which costs no more.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime
from aiohttp import web
from numpy.typing import NDArray
from PIL import Image

T = TypeVar("T")

MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)
STD = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)
MAX_BYTES = 64 * 1024 * 1024


class Model:
    """An ONNX image tower and what prepares pictures for it."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.enable_cpu_mem_arena = True
        options.inter_op_num_threads = 1
        options.intra_op_num_threads = 2
        arena = {"arena_extend_strategy": "kSameAsRequested"}
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], provider_options=[arena]
        )
        (self._input,) = self._session.get_inputs()
        self._side = int(self._input.shape[2])

    def embed(self, image: Image.Image) -> str:
        """Return the embedding as a JSON text; blocks."""
        pixels = (np.asarray(square(image, self._side), np.float32) / np.float32(255) - MEAN) / STD
        planes: NDArray[np.float32] = np.ascontiguousarray(pixels.transpose(2, 0, 1)[np.newaxis])
        (found,) = self._session.run(None, {self._input.name: planes})
        return json.dumps(found[0].tolist())


def read(data: bytes) -> Image.Image:
    """Decode every pixel; blocks."""
    image = Image.open(BytesIO(data))
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def square(image: Image.Image, side: int) -> Image.Image:
    """Return the centre at a short side of `side`; blocks."""
    scale = side / min(image.size)
    width, height = (max(side, int(length * scale)) for length in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    return resized.crop((left, top, left + side, top + side))


class Server:
    """The route and its threads."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._threads = ThreadPoolExecutor(os.cpu_count() or 4)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BYTES)
        app.add_routes([web.get("/ping", self._ping), web.post("/predict", self._predict)])
        return app

    async def _ping(self, _request: web.Request) -> web.Response:
        return web.Response(text="pong")

    async def _predict(self, request: web.Request) -> web.Response:
        form: dict[str, bytes] = {}
        async for part in await request.multipart():
            # Nested multiparts have no name of their own here.
            if name := getattr(part, "name", None):
                form[name] = bytes(await part.read())  # type: ignore[union-attr]
        try:
            json.loads(form["entries"])["clip"]["visual"]["modelName"]
        except (KeyError, TypeError, ValueError):
            return web.json_response({"detail": "Invalid request format."}, status=422)
        if "image" not in form:
            told = {"detail": "Either image or text must be provided"}
            return web.json_response(told, status=400)
        image = await self._run(read, form["image"])
        embedding = await self._run(self._model.embed, image)
        width, height = image.size
        return web.json_response({"clip": embedding, "imageHeight": height, "imageWidth": width})

    async def _run(self, work: Callable[[Any], T], argument: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, argument)


async def serve(path: Path) -> None:
    """Serve until cancelled; the port is printed once it is open."""
    runner = web.AppRunner(Server(Model(path)).app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
    await asyncio.Event().wait()


def main(argv: list[str]) -> int:
    """Serve."""
    parser = argparse.ArgumentParser(prog="python -m bench.immich_server", description=__doc__)
    parser.add_argument("--onnx", type=Path, required=True, help="an image tower")
    arguments = parser.parse_args(argv)
    asyncio.run(serve(arguments.onnx))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
