#!/bin/sh
# The little that has to be there before Python can take over (vendor/machine.py does the rest): make, and a Python that is
# recent enough. usage: bootstrap.sh [python]
set -eu

python=${1:-python3}
recent='import sys; sys.exit(sys.version_info < (3, 10))'

recent_enough() {
    command -v "$python" >/dev/null 2>&1 && "$python" -c "$recent"
}

if recent_enough && command -v make >/dev/null 2>&1; then
    exit 0
fi

packages='python3 python3-venv make'
if command -v apt-get >/dev/null 2>&1; then
    if [ "$(id -u)" -eq 0 ]; then
        as_root=
    elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        as_root='sudo -n'
    else
        echo "make and Python 3.10 or later are needed. Run:" >&2
        echo "  sudo apt-get update && sudo apt-get install --yes $packages" >&2
        exit 1
    fi
    echo "installing $packages" >&2
    # Standard output belongs to the target that was asked for. A refresh that fails in part is no reason to stop.
    # shellcheck disable=SC2086 # both are lists of words
    {
        $as_root apt-get update </dev/null >&2 || echo "the package lists could not all be refreshed" >&2
        $as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
            -o DPkg::Lock::Timeout=300 $packages </dev/null >&2
    }
fi

if ! recent_enough; then
    echo "$python is not Python 3.10 or later. Install one, or name one: make PYTHON=/path/to/python3 ..." >&2
    exit 1
fi
if ! command -v make >/dev/null 2>&1; then
    echo "make is not installed" >&2
    exit 1
fi
