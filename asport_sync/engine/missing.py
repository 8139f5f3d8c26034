"""Why the compiled extension cannot be loaded, and what to do about it. Imported only if that has happened."""

from __future__ import annotations

import re

BUILD = "build it with: pip install ."
"""The cure for an extension that was made for another package, Python or system."""

_NGTCP2 = {
    "Debian": "apt-get update && apt-get install libngtcp2-16 libngtcp2-crypto-gnutls8",
    "Fedora": "dnf install ngtcp2 ngtcp2-crypto-gnutls",
    "Alpine": "apk add so:libngtcp2.so.16 so:libngtcp2_crypto_gnutls.so.8",
    "Arch": "pacman -Syu libngtcp2",
}
_LIBRARIES = {
    "libgnutls": {
        "Debian": "apt-get update && apt-get install libgnutls30",
        "Fedora": "dnf install gnutls",
        "Alpine": "apk add gnutls",
        "Arch": "pacman -Syu gnutls",
    },
    "libngtcp2": _NGTCP2,
    "libngtcp2_crypto_gnutls": _NGTCP2,
}
# The loader's text is translated, but begins with the name, which is without a folder only if it was not found.
_NOT_FOUND = re.compile(r"(?<![^\s])((lib[\w+-]+)\.so[.\d]*): ")


def explain(problem: ImportError) -> str:
    """Returns one line with the reason and the cure."""
    found = _NOT_FOUND.search(str(problem))
    if found is not None:
        commands = _LIBRARIES.get(found[2])
        if commands is None:
            return f"the library {found[1]} is not installed ({problem}): install the package that contains it"
        install = "; ".join(f"on {name}: {command}" for name, command in commands.items())
        return f"the library {found[1]} is not installed; {install}"
    if problem.name == "_cffi_backend":
        return "cffi is not installed for this Python: pip install cffi"
    return f"the compiled extension asport_sync._aq cannot be loaded ({problem}); {BUILD}"
