"""Finds the faces in a picture with inferd, prints the job, and draws them with --save.

python demos/inferences/face_detection_client.py photo.jpg --media-store localhost:8000
"""

import sys
from pathlib import Path

if not __package__:
    # Run as a script: the packages lie two folders up.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from demos.inferences import command


def main(arguments: list[str] | None = None) -> int:
    """Run the client; return its exit code."""
    return command.main(
        "face_detection",
        name="face_detection_client.py",
        description="Upload a picture, let inferd find the faces in it, print the job.",
        arguments=arguments,
        can_draw=True,
    )


if __name__ == "__main__":
    sys.exit(main())
