#!/bin/sh
# apt-install.sh WHAT PACKAGE...: install Debian packages where that needs no question, else print the
# one line to type and fail. WHAT says in words what is missing.
set -eu

what=$1
shift

if command -v apt-get >/dev/null; then
    if [ "$(id -u)" -eq 0 ]; then
        as_root=
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        as_root="sudo -n"
    else
        echo "$what is missing. Type this, then try again:" >&2
        echo "    sudo apt-get update && sudo apt-get install -y $*" >&2
        exit 1
    fi
    echo "== installing $*" >&2
    # shellcheck disable=SC2086  # as_root is a command and its option, or nothing
    {
        $as_root apt-get update -qq
        # sudo passes nothing of our environment on.
        $as_root env DEBIAN_FRONTEND=noninteractive ${RUNLEVEL:+"RUNLEVEL=$RUNLEVEL"} apt-get install -y -qq --no-install-recommends "$@"
    } >&2
elif command -v brew >/dev/null; then
    echo "$what is missing. Type this, then try again:" >&2
    echo "    brew install $*" >&2
    exit 1
else
    echo "$what is missing: install it with your system's package manager, then try again" >&2
    exit 1
fi
