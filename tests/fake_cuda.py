"""torch with a GPU that is the CPU: streams are in order, graphs record and replay what was run.

Each call is bound to the signature of torch's own, so that what is called is what there is. A
capture records torch's operators, as a real one records kernels: a replay repeats those alone, on
the same memory, and nothing that Python did beside them. What would end a real capture, reading a
tensor or making one from numbers of the host, ends this one.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

FORBIDDEN = ("aten._local_scalar_dense", "aten.lift_fresh", "aten.item")


def bound(real: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Hold the calls of a stand-in to the signature of what it stands in for."""
    signature = inspect.signature(real)

    def decorate(fake: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            signature.bind(*args, **kwargs)
            return fake(*args, **kwargs)

        return call

    return decorate


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's base is untyped
    """Notes the operators that run, with what they were given and where their results are."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ran: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith(FORBIDDEN):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        found = func(*args, **(kwargs or {}))
        self.ran.append((func, args, kwargs or {}, found))
        return found


class Event:
    """Counts how often it was recorded."""

    def __init__(self, cuda: "Cuda", *args: Any, **kwargs: Any) -> None:
        inspect.signature(torch.cuda.Event.__new__).bind(torch.cuda.Event, *args, **kwargs)
        self._cuda = cuda
        self._records = 0

    @bound(torch.cuda.Event.record)
    def record(self, stream: Any = None) -> None:
        assert isinstance(stream, Stream)
        self._records += 1
        self._cuda.log.append(f"record {stream.name}")

    @bound(torch.cuda.Event.synchronize)
    def synchronize(self) -> None:
        self._cuda.log.append("synchronize" if self._records else "synchronize nothing")


class Stream:
    """Runs what it is given at once, as one that nobody else keeps waiting may."""

    def __init__(self, cuda: "Cuda", *args: Any, **kwargs: Any) -> None:
        inspect.signature(torch.cuda.Stream.__new__).bind(torch.cuda.Stream, *args, **kwargs)
        self._cuda = cuda
        self.name = f"s{cuda.streams}"
        cuda.streams += 1

    @bound(torch.cuda.Stream.wait_event)
    def wait_event(self, event: Any) -> None:
        assert isinstance(event, Event)
        self._cuda.log.append(f"{self.name} waits for an event")

    @bound(torch.cuda.Stream.wait_stream)
    def wait_stream(self, stream: Any) -> None:
        assert isinstance(stream, Stream)
        self._cuda.log.append(f"{self.name} waits for {stream.name}")


class Graph:
    """Repeats what was recorded, in the memory that it was recorded in."""

    def __init__(self, cuda: "Cuda") -> None:
        self._cuda = cuda
        self.recorder = Recorder()
        self.is_captured = False

    @bound(torch.cuda.CUDAGraph.replay)
    def replay(self) -> None:
        assert self.is_captured, "replayed before it was captured, or after its end"
        assert torch.is_inference_mode_enabled()
        self._cuda.replays += 1
        for func, args, kwargs, found in self.recorder.ran:
            again = func(*args, **kwargs)
            is_new = isinstance(found, torch.Tensor) and found.data_ptr() != again.data_ptr()
            if is_new:
                found.copy_(again.mul(-1) if self._cuda.spoils else again)

    @bound(torch.cuda.CUDAGraph.reset)
    def reset(self) -> None:
        self._cuda.resets += 1
        self.is_captured = False
        self.recorder.ran.clear()


class Cuda:
    """What stands in for torch.cuda; `log` tells what was done, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.captures = self.replays = self.resets = self.streams = 0
        self.fails: Callable[[], None] = lambda: None
        """Called in a capture."""
        self.spoils = False
        """Whether replays give something else than what was captured."""
        self.Event = partial(Event, self)
        self.Stream = partial(Stream, self)
        self.CUDAGraph = partial(Graph, self)
        self._default = Stream(self)

    @contextmanager
    def graph(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        inspect.signature(torch.cuda.graph).bind(*args, **kwargs)
        graph = args[0]
        assert kwargs["stream"] is not self._default, "no capture on the default stream"
        self.captures += 1
        self.log.append("capture")
        with graph.recorder:
            self.fails()
            yield
        graph.is_captured = True

    @contextmanager
    def stream(self, *args: Any) -> Iterator[None]:
        inspect.signature(torch.cuda.stream).bind(*args)
        self.log.append(f"on {args[0].name}")
        yield

    @contextmanager
    def device(self, *args: Any) -> Iterator[None]:
        inspect.signature(torch.cuda.device).bind(*args)
        yield

    def current_stream(self, *args: Any) -> Any:
        inspect.signature(torch.cuda.current_stream).bind(*args)
        return self._default

    def graph_pool_handle(self, *args: Any) -> Any:
        inspect.signature(torch.cuda.graph_pool_handle).bind(*args)
        return (0, 1)


class Torch:
    """The imported library, with such a GPU."""

    def __init__(self) -> None:
        self.cuda = Cuda()
        self.pinned = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, *args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        self.pinned += pin_memory
        return torch.empty(*args, **{**kwargs, "device": "cpu"})

    def zeros(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.zeros(*args, **{**kwargs, "device": "cpu"})
