"""Fetch packages with apt and leave the system's own apt as it was.

apt does the parts that should not be written twice: mirrors, proxies, signatures, hashes. But each call gets a source
list, a state folder and a cache of its own, and the hooks of the system's configuration are cleared: images made for
containers carry one that empties /var/cache/apt after every update, under the feet of an installation beside us.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from vendor.distribution import AptNames, Distribution
from vendor.steps import Refused, StepFailed, run

HOOKS = (
    "APT::Update::Pre-Invoke",
    "APT::Update::Post-Invoke",
    "APT::Update::Post-Invoke-Success",
    "APT::Update::Auth-Failure",
    "DPkg::Pre-Invoke",
    "DPkg::Post-Invoke",
    "DPkg::Pre-Install-Pkgs",
)
_LOOSER = (
    "Acquire::Min-ValidTime",  # lets an index live longer than its signer says
    "Acquire::gpgv::Options",  # anything that gpgv knows
)
"""What a system's configuration may have set and ours leaves at apt's defaults."""
_WEAK_HASHES = ("MD5", "MD5Sum", "SHA1", "RIPE-MD/160", "RIPEMD160")
"""As gpgv and apt name them. apt refuses them by itself, but its configuration can lower that to a warning."""
_EXPIRED = re.compile(r"Release file for \S+ is (?:expired|not valid yet) \([^)]*\)")
UPDATE_TIMEOUT = 180.0
"""Seconds for fetching one suite's index: some 12 MB, over a slow line."""
FETCH_TIMEOUT = 120.0
"""Seconds for fetching less than 1 MB of packages."""


@dataclass(frozen=True)
class Source:
    """One entry of an apt source list."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""
    """Key file, fingerprint or the key itself with its line breaks; empty means apt's common keyrings."""

    def deb822(self, kind: str) -> str:
        """The entry as a stanza of a ``.sources`` file; ``kind`` is ``deb`` or ``deb-src``."""
        lines = [
            f"Types: {kind}",
            f"URIs: {self.uri}",
            f"Suites: {' '.join(self.suites)}",
            f"Components: {' '.join(self.components)}",
        ]
        if self.signed_by:
            lines.append(f"Signed-By: {self.signed_by}")
        return "\n".join(lines) + "\n"


_ONE_LINE = re.compile(r"deb(?:-src)?\s+(?:\[(?P<options>[^\]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<components>.*)")


def parse_one_line(text: str) -> list[Source]:
    """Entries of a ``.list`` file: ``deb [options] uri suite components``."""
    sources = []
    for line in text.splitlines():
        match = _ONE_LINE.fullmatch(line.partition("#")[0].strip())
        if not match:
            continue
        options = dict(option.partition("=")[::2] for option in (match["options"] or "").split())
        sources.append(
            Source(match["uri"], (match["suite"],), tuple(match["components"].split()), options.get("signed-by", ""))
        )
    return sources


def parse_deb822(text: str) -> list[Source]:
    """Entries of a ``.sources`` file, one for each address of each enabled stanza."""
    sources = []
    # A comment line is no part of the stanza around it, and does not end it either.
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1] in (" ", "\t"):
                if name:
                    fields[name] += "\n" + line.rstrip()
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if fields.get("enabled", "yes").lower() in ("no", "false", "0") or "uris" not in fields:
            continue
        for uri in fields["uris"].split():
            sources.append(
                Source(
                    uri,
                    tuple(fields.get("suites", "").split()),
                    tuple(fields.get("components", "").split()),
                    fields.get("signed-by", ""),
                )
            )
    return sources


