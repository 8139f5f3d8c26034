#!/bin/sh
# Sets up a machine for the Makefile: installs what is missing, as root or with a sudo that needs no password, or else
# names the command that does. vendor/machine.py does that; this script provides the recent enough Python that it needs.
# usage: bootstrap.sh [python]
set -eu

python=${1:-python3}
recent='import sys; sys.exit(sys.version_info < (3, 10))'

recent_enough() {
    command -v "$python" >/dev/null 2>&1 && "$python" -c "$recent"
}

# Everything that the Makefile needs, as in packages.json: at once, so that packages need not be installed twice.
packages='gcc libc6-dev make pkg-config libgnutls28-dev python3 python3-dev python3-venv curl iproute2 xz-utils'

if ! recent_enough && command -v apt-get >/dev/null 2>&1; then
    if [ "$(id -u)" -eq 0 ]; then
        as_root=
    elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        as_root='sudo -n'
    else
        echo "Python 3.10 or later is missing on this machine, and perhaps more. Run:" >&2
        echo "  sudo apt-get update && sudo apt-get install --yes --no-install-recommends $packages" >&2
        exit 1
    fi
    echo "installing $packages" >&2
    # Standard output belongs to the requested target. A partly failed refresh is no reason to stop.
    # shellcheck disable=SC2086 # both are lists of words
    {
        $as_root apt-get update </dev/null >&2 || echo "not all package lists could be refreshed" >&2
        $as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
            -o DPkg::Lock::Timeout=300 $packages </dev/null >&2
    }
fi

if ! recent_enough; then
    echo "$python is not Python 3.10 or later. Install it (Fedora: dnf install python3, Alpine: apk add python3," \
        "Arch: pacman -Syu python), or name one: make PYTHON=/path/to/python3 ..." >&2
    exit 1
fi
CDPATH= cd -- "$(dirname -- "$0")/.."
exec "$python" -m vendor.machine
