"""`doctor`: looks at everything inferd depends on and says what is wrong, and the mend."""

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from daemon.command_line import Parser
from daemon.doctor.checks import all_checks
from daemon.doctor.facts import begin
from daemon.doctor.findings import Finding, FindingRedactor, Verdict, fail, worst
from daemon.doctor.process import environ_of, folder_of
from daemon.doctor.runner import run_checks
from daemon.errors import ConfigError
from daemon.identity import own_version
from daemon.logs import escaped
from daemon.settings import Settings

EXIT_FAIL = 1
EXIT_CONFIG = 78
_MARKS = {Verdict.OK: "ok", Verdict.WARN: "warn", Verdict.FAIL: "FAIL"}
_INDENT = " " * 21
_EPILOG = """\
exit codes:
  0  all is well, or there are warnings only
  1  something fails
  2  usage
  78  the configuration is wrong

examples:
  %(prog)s
  %(prog)s --quick --json
  %(prog)s --process 4711
"""


class _ProcessError(ConfigError):
    """Settings cannot be gone by as the process that was named does."""

    def __init__(self, pid: int, why: str, mend: str) -> None:
        super().__init__(f"--process {pid}: {why}")
        self.mend = mend


def main(argv: Sequence[str], *, prog: str) -> int:
    """Run every check; return 0, or 1 where one fails, 78 where the configuration is wrong."""
    arguments = make_parser(prog).parse_args(argv)
    report = _Report(sys.stdout, is_json=arguments.json)
    # Its findings say what the parts would log; libraries' chatter is not the report.
    logging.getLogger().addHandler(logging.NullHandler())
    with contextlib.redirect_stdout(sys.stderr):
        try:
            if arguments.process is not None:
                _stand_in_for(arguments.process)
            settings = Settings.from_env(os.environ)
            facts = begin(settings, is_quick=arguments.quick)
        except ConfigError as error:
            mend = "set or unset the names above; docs/configuration.md has them all"
            if isinstance(error, _ProcessError):
                mend = error.mend
            report.add(fail("configuration", "config", error.message, mend))
            return report.end(EXIT_CONFIG)
        redact = FindingRedactor(settings)
        is_whole = run_checks(all_checks(), facts, lambda finding: report.add(redact(finding)))
    code = report.end(EXIT_FAIL if worst(report.findings) is Verdict.FAIL else 0)
    if not is_whole:
        # A thread hangs in a library: at a tidy exit it could crash the process, or hold it up.
        sys.stderr.flush()
        os._exit(code)
    return code


def make_parser(prog: str, _settings: Settings | None = None) -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = Parser(
        prog=prog,
        description="Look at everything inferd depends on, with the settings that the daemon would"
        " use, and say what is wrong and how to mend it. Nothing is changed, and a running daemon"
        " is not disturbed.",
        epilog=_EPILOG,
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, at the end")
    parser.add_argument("--quick", action="store_true", help="find models, but do not load them")
    parser.add_argument(
        "--process",
        type=int,
        metavar="PID",
        help="by the settings that this daemon of yours was started with, here on Linux",
    )
    return parser


def _stand_in_for(pid: int) -> None:
    """Go on with the environment and the folder that another process was started with.

    Raises:
        _ProcessError: they cannot be read, or the folder is gone.
    """
    try:
        environ, folder = environ_of(pid), folder_of(pid)
    except OSError as error:
        why = "there is none" if isinstance(error, FileNotFoundError) else error.strerror
        raise _ProcessError(
            pid,
            f"its settings cannot be read: {why}",
            "name a daemon of yours; `doctor` without it says which one listens here",
        ) from error
    try:
        os.chdir(folder)
    except OSError as error:
        # As after an upgrade that put another folder in its place.
        raise _ProcessError(
            pid,
            f"the folder that it works in cannot be entered: {folder}: {error.strerror}",
            "restart it in a folder that stays",
        ) from error
    os.environ.clear()
    os.environ.update(environ)


def _tame(text: str) -> str:
    return f"\n{_INDENT}".join(map(escaped, text.split("\n")))


class _Report:
    """Prints findings as they come, or all of them as JSON."""

    def __init__(self, out: TextIO, *, is_json: bool) -> None:
        self._out = out
        self._is_json = is_json
        self.findings: list[Finding] = []

    def add(self, finding: Finding) -> None:
        """Take one finding."""
        self.findings.append(finding)
        if self._is_json:
            return
        # What servers said may hold what a terminal obeys.
        found = _tame(finding.found)
        lines = [f"{_MARKS[finding.verdict]:<5} {finding.part:<14} {found}"]
        if finding.mend:
            lines.append(f"{_INDENT}-> {_tame(finding.mend)}")
        self._write("\n".join(lines))

    def end(self, exit_code: int) -> int:
        """Say the sum of it; return the exit code."""
        counts = {
            verdict: sum(each.verdict is verdict for each in self.findings) for verdict in Verdict
        }
        if self._is_json:
            told = {
                "version": own_version(),
                "verdict": worst(self.findings).value,
                "exit_code": exit_code,
                "counts": {verdict.value: count for verdict, count in counts.items()},
                "findings": [finding.to_wire() for finding in self.findings],
            }
            self._write(json.dumps(told, indent=2))
        else:
            self._write(
                f"\n{counts[Verdict.OK]} ok, {counts[Verdict.WARN]} to know of,"
                f" {counts[Verdict.FAIL]} failing"
            )
        return exit_code

    def _write(self, text: str) -> None:
        self._out.write(f"{text}\n")
        self._out.flush()
