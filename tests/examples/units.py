"""The unit files of examples, documentation and packages: ``python -m tests.examples.units [--write-docs]``.

They come from the code that installs units. Prints them, or puts them into their places.
"""

from __future__ import annotations

import functools
from pathlib import Path

from asport_sync.cli.systemd import Unit
from tests.support.generated import Outputs, WholeFile, run
from tests.support.page import Place
from tests.support.process import REPOSITORY

EXAMPLES = REPOSITORY / "examples" / "systemd"
DEBIAN = REPOSITORY / "debian"
PLACE = Place("tests.examples.units", REPOSITORY / "docs" / "operations.md")

VERSION = 257
"""The release of systemd for which they are shown, and that the oldest Debian has for which a package is built."""
ACCOUNT = "asport"
"""The account that Debian's package creates."""

WHAT = {"client": "a client", "server": "a server"}
FILES = {
    "client": ("client.yaml", "alice.password"),
    "server": ("server.yaml", "alice.password", "fullchain.pem", "privkey.pem"),
}


def unit(side: str) -> Unit:
    """The unit of a client or a server with its files in /etc/asport."""
    folder = Path("/etc/asport")
    return Unit(
        side=side,
        command=("/opt/asport/bin/asport-sync",),
        file=folder / f"{side}.yaml",
        version=VERSION,
        credentials={name: folder / name for name in FILES[side]},
        privileged_ports=side == "server",
    )


def of_the_package(side: str, *, template: bool = False) -> Unit:
    """A unit of Debian's package: for its account, and for files in /etc/asport that nobody knows yet."""
    return Unit(
        side=side,
        command=("/usr/bin/asport-sync",),
        file=Path("/etc/asport") / (f"{side}-%i.yaml" if template else f"{side}.yaml"),
        template=template,
        version=VERSION,
        account=ACCOUNT,
        logs=("asport",),
        privileged_ports=side == "server",
    )


def debian() -> dict[Path, str]:
    """The files of debian/ with units, and their contents."""
    units = [of_the_package("client"), of_the_package("client", template=True), of_the_package("server")]
    return {DEBIAN / "units" / f"{unit.name}.service": unit.text for unit in units}


def example(side: str) -> str:
    """The content of a file of examples/systemd/."""
    name = unit(side).name
    return (
        f"# Shows: {WHAT[side]} as a service with no more rights than it needs, as written by asport-sync systemd "
        f"install {side}.\n"
        "# Needs: the package in /opt/asport, and the files that LoadCredential= names in /etc/asport.\n"
        f"# Run:   cp examples/systemd/{name}.service /etc/systemd/system/ && systemctl enable --now {name}\n"
        f"{unit(side).text}"
    )


def on_the_page() -> str:
    """What the page shows: the client's unit."""
    return f"```ini\n# /etc/systemd/system/asport-client.service\n{unit('client').text}```"


OUTPUTS: Outputs = {
    **{WholeFile(EXAMPLES / f"{unit(side).name}.service"): functools.partial(example, side) for side in FILES},
    **{WholeFile(path): functools.partial(str, text) for path, text in debian().items()},
    PLACE: on_the_page,
}


if __name__ == "__main__":
    run(__doc__, OUTPUTS)
