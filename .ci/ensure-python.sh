#!/bin/sh
# Print a Python that can make our virtual environment: the one in PYTHON, else the first that fits.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

fits() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null
}

python=
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14}; do
    if fits "$candidate"; then
        python=$candidate
        break
    fi
done

if [ -z "$python" ]; then
    if [ -z "${PYTHON:-}" ] && ! command -v python3 >/dev/null; then
        "$here/apt-install.sh" "Python" python3 python3-venv
        if fits python3; then
            echo python3
            exit 0
        fi
    fi
    echo "error: inferd needs Python 3.11 to 3.14, and ${PYTHON:-python3} is $(
        "${PYTHON:-python3}" --version 2>/dev/null || echo "not there"
    ). Name another one: make setup PYTHON=/path/to/python3.13" >&2
    exit 1
fi

# Debian and Ubuntu keep venv's other half, ensurepip, in a package of its own.
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$here/apt-install.sh" "the venv module of Python $version" "python$version-venv"
fi
echo "$python"
