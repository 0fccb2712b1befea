"""The sub-commands of `python -m daemon`, one file each: `main(argv, *, prog)` gives the exit code.

A command reads its arguments, says what came of it, and leaves the work to the parts: the client
library for whatever a running daemon does, `handlers` for models and vectors. Heavy libraries are
imported where they are used, so that a command starts at once.
"""
