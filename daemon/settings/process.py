"""Groups for the process itself: how many jobs run and how they end, and what is logged."""

from typing import Literal

from pydantic import Field

from daemon.cores import usable_cores
from daemon.settings.group import Group

IN_FLIGHT_A_CORE = 16
"""Two batches of the model: one that runs, and one that is fetched and decoded meanwhile."""
LEAST_IN_FLIGHT = 32


class WorkerSettings(Group):
    """How many jobs run and how they end."""

    task_types: str = Field(
        "image_embedding,face_detection,face_embedding",
        description="comma-separated task types this daemon works on",
    )
    max_in_flight: int = Field(
        0, ge=0, le=4096, description="leased jobs per task type; 0: 16 a core, at least 32"
    )
    poll_seconds: float = Field(1, gt=0, description="safety net behind wake-ups")
    job_timeout_seconds: float = Field(300, gt=0, description="longest run of one attempt")
    stall_seconds: float = Field(
        120,
        ge=0,
        description="a model call that hangs for so long is told, and ends the daemon after twice"
        " that; 0 = never",
    )
    shutdown_grace_seconds: float = Field(
        10, ge=0, description="time for running jobs at SIGTERM before they are given back"
    )

    @property
    def in_flight(self) -> int:
        """How many jobs of a task type are leased at a time."""
        return self.max_in_flight or max(LEAST_IN_FLIGHT, IN_FLIGHT_A_CORE * usable_cores())


class LogSettings(Group):
    """What is written to standard error."""

    format: Literal["auto", "json", "text"] = Field(
        "auto", description="auto: text on a terminal, else one JSON object a line"
    )
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="lowest level")
