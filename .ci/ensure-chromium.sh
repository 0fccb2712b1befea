#!/bin/sh
# Make sure that Chromium is installed, in which the tests of the console click.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

command -v chromium >/dev/null || command -v chromium-browser >/dev/null ||
    command -v google-chrome >/dev/null ||
    "$here/apt-install.sh" "the browser Chromium" chromium
