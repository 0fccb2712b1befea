#!/bin/sh
# Make sure that the mosquitto broker is installed (Debian puts it outside a user's PATH).
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
PATH=$PATH:/usr/local/sbin:/usr/sbin

command -v mosquitto >/dev/null || "$here/apt-install.sh" "the MQTT broker mosquitto" mosquitto
