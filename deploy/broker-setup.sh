#!/bin/sh
# Make the broker's files for compose.yaml: broker-setup.sh SOURCE TARGET. SOURCE is the folder
# mosquitto/ of this repository. Users that are there keep their passwords. Runs in mosquitto's image,
# so it needs no more than that has: a POSIX shell, busybox and mosquitto_passwd.
set -eu
umask 077
source=$1
target=$2
users="inferd client"
PATH=$PATH:/usr/local/sbin:/usr/sbin

for user in $users; do
    if [ -e "$target/$user.url" ]; then
        continue
    fi
    password=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
    printf '%s:%s\n' "$user" "$password" >"$target/new"
    mosquitto_passwd -U "$target/new"
    # One that a run which was cut short left behind has no URL, so nobody knows it.
    if [ -e "$target/inferd.passwd" ]; then
        grep -v "^$user:" "$target/inferd.passwd" >>"$target/new" || true
    fi
    mv "$target/new" "$target/inferd.passwd"
    printf 'mqtt://%s:%s@mosquitto:1883\n' "$user" "$password" >"$target/new"
    mv "$target/new" "$target/$user.url"
    echo "made user $user"
done

cp "$source/acl" "$target/inferd.acl"
# In a container the listener is for the other containers; compose.yaml publishes it on this machine.
sed -e 's|^listener 1883 127.0.0.1|listener 1883|' \
    -e "s|/etc/mosquitto/|$target/|" \
    -e 's|/var/lib/mosquitto/|/mosquitto/data/|' "$source/mosquitto.conf" >"$target/mosquitto.conf"

# Who may read what: the broker its files, the daemon its password; both find them.
chmod 755 "$target"
if [ "$(id -u)" -eq 0 ]; then
    chown 1883:1883 "$target/inferd.passwd" "$target/inferd.acl" "$target/mosquitto.conf"
    chown 10001:10001 "$target/inferd.url"
fi
