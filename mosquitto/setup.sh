#!/bin/sh
# Make all that a broker for inferd needs in one folder: users with passwords, the acl, a configuration
# that starts as it is, and with --tls a private CA with server and client certificates, for testing.
# Nothing that is there is ever overwritten: run it again to add users or certificates.
set -eu
umask 077

usage() {
    cat <<'USAGE'
usage: mosquitto/setup.sh [--tls HOST]... [--require-certificate] FOLDER [USER]...

  --tls HOST              also listen on 8883 with TLS, by a certificate for this host name or
                          address of the broker, of a private CA made here; may be repeated
  --require-certificate   with --tls: only clients with a certificate of that CA are let in
  FOLDER                  made where it is not there
  USER                    inferd (the daemon) is always made; ops may read all,
                          librarian may delete pictures; others are clients

Then: mosquitto -c FOLDER/mosquitto.conf
USAGE
}

fail() {
    echo "setup.sh: $1" >&2
    exit "${2:-1}"
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
PATH=$PATH:/usr/local/sbin:/usr/sbin
hosts=
first=
require=
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage && exit 0 ;;
        --tls)
            [ $# -ge 2 ] || fail "--tls needs the broker's host name or address" 64
            case $2 in
                '' | -* | *[!A-Za-z0-9.:-]*) fail "'$2' is no host name or address" 64 ;;
            esac
            hosts="$hosts $2"
            first=${first:-$2}
            shift 2
            ;;
        --require-certificate) require=yes && shift ;;
        --) shift && break ;;
        -*) usage >&2 && exit 64 ;;
        *) break ;;
    esac
done
if [ -z "${1:-}" ]; then
    usage >&2
    exit 64
fi
[ -z "$require" ] || [ -n "$hosts" ] || fail "--require-certificate needs --tls" 64
asked=$1
shift
case $asked in
    *'
'*) fail "a folder with a line break in its name cannot be written into mosquitto.conf" 64 ;;
esac
for user in "$@"; do
    # + and # would be wildcards where the acl says %u.
    case $user in
        '' | -* | *[!A-Za-z0-9_.@-]*) fail "'$user' is no user name: letters, digits and _.@- only" 64 ;;
    esac
done
for tool in openssl mosquitto_passwd; do
    command -v "$tool" >/dev/null || fail "$tool is not installed (Debian: apt install mosquitto openssl)"
done

mkdir -p -- "$asked"
folder=$(CDPATH='' cd -- "$asked" && pwd)
certs=$folder/certs
work=$(mktemp -d "$folder/.setup.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP

# keep NEW NAME: move what was made in $work to its place, whole, unless something is there.
keep() {
    if [ -e "$folder/$2" ]; then
        echo "kept  $2"
    else
        mv "$1" "$folder/$2"
        echo "made  $2"
    fi
}

# --- users --------------------------------------------------------------------------------------------
mkdir -p "$folder/passwords"
passwd=$folder/inferd.passwd
: >"$work/new"
for user in inferd "$@"; do
    if [ -e "$passwd" ] && cut -d: -f1 "$passwd" | grep -qxF -- "$user"; then
        echo "kept  user $user"
        continue
    fi
    if cut -d: -f1 "$work/new" | grep -qxF -- "$user"; then
        continue
    fi
    # A password file without its user comes from a run that was cut short.
    if [ ! -e "$folder/passwords/$user" ]; then
        openssl rand -hex 24 >"$work/password"
        keep "$work/password" "passwords/$user"
    fi
    printf '%s:%s\n' "$user" "$(cat "$folder/passwords/$user")" >>"$work/new"
    echo "made  user $user"
done
if [ -s "$work/new" ]; then
    # From a file, as every user of this machine can read a command line.
    mosquitto_passwd -U "$work/new"
    [ ! -e "$passwd" ] || cat "$passwd" >"$work/all"
    cat "$work/new" >>"$work/all"
    mv "$work/all" "$passwd"
fi

# --- certificates -------------------------------------------------------------------------------------
# sign NAME SUBJECT DAYS EXTENSIONS: make NAME.key and NAME.crt by the CA (the CA itself: by itself).
sign() {
    if [ -e "$certs/$1.crt" ]; then
        echo "kept  certs/$1.crt"
        return
    fi
    if [ ! -e "$certs/$1.key" ]; then
        openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$work/key" 2>/dev/null
        keep "$work/key" "certs/$1.key"
    fi
    {
        printf '[req]\ndistinguished_name=dn\n[dn]\n[ext]\nsubjectKeyIdentifier=hash\n'
        [ "$1" = ca ] || printf 'authorityKeyIdentifier=keyid\n'
        printf '%s\n' "$4"
    } >"$work/config"
    openssl req -new -config "$work/config" -key "$certs/$1.key" -subj "$2" -out "$work/request"
    if [ "$1" = ca ]; then
        set -- "$@" -signkey "$certs/ca.key"
    else
        [ -e "$certs/ca.key" ] || fail "certs/ca.key is not here, and only it can sign certs/$1.crt"
        set -- "$@" -CA "$certs/ca.crt" -CAkey "$certs/ca.key"
    fi
    name=$1 days=$3
    shift 4
    openssl x509 -req -sha256 -in "$work/request" -days "$days" -set_serial "0x$(openssl rand -hex 16)" \
        -extfile "$work/config" -extensions ext -out "$work/crt" "$@" 2>/dev/null
    # A certificate is for everybody to read.
    chmod 644 "$work/crt"
    keep "$work/crt" "certs/$name.crt"
}

if [ -n "$hosts" ]; then
    mkdir -p "$certs"
    names=
    for host in $hosts; do
        case $host in
            *:* | *[0-9].[0-9]*.[0-9]*.[0-9]*) kind=IP ;;
            *) kind=DNS ;;
        esac
        # A name may look like 1.2.3.4.example.
        case $host in *[!0-9.:a-fA-F]*) kind=DNS ;; esac
        names=$names${names:+,}$kind:$host
    done
    sign ca "/CN=inferd test CA" 3650 "basicConstraints=critical,CA:TRUE,pathlen:0
