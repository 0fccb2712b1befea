"""Turns a picture into a vector with inferd, and prints the job.

python demos/inferences/image_embedding_client.py photo.jpg --media-store localhost:8000
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
        "image_embedding",
        name="image_embedding_client.py",
        description="Upload a picture, let inferd turn it into a vector, print the job.",
        arguments=arguments,
    )


if __name__ == "__main__":
    sys.exit(main())
