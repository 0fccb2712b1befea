#!/bin/sh
# Ask the advisory database about every pinned version: audit.sh VENV (`make audit`). Needs the network:
# pip-audit itself comes from the registry, and its answers from a service. Installs nothing of the lists.
set -eu

lists=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"$1/bin/python" -m venv "$scratch/venv"
"$scratch/venv/bin/pip" --disable-pip-version-check install -q pip-audit || {
    echo "error: pip-audit cannot be installed: make audit needs the network" >&2
    exit 1
}
# The lists are whole and hashed: nothing is resolved. --strict: what cannot be looked up is no pass.
# One list at a time, since cpu and gpu exclude each other.
failed=0
for name in base torch cpu gpu dev; do
    # An include would be read twice.
    grep -v '^-r ' "$lists/$name.txt" >"$scratch/$name.txt"
    echo "== requirements/$name.txt"
    "$scratch/venv/bin/pip-audit" --strict --disable-pip --require-hashes --progress-spinner off \
        -r "$scratch/$name.txt" || failed=1
done
exit "$failed"
