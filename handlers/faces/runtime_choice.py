"""RuntimeChoice: what runs one model, by INFERD_FACES__RUNTIME and a trial at its first load."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from daemon.errors import ConfigError
from daemon.settings import FacesSettings
from handlers.faces import batches as face_batches
from handlers.faces import openvino_session, runtimes
from handlers.faces.batches import Answers
from handlers.faces.openvino_session import OpenVinoSession
from handlers.faces.runtimes import Runtime, Trial
from handlers.inference import Pixels
from handlers.lanes.memory import HOST

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Probe:
    """What a kind of model is tried on."""

    side: tuple[int, int]
    """Height and width of what it takes."""
    pictures: Callable[[], Sequence[Pixels]]
    """Makes some of that size, with real faces."""
    fault: Callable[[Sequence[Answers], Sequence[Answers]], str]
    """Says what is wrong with another runtime's answers; see `agreement`."""


class RuntimeChoice:
    """Chooses between ONNX Runtime and OpenVINO, by a trial at the first load on the CPU."""

    def __init__(self, faces: FacesSettings, kind: str) -> None:
        """Take the settings, and what names the model in errors."""
        self._faces = faces
        self._kind = kind
        self._settled: str | None = None
        """Precision in which OpenVINO won the trial, empty where it did not."""

    @property
    def _must(self) -> bool:
        return self._faces.runtime == "openvino"

    def check_installed(self) -> None:
        """Refuse a runtime that is demanded and absent.

        Raises:
            ConfigError: that is so.
        """
        if self._must:
            openvino_session.require()

    def make(
        self,
        model: Any,
        usual: Runtime,
        path: Path,
        *,
        device: str,
        run: Callable[[list[Pixels]], Answers],
        probe: Probe,
    ) -> Runtime:
        """Return what runs the model, having given it the session of that.

        Args:
            model: insightface's, with ONNX Runtime's session for one at a time.
            usual: ONNX Runtime.
            path: of the model's file.
            device: where it runs.
            run: what runs pictures on the model's session, outputs [n, ...].
            probe: what it is tried on.

        Raises:
            ConfigError: OpenVINO is demanded, and cannot be used.
            Exception: OpenVINO is demanded, and fails now, in its own words.
        """
        if not self._may_differ(device):
            return usual
        passes = face_batches.passes(self._faces.passes, device)

        def opened(precision: str) -> Runtime:
            session = partial(
                OpenVinoSession, path, precision=precision, side=probe.side, passes=passes
            )
            return Runtime(
                session=session(count=1),
                several=partial(session, count=None),
                precision=precision,
                name=openvino_session.told(),
            )

        def run_on(session: Any, picture: Pixels) -> Answers:
            model.session = session
            return run([picture])

        if self._settled is None:
            found = self._tried(
                usual,
                opened,
                lambda: Trial(run_on, probe.pictures(), probe.fault, passes=passes),
                path.name,
            )
            self._settled = found.precision if found.name else ""
        else:
            # Two loads of one process must not run differently.
            found = opened(self._settled) if self._settled else usual
        model.session = found.session
        return found

    def _may_differ(self, device: str) -> bool:
        if self._must and device != HOST:
            raise ConfigError(
                f"INFERD_FACES__RUNTIME=openvino: {self._kind} runs on {device}, and OpenVINO "
                "here on the CPU only; set INFERD_DEVICE=cpu, or INFERD_FACES__RUNTIME=auto"
            )
        if self._faces.runtime == "auto":
            return device == HOST and openvino_session.is_installed()
        return self._must

    def _tried(
        self,
        usual: Runtime,
        opened: Callable[[str], Runtime],
        trial: Callable[[], Trial],
        name: str,
    ) -> Runtime:
        try:
            # What is quantised in the file has one arithmetic only.
            quantised = usual.precision == "int8"
            precisions = ["int8"] if quantised else openvino_session.precisions()
            others = {each: partial(opened, each) for each in precisions}
            return runtimes.chosen(usual, others, trial(), what=name, must=self._must)
        except ConfigError as error:
            if self._must:
                raise
            log.warning("%s stays with ONNX Runtime: %s", name, error.message)
            return usual
