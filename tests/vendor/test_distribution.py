"""The table of package names, and the commands made from it."""

from __future__ import annotations

import os

import pytest

from vendor.distribution import as_root, detect, load_table, minimum, parse_os_release, version_tuple
from vendor.machine import EXTRA_PROBES, PROBES
from vendor.ngtcp2 import TOOLS

BACKPORTS = (
    "echo 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror.test/debian "
    "bookworm-backports main' | sudo tee /etc/apt/sources.list.d/bookworm-backports.list"
)


@pytest.mark.parametrize("key", load_table()["distributions"])
def test_every_distribution_names_every_need(key: str) -> None:
    distribution = detect(f"ID={key}\n")
    assert set(distribution.packages) == {*PROBES, *EXTRA_PROBES, "ngtcp2"}
    without = {need for need, names in distribution.packages.items() if not names}
    assert without == ({"systemd"} if key == "alpine" else set())
    assert distribution.install


def test_minimum_versions() -> None:
    assert version_tuple(minimum("ngtcp2")) == (1, 11)
    assert version_tuple(minimum("gnutls")) == (3, 7, 3)


@pytest.mark.parametrize(
    ("lower", "higher"), [("1.9.0", "1.11.0"), ("0.12.1", "1.11"), ("3.7.2", "3.7.3"), ("1.24", "1.24.0-1"), ("", "0")]
)
def test_versions_compare_as_numbers(lower: str, higher: str) -> None:
    assert version_tuple(lower) < version_tuple(higher)


def test_os_release_quoting() -> None:
    text = "# comment\nNAME=\"Some Linux\"\nID='some'\nVERSION_ID=1.5\n\nBROKEN\n"
    assert parse_os_release(text) == {"NAME": "Some Linux", "ID": "some", "VERSION_ID": "1.5"}


def test_debian_12_takes_ngtcp2_from_its_backports() -> None:
    distribution = detect("ID=debian\nVERSION_ID=12\nVERSION_CODENAME=bookworm\n")
    install = "sudo apt-get install --yes -t bookworm-backports libngtcp2-dev libngtcp2-crypto-gnutls-dev"
    assert distribution.name == "Debian 12"
    assert distribution.ngtcp2_commands("http://mirror.test/debian") == [BACKPORTS, "sudo apt-get update", install]
    assert distribution.ngtcp2_commands("http://mirror.test/debian", newer_configured=True) == [
        "sudo apt-get update",
        install,
    ]
    assert "<your mirror>" in distribution.ngtcp2_commands("")[0]


def test_debian_13_takes_its_own_ngtcp2() -> None:
    distribution = detect("ID=debian\nVERSION_ID=13\nVERSION_CODENAME=trixie\n")
    assert distribution.ngtcp2_commands("http://mirror.test/debian") == [
        "sudo apt-get update && "
        "sudo apt-get install --yes --no-install-recommends libngtcp2-dev libngtcp2-crypto-gnutls-dev"
    ]


def test_a_derivative_is_treated_as_its_parent_but_not_as_a_release_of_it() -> None:
    distribution = detect('NAME="Derived"\nID=derived\nID_LIKE="ubuntu debian"\nVERSION_ID=12\n')
    assert (distribution.key, distribution.name) == ("ubuntu", "Derived 12")
    assert distribution.apt is not None
    assert distribution.apt.newer_suite == ""


def test_an_unknown_distribution_gets_the_commands_of_all_others() -> None:
    distribution = detect("ID=mystery\n")
    assert distribution.apt is None
    assert distribution.install_command(["compiler", "make"]) == (
        "on Debian: sudo apt-get update && sudo apt-get install --yes --no-install-recommends gcc libc6-dev make; "
        "on Fedora: sudo dnf install --assumeyes gcc glibc-devel make; "
        "on Alpine Linux: sudo apk update && sudo apk add gcc musl-dev linux-headers make; "
        "on Arch Linux: sudo pacman -Syu --needed --noconfirm gcc make"
    )


def test_packages_are_named_once_in_order() -> None:
    distribution = detect("ID=arch\n")
    assert distribution.package_names(["python-venv", "compiler", "python-headers"]) == ["python", "gcc"]
    assert detect("ID=fedora\n").install_command(["gnutls"]) == "sudo dnf install --assumeyes 'pkgconfig(gnutls)'"


@pytest.mark.parametrize(
    ("key", "command"),
    [
        (
            "debian",
            "sudo apt-get update && sudo apt-get install --yes --no-install-recommends "
            "gcc libc6-dev make pkg-config libgnutls28-dev python3-dev",
        ),
        (
            "fedora",
            "sudo dnf install --assumeyes gcc glibc-devel make pkgconf-pkg-config 'pkgconfig(gnutls)' python3-devel",
        ),
        (
            "alpine",
            "sudo apk update && sudo apk add gcc musl-dev linux-headers make pkgconf gnutls-dev python3-dev",
        ),
        ("arch", "sudo pacman -Syu --needed --noconfirm gcc make pkgconf gnutls python"),
    ],
)
def test_one_line_installs_all_that_the_build_needs(key: str, command: str) -> None:
    assert detect(f"ID={key}\n").install_command(TOOLS) == command


def test_root_needs_no_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert as_root("apt-get update") == "apt-get update"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert as_root("apt-get update") == "sudo apt-get update"
