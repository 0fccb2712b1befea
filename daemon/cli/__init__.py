"""The sub-commands of `python -m daemon`, one file each: `main(argv, *, prog)` gives the exit code.

A command reads its arguments, says what came of it, and leaves the work to the parts: the client
library for whatever a running daemon does, `handlers` for models and vectors. Heavy libraries are
imported where they are used, so that a command starts at once. Each module also has
`make_parser(prog, settings)`, from which shell completion and the tests of --help are made.
audit_steps and backup_vectors are no commands, but what those two read from.
"""

COMMANDS = {
    "serve": ("daemon.cli.serve", "take requests and do them, until SIGTERM (the default)"),
    "doctor": ("daemon.cli.doctor", "look at all that inferd depends on; say what to mend"),
    "models": (
        "daemon.cli.models",
        "which model files are used; download absent ones; change the model",
    ),
    "migrate": ("daemon.cli.migrate", "bring the queue's file to this version's schema"),
    "backup": ("daemon.cli.backup", "write all that the daemon knows into one file"),
    "restore": ("daemon.cli.restore", "bring back what backup wrote"),
    "schemas": ("daemon.cli.schemas", "print the contracts: OpenAPI of REST, AsyncAPI of MQTT"),
    "submit": ("daemon.cli.submit", "ask the running daemon for jobs: ids, lists or folders"),
    "search": ("daemon.cli.search", "find pictures and faces by picture, id, text or face"),
    "faces": ("daemon.cli.faces", "show the faces of a picture, and which are stored"),
    "jobs": ("daemon.cli.jobs", "list, show, retry and cancel jobs"),
    "workers": ("daemon.cli.workers", "show all daemons at the broker, and what each does"),
    "delete": ("daemon.cli.delete", "remove what is known of pictures: vectors and jobs"),
    "stored": ("daemon.cli.stored", "list what is stored, and what is stored with it"),
    "audit": ("daemon.cli.audit", "compare jobs with stored vectors; mend what does not fit"),
    "completion": ("daemon.cli.completion", "print a script by which your shell completes words"),
    "demo": ("demos.quickstart", "start all parts here and send real pictures through"),
    "pictures": ("demos.pictures", "start all parts here and make a folder of yours searchable"),
}
"""By name: the module whose `main(argv, prog)` runs it, and what it does. Only the module of the
command that was asked for is imported, so that each starts as fast as its own imports allow."""