keyUsage=critical,keyCertSign,cRLSign"
    sign server "/CN=$first" 825 "basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth
subjectAltName=$names"
    for user in inferd "$@"; do
        sign "client-$user" "/CN=$user" 825 "basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=clientAuth"
    done
fi

# --- configuration ------------------------------------------------------------------------------------
cp "$here/acl" "$work/acl"
keep "$work/acl" inferd.acl
mkdir -p "$folder/state"
# Only text is replaced, so that the folder may have any name. Words of awk's own -v would be unescaped.
FOLDER=$folder TLS=$hosts REQUIRE=$require awk '
    function put(old, new,   at) {
        at = index($0, old)
        if (at) $0 = substr($0, 1, at - 1) new substr($0, at + length(old))
    }
    ENVIRON["TLS"] != "" { sub(/^#listener 8883/, "listener 8883") }
    ENVIRON["TLS"] != "" && /^#(max_connections|cafile|certfile|keyfile|tls_version) / { sub(/^#/, "") }
    ENVIRON["REQUIRE"] != "" && /^#require_certificate / { sub(/^#/, "") }
    { put("/var/lib/mosquitto/", ENVIRON["FOLDER"] "/state/") }
    { put("/etc/mosquitto/", ENVIRON["FOLDER"] "/") }
    { print }
' "$here/mosquitto.conf" >"$work/conf"
if [ "$(id -u)" -eq 0 ]; then
    printf '\n# Made by root: the folder is not for the user mosquitto.\nuser root\n' >>"$work/conf"
fi
keep "$work/conf" mosquitto.conf
if [ -n "$hosts" ] && ! grep -q '^listener 8883' "$folder/mosquitto.conf"; then
    echo "note  mosquitto.conf was there and has no TLS listener: remove it and run this again"
fi

# --- what to tell the daemon --------------------------------------------------------------------------
secret=$(cat "$folder/passwords/inferd" 2>/dev/null) || {
    echo "note  the password of inferd is not in passwords/inferd: write mqtt-url yourself"
    exit 0
}
url=mqtt://inferd:$secret@127.0.0.1:1883
if [ -n "$hosts" ]; then
    case $first in *:*) first="[$first]" ;; esac
    url=mqtts://inferd:$secret@$first:8883
fi
name=mqtt${hosts:+s}-url
printf '%s\n' "$url" >"$work/url"
keep "$work/url" "$name"

# quoted TEXT: as every shell takes it, whatever is in it; printf's %q is not in every sh.
quoted() {
    printf "'%s'" "$(printf '%s\n' "$1" | sed "s/'/'\\\\''/g")"
}
cat <<TOLD

Start the broker:
    mosquitto -c $(quoted "$folder/mosquitto.conf")
Tell the daemon:
    INFERD_MQTT__URL_FILE=$(quoted "$folder/$name")
TOLD
[ -z "$hosts" ] || printf '    INFERD_MQTT__CA_FILE=%s\n' "$(quoted "$certs/ca.crt")"
[ -z "$require" ] || printf '    INFERD_MQTT__CERT_FILE=%s INFERD_MQTT__KEY_FILE=%s\n' \
    "$(quoted "$certs/client-inferd.crt")" "$(quoted "$certs/client-inferd.key")"
