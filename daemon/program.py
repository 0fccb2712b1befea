"""How inferd was called, so that the commands it suggests can be typed as they stand."""

import sys
from pathlib import Path

NAME = "inferd"
"""The installed command, which works from any folder."""


def program() -> str:
    """Return `inferd` where that was called, else the words that work in inferd's folder."""
    return NAME if Path(sys.argv[0]).name == NAME else "python -m daemon"