def system_sources() -> list[Source]:
    """The entries of this machine's own apt configuration, in apt's order; unreadable files are passed over."""
    places = run(["apt-config", "shell", "LIST", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d"])
    found = dict(re.findall(r"^(LIST|PARTS)='(.*)'$", places, re.MULTILINE))
    files = [Path(found.get("LIST", "/etc/apt/sources.list"))]
    parts = Path(found.get("PARTS", "/etc/apt/sources.list.d"))
    if parts.is_dir():
        files += sorted(parts.iterdir())
    sources = []
    for file in files:
        parse = parse_deb822 if file.suffix == ".sources" else parse_one_line if file.suffix == ".list" else None
        with contextlib.suppress(OSError):
            if parse and file.is_file():
                sources += parse(file.read_text(errors="replace"))
    return sources


def archive(sources: Iterable[Source], distribution: Distribution) -> Source | None:
    """The entry that is this machine's mirror of the distribution's main archive, or None.

    Third parties sometimes use the release's code name for their suite as well; among several candidates the one
    signed by the distribution's keyring, or else named like the distribution, is taken.
    """
    apt = distribution.apt
    if apt is None:
        return None
    suites = {distribution.codename, *apt.suites} - {""}
    candidates = [
        source
        for source in sources
        if suites & set(source.suites) and "main" in source.components and not source.uri.startswith("cdrom:")
    ]

    def doubt(source: Source) -> int:
        if apt.keyring in source.signed_by:
            return 0
        return 1 if urlsplit(source.uri).path.rstrip("/").endswith(f"/{distribution.key}") else 2

    return min(candidates, key=doubt, default=None)


def with_suite(source: Source, apt: AptNames, suite: str, components: Sequence[str]) -> Source:
    """The same mirror, pointing at another suite. Without a key of its own, only the archive's keyring is trusted."""
    keyring = apt.keyring if Path(apt.keyring).is_file() else ""
    return replace(source, suites=(suite,), components=tuple(components), signed_by=source.signed_by or keyring)


class ReleaseExpired(Refused):
    """The index of the suite is older than its signer allows: somebody may serve an old one on purpose."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"{reason}: set this machine's clock, name an up-to-date mirror in its apt sources, or give the source of "
            "a release: ASPORT_NGTCP2_SOURCE=/path/to/ngtcp2.tar.xz"
        )
        self.reason = reason
        """What apt says, with the address and since when."""


class PrivateApt:
    """apt-get with a source list, state and cache in one folder of ours; :func:`private` makes them."""

    def __init__(self, folder: Path, source: Source, kind: str, *, accept_expired: bool = False) -> None:
        """Write the configuration. ``kind`` is ``deb`` or ``deb-src``."""
        self.downloads = folder / "downloads"
        for made in ("state/lists/partial", "cache/archives/partial", "downloads"):
            (folder / made).mkdir(parents=True)
        source_list = folder / "private.sources"
        source_list.write_text(source.deb822(kind))
        self._configuration = folder / "apt.conf"
        settings = {
            "Dir::State": folder / "state",
            "Dir::State::Lists": folder / "state/lists",
            "Dir::Cache": folder / "cache",
            "Dir::Cache::Archives": folder / "cache/archives",
            "Dir::Etc::SourceList": source_list,
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "Acquire::Languages": "none",
            "Acquire::GzipIndexes": "true",
            "Acquire::Retries": "2",
            "Acquire::http::Timeout": "20",
            "Acquire::https::Timeout": "20",
            # Whatever the system's configuration allows: what is not signed, or weakly, or long ago, is not built.
            "Acquire::AllowInsecureRepositories": "false",
            "Acquire::AllowWeakRepositories": "false",
            "Acquire::AllowDowngradeToInsecureRepositories": "false",
            "APT::Get::AllowUnauthenticated": "false",
            "Acquire::Check-Date": "true",  # without it the next one has no effect
            "Acquire::Check-Valid-Until": "false" if accept_expired else "true",
            **{f"APT::Hashes::{name}::Untrusted": "true" for name in _WEAK_HASHES},
            # Without it a failed fetch is a warning and a return code of 0.
            "APT::Update::Error-Mode": "any",
        }
        if os.geteuid() == 0:
            # apt would fetch as the user _apt, who cannot write here, and warn about it.
            settings["APT::Sandbox::User"] = "root"
        lines = [f"#clear {name};" for name in (*HOOKS, *_LOOSER)]
        lines += [f'{name} "{value}";' for name, value in settings.items()]
        self._configuration.write_text("\n".join(lines) + "\n")

    def run(self, arguments: Sequence[str], *, timeout: float) -> None:
        """Run apt-get in the downloads folder.

        Raises:
            StepFailed: apt-get failed; one line says why.
        """
        # A file given with -c is read after the system's configuration, one named by $APT_CONFIG before it, where
        # #clear would have nothing to clear yet.
        try:
            run(["apt-get", "-c", str(self._configuration), "-q", *arguments], cwd=self.downloads, timeout=timeout)
        except StepFailed as failure:
            if expired := _EXPIRED.search(failure.output):
                raise ReleaseExpired(expired[0]) from failure
            raise StepFailed(f"apt-get {arguments[0]}: {failure}", failure.output) from failure


@contextlib.contextmanager
def private(folder: Path, source: Source, kind: str, *, accept_expired: bool = False) -> Iterator[PrivateApt]:
    """An updated private apt for one suite; its lists and downloads are gone when the block ends.

    Args:
        folder: Where to work; must not exist yet.
        source: Mirror and suite.
        kind: ``deb`` or ``deb-src``.
        accept_expired: Take an index whose time is over. Its signature counts all the same.

    Raises:
        StepFailed: apt-get is missing, or failed; one line says why.
        ReleaseExpired: The index is out of date.
    """
    if shutil.which("apt-get") is None:
        raise StepFailed("apt-get is not installed")
    try:
        apt = PrivateApt(folder, source, kind, accept_expired=accept_expired)
        apt.run(["update"], timeout=UPDATE_TIMEOUT)
        yield apt
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def find_archive(distribution: Distribution) -> tuple[Source, AptNames]:
    """This machine's mirror of the main archive, with the names that go with it.

    Raises:
        StepFailed: No apt here, or no such entry among its sources.
    """
    if distribution.apt is None or shutil.which("apt-get") is None:
        raise StepFailed("no apt on this system")
    source = archive(system_sources(), distribution)
    if source is None:
        raise StepFailed(f"no mirror of the {distribution.name} archive among the apt sources")
    return source, distribution.apt
