"""Installs what is compared: ``python -m bench.tunnels.install [--only NAME ...]``.

Everything goes to the cache folder and is built only once, which takes minutes. Nothing is installed for the user, and
what can't be had is named with the reason, as the benchmark leaves it out.
"""

from __future__ import annotations

import argparse
import sys

from bench.tunnels import TUNNELS, Gtls, Tunnel
from tests.interop.install import NotInstalled


def main() -> int:
    """Install what is missing, and say of each tunnel whether it is there."""
    installables: list[Tunnel | Gtls] = [*TUNNELS, Gtls()]
    everything = {installable.name: installable for installable in installables}
    parser = argparse.ArgumentParser(prog="python -m bench.tunnels.install", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=list(everything), default=list(everything), metavar="NAME", help="only these"
    )
    for name in parser.parse_args().only:
        installable = everything[name]
        try:
            if installable.unavailable() is not None:
                print(f"{name}: installing, this may take minutes", flush=True)
            installable.install()
            print(f"{name}: installed ({installable.version()})", flush=True)
        except NotInstalled as error:
            print(f"{name}: {error}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
