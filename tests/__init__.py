"""The suite. This file must exist: gmqtt's wheel installs a top-level `tests` package."""
