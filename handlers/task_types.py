"""Which tasks the configuration asks for, and the error of asking for others."""

from daemon.errors import ConfigError, NotFoundError
from daemon.jobs import TaskType
from daemon.settings import Settings


def configured_task_types(settings: Settings) -> list[TaskType]:
    """Return the tasks to be done, each once, in the order of `TaskType`.

    Raises:
        ConfigError: the setting lists none, or one that does not exist.
    """
    names = [name.strip() for name in settings.worker.task_types.split(",") if name.strip()]
    unknown = sorted(set(names) - set(TaskType))
    if unknown or not names:
        raise ConfigError(
            f"INFERD_WORKER__TASK_TYPES={settings.worker.task_types}: it lists some of "
            + ", ".join(TaskType)
        )
    return [task_type for task_type in TaskType if task_type in names]


def not_configured(task_type: str) -> NotFoundError:
    """Return the error of asking for what a task type that does not run here would do."""
    return NotFoundError(
        f"{task_type} does not run here (INFERD_WORKER__TASK_TYPES)", code="not_configured"
    )
