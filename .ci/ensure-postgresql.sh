#!/bin/sh
# Make sure that PostgreSQL's server is installed (Debian puts it outside every PATH); the tests start
# one of their own with it, and no other is touched.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

for found in /usr/lib/postgresql/*/bin/initdb; do
    [ -x "$found" ] && exit 0
done
command -v initdb >/dev/null && exit 0
# Installed as a service it would start a cluster of its own, which nobody asked for.
export RUNLEVEL=1
"$here/apt-install.sh" "the PostgreSQL server" postgresql
