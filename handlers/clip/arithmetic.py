"""Arithmetic: gives a tower on its device the precision it runs in: the asked one, or the best."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from daemon.errors import ConfigError
from handlers.clip.precision import EXACT, Verdict, judge, measure
from handlers.clip.vendors import load_vendors, reduced_precision
from handlers.inference import Vector
from handlers.lanes.memory import HOST, is_out_of_memory, trim

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

AUTO = "auto"


class Arithmetic:
    """Of one tower; it remembers what it measured, so that a reload runs as the load did."""

    def __init__(self, name: str, asked: str, batch_size: int) -> None:
        """Take what is asked for.

        Args:
            name: of the tower and its model, for the log.
            asked: fp32, bf16 or auto.
            batch_size: of a full pass, to calibrate with.
        """
        self.batch_size = batch_size
        self._name = name
        self._asked = asked
        self._measured: dict[str, str] = {}
        """What a calibration found best, by device."""

    def known(self, device: str) -> str | None:
        """Return the precision that a device will run in; None where it is still to be measured."""
        if self._asked != AUTO:
            return self._asked
        return EXACT if reduced_precision(device) is None else self._measured.get(device)

    def settle(
        self, tower: "torch.nn.Module", device: str, run: Callable[[int], "torch.Tensor"]
    ) -> str:
        """Turn a tower in fp32 to the precision that it is to run in; return which.

        Args:
            tower: on its device already.
            device: `cpu` or `cuda:n`.
            run: a pass over so many of up to `batch_size` inputs, the same ones each time.

        Raises:
            ConfigError: bf16 is asked for, and the tower is not one of our layers.
            RuntimeError: the device's own.
        """
        if not _is_ours(tower):
            if self._asked not in (AUTO, EXACT):
                raise ConfigError(
                    f"INFERD_CLIP__PRECISION={self._asked}: {self._name} runs in {EXACT} only"
                )
            return EXACT
        precision = self.known(device)
        if precision is None:
            precision = self._calibrate(tower, device, run)
        elif precision != EXACT:
            if reduced_precision(device) is None:
                log.warning(
                    "%s runs in %s as asked for; %s has no instructions for it, so %s is faster",
                    self._name,
                    precision,
                    device,
                    EXACT,
                )
            _reduce(tower, precision, device)
        return precision

    def _calibrate(
        self, tower: "torch.nn.Module", device: str, run: Callable[[int], "torch.Tensor"]
    ) -> str:
        name = reduced_precision(device) or EXACT

        def vectors(count: int) -> Vector:
            found: Vector = run(count).float().cpu().numpy()
            return found

        size = self.batch_size
        while True:
            try:
                exact = measure(vectors, size)
                break
            except RuntimeError as error:
                # A full batch that does not fit is the memory ladder's business, not the load's.
                if size == 1 or not is_out_of_memory(error):
                    raise
            size //= 2
        saved = _reduce(tower, name, device)
        try:
            verdict = judge(exact, measure(vectors, exact.batch_size), name)
        except RuntimeError as error:
            verdict = Verdict(is_reduced=False, why=f"{name} does not run: {error}")
        if not verdict.is_reduced:
            _reduction().unpack(tower)
            _reduction().restore(saved)
        del saved
        trim()
        chosen = name if verdict.is_reduced else EXACT
        self._measured[device] = chosen
        log.info("%s runs in %s on %s: %s", self._name, chosen, device, verdict.why)
        return chosen


def to_device(tower: "torch.nn.Module", device: str) -> None:
    """Move a tower with all of its weights, in the layout that is fastest there.

    Raises:
        RuntimeError: torch's own.
    """
    # Packed matrices are the processor's own.
    _reduction().unpack(tower)
    tower.to(device)
    if device == HOST:
        _reduction().pack(tower)


def precision_of(tower: "torch.nn.Module") -> str:
    """Return the precision of a tower's weights: the least that one of them has."""
    found = {each.dtype for each in tower.parameters()}
    return next((name for name, dtype in _dtypes().items() if dtype in found), EXACT)


def _dtypes() -> "dict[str, torch.dtype]":
    torch = load_vendors().torch
    return {"bf16": torch.bfloat16, "fp16": torch.float16}


def _reduce(tower: "torch.nn.Module", precision: str, device: str) -> Any:
    reduction = _reduction()
    saved = reduction.reduce(tower, _dtypes()[precision])
    if device == HOST:
        try:
            reduction.pack(tower)
        except BaseException:
            # Memory ran out, and the tower is to go on as it was: maybe where it came from.
            reduction.restore(saved)
            raise
    return saved


def _is_ours(tower: "torch.nn.Module") -> bool:
    load_vendors()
    from handlers.clip.layers import (  # noqa: PLC0415 - they need torch, which load_vendors imports
        ImageTower,
        TextTower,
    )

    return isinstance(tower, ImageTower | TextTower)


def _reduction() -> Any:
    load_vendors()
    from handlers.clip import reduction as clip_reduction  # noqa: PLC0415 - as above

    return clip_reduction
