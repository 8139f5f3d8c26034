"""The names of the packages we need on this Linux distribution, and the exact commands that install them."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLE_FILE = Path(__file__).with_name("packages.json")
OS_RELEASE = Path("/etc/os-release")


def load_table() -> dict[str, Any]:
    """Return all of ``packages.json``, with entries marked ``like`` completed from the entry they name."""
    table: dict[str, Any] = json.loads(TABLE_FILE.read_text())
    entries = table["distributions"]
    for key, entry in entries.items():
        if like := entry.get("like"):
            entries[key] = {**entries[like], **entry}
    return table


def minimum(name: str) -> str:
    """Return the minimum version of ``ngtcp2``, ``gnutls`` or ``python``."""
    return str(load_table()["minimum"][name])


def version_tuple(version: str) -> tuple[int, ...]:
    """Return the leading dotted number of a version, for comparison: ``1.24.0-1`` gives ``(1, 24, 0)``."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def parse_os_release(text: str) -> dict[str, str]:
    """Return the fields of an os-release file (see os-release(5))."""
    fields = {}
    for line in text.splitlines():
        key, separator, value = line.strip().partition("=")
        if separator and not key.startswith("#"):
            fields[key] = "".join(shlex.split(value))
    return fields


def as_root(command: str) -> str:
    """Return what to type for a command that needs root. Containers have root and no sudo."""
    return command if os.geteuid() == 0 else f"sudo {command}"


@dataclass(frozen=True)
class AptNames:
    """What apt needs to know about a distribution that uses it."""

    keyring: str
    """File with the archive's keys."""
    suites: tuple[str, ...]
    """Suite names that, in addition to the release's code name, identify an apt source as the main archive."""
    source_components: tuple[str, ...]
    """Components that may have ngtcp2's source package."""
    runtime: tuple[str, ...]
    """Packages that the ngtcp2 development packages depend on, in addition to GnuTLS."""
    newer_suite: str
    """Suite to take ngtcp2 from if this release's own is too old; empty: none."""
    newer_components: tuple[str, ...]


@dataclass(frozen=True)
class Distribution:
    """The distribution of this machine. Unknown ones have an empty ``key`` and no commands of their own."""

    key: str
    name: str
    version: str
    codename: str
    install: tuple[str, ...]
    refresh: tuple[str, ...]
    packages: Mapping[str, tuple[str, ...]]
    apt: AptNames | None

    def package_names(self, needs: Iterable[str]) -> list[str]:
        """Return the packages that provide the named needs (keys of ``packages`` in the table), each once, in order."""
        names = [name for need in needs for name in self.packages.get(need, ())]
        return list(dict.fromkeys(names))

    def install_command(self, needs: Iterable[str]) -> str:
        """Return the line to type to get the named needs; of an unknown distribution, those of all known ones."""
        needs = list(needs)
        if not self.key:
            known = (
                detect(f"ID={key}\n") for key, entry in load_table()["distributions"].items() if "like" not in entry
            )
            return "; ".join(f"on {each.name}: {each.install_command(needs)}" for each in known)
        commands = [self.refresh] if self.refresh else []
        commands.append((*self.install, *self.package_names(needs)))
        return " && ".join(as_root(shlex.join(command)) for command in commands)

    def ngtcp2_commands(self, mirror: str, *, newer_configured: bool = False) -> list[str]:
        """Return the lines to type to get a recent enough system ngtcp2.

        Args:
            mirror: This machine's mirror of the main archive; empty: unknown. Only used with a newer suite.
            newer_configured: Whether that suite is among the machine's apt sources already.
        """
        if self.apt is None or not self.apt.newer_suite:
            return [self.install_command(["ngtcp2"])]
        suite, components = self.apt.newer_suite, " ".join(self.apt.newer_components)
        names = shlex.join(self.package_names(["ngtcp2"]))
        commands = []
        if not newer_configured:
            line = f"deb [signed-by={self.apt.keyring}] {mirror or '<your mirror>'} {suite} {components}"
            commands.append(f"echo '{line}' | {as_root(f'tee /etc/apt/sources.list.d/{suite}.list')}")
        commands.append(as_root("apt-get update"))
        commands.append(as_root(f"apt-get install --yes -t {suite} {names}"))
        return commands


def detect(os_release: str | None = None) -> Distribution:
    """Return the distribution that an os-release text describes; by default this machine's."""
    if os_release is None:
        os_release = OS_RELEASE.read_text() if OS_RELEASE.exists() else ""
    fields = parse_os_release(os_release)
    entries = load_table()["distributions"]
    candidates = [fields.get("ID", ""), *fields.get("ID_LIKE", "").split()]
    key = next((candidate for candidate in candidates if candidate in entries), "")
    entry = entries.get(key, {})
    version = fields.get("VERSION_ID", "")
    # A derivative has its own release numbers, so its version says nothing about the parent's suites.
    exact = key == candidates[0]
    return Distribution(
        key=key,
        name=" ".join(part for part in (entry.get("name") if exact else fields.get("NAME"), version) if part),
        version=version,
        codename=fields.get("VERSION_CODENAME", ""),
        install=tuple(entry.get("install", ())),
        refresh=tuple(entry.get("refresh", ())),
        packages={need: tuple(names) for need, names in entry.get("packages", {}).items()},
        apt=_apt_names(entry["apt"], version if exact else "") if "apt" in entry else None,
    )


def _apt_names(entry: Mapping[str, Any], version: str) -> AptNames:
    newer = entry["newer"].get(version, {})
    return AptNames(
        keyring=entry["keyring"],
        suites=tuple(entry["suites"]),
        source_components=tuple(entry["source_components"]),
        runtime=tuple(entry["runtime"]),
        newer_suite=newer.get("suite", ""),
        newer_components=tuple(newer.get("components", ())),
    )
