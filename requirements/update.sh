#!/bin/sh
# Resolve pyproject.toml again and rewrite the lists in this folder (`make lock`). Needs the network.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"${1:-python3}" -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install -q uv packaging
"$scratch/venv/bin/python" "$here/update.py"
