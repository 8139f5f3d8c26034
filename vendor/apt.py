"""Fetch packages with apt without changing the system's own apt state.

apt handles mirrors, proxies, signatures and hashes, which should not be implemented again. Each call gets its own
source list, state folder and cache. The hooks of the system's configuration are cleared: container images have one that
empties /var/cache/apt after every update, even while another installation is using it.
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
from vendor.steps import StepFailed, run

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
"""Settings that the system's configuration may have changed and ours resets to apt's defaults."""
_PATIENCE = {"Acquire::Retries": "2", "Acquire::http::Timeout": "20", "Acquire::https::Timeout": "20"}
"""Settings for servers that answer slowly or not at all."""
_WEAK_HASHES = ("MD5", "MD5Sum", "SHA1", "RIPE-MD/160", "RIPEMD160")
"""Names used by gpgv and apt. apt refuses them by default, but its configuration can lower that to a warning."""
HELPER = "/usr/lib/apt/apt-helper"
"""A program of apt that fetches a file by its address, by the rules of the system's configuration."""
UPDATE_TIMEOUT = 180.0
"""Seconds for fetching one suite's index: about 12 MB, over a slow line."""
FETCH_TIMEOUT = 120.0
"""Seconds for fetching less than 1 MB of packages."""


@dataclass(frozen=True)
class Source:
    """One entry of an apt source list."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""
    """Key file, fingerprint, or the key itself with its line breaks; empty: apt's common keyrings."""

    def deb822(self) -> str:
        """Return the entry as a stanza of a ``.sources`` file."""
        lines = [
            "Types: deb",
            f"URIs: {self.uri}",
            f"Suites: {' '.join(self.suites)}",
            f"Components: {' '.join(self.components)}",
        ]
        if self.signed_by:
            lines.append(f"Signed-By: {self.signed_by}")
        return "\n".join(lines) + "\n"


_ONE_LINE = re.compile(r"deb(?:-src)?\s+(?:\[(?P<options>[^\]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<components>.*)")


def parse_one_line(text: str) -> list[Source]:
    """Return the entries of a ``.list`` file: ``deb [options] uri suite components``."""
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
    """Return the entries of a ``.sources`` file, one for each URI of each enabled stanza."""
    sources = []
    # A comment line is not part of the stanza around it, and does not end it.
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
    """Return the entries of this machine's apt configuration, in apt's order; unreadable files are skipped."""
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
    """Return the entry for this machine's mirror of the distribution's main archive, or None.

    Third parties sometimes use the release's code name for their suite, too. Among several candidates the one signed
    by the distribution's keyring is taken, or else the one named like the distribution.
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
    """Return the same mirror for another suite. Without a key of its own, only the archive's keyring is trusted."""
    keyring = apt.keyring if Path(apt.keyring).is_file() else ""
    return replace(source, suites=(suite,), components=tuple(components), signed_by=source.signed_by or keyring)


class PrivateApt:
    """apt-get with a source list, state and cache in one folder of ours; created by :func:`private`."""

    def __init__(self, folder: Path, source: Source) -> None:
        """Write the configuration."""
        self.downloads = folder / "downloads"
        for made in ("state/lists/partial", "cache/archives/partial", "downloads"):
            (folder / made).mkdir(parents=True)
        source_list = folder / "private.sources"
        source_list.write_text(source.deb822())
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
            **_PATIENCE,
            # Whatever the system's configuration allows: nothing from unsigned, weakly signed or expired indexes.
            "Acquire::AllowInsecureRepositories": "false",
            "Acquire::AllowWeakRepositories": "false",
            "Acquire::AllowDowngradeToInsecureRepositories": "false",
            "APT::Get::AllowUnauthenticated": "false",
            "Acquire::Check-Date": "true",  # otherwise the next setting has no effect
            "Acquire::Check-Valid-Until": "true",
            **{f"APT::Hashes::{name}::Untrusted": "true" for name in _WEAK_HASHES},
            # Otherwise a failed fetch is a warning with exit code 0.
            "APT::Update::Error-Mode": "any",
        }
        settings |= _sandbox()
        lines = [f"#clear {name};" for name in (*HOOKS, *_LOOSER)]
        lines += [f'{name} "{value}";' for name, value in settings.items()]
        self._configuration.write_text("\n".join(lines) + "\n")

    def run(self, arguments: Sequence[str], *, timeout: float) -> str:
        """Run apt-get in the downloads folder; return its standard output.

        Raises:
            StepFailed: apt-get failed; one line says why.
        """
        # A file given with -c is read after the system's configuration, so that #clear takes effect. A file named by
        # $APT_CONFIG would be read before it.
        try:
            command = ["apt-get", "-c", str(self._configuration), "-q", *arguments]
            return run(command, cwd=self.downloads, timeout=timeout)
        except StepFailed as failure:
            raise StepFailed(f"apt-get {arguments[0]}: {failure}") from failure

    def with_dependencies(self, package: str) -> set[str]:
        """Return the names of a package and of all that it depends on, installed or not.

        They are resolved as if nothing was installed: what is may be newer than this suite, so that apt would refuse.

        Raises:
            StepFailed: There is no such package; one line says so.
        """
        nothing = self.downloads.with_name("status")
        nothing.touch()
        options = ["--simulate", "--no-install-recommends", "-o", f"Dir::State::status={nothing}"]
        return set(re.findall(r"^Inst (\S+)", self.run(["install", *options, package], timeout=FETCH_TIMEOUT), re.M))


@contextlib.contextmanager
def private(folder: Path, source: Source) -> Iterator[PrivateApt]:
    """Provide an updated private apt for one suite; its lists and downloads are removed when the block ends.

    Args:
        folder: Working folder; must not exist yet.
        source: Mirror and suite.

    Raises:
        StepFailed: apt-get is missing, or failed; one line says why.
    """
    if shutil.which("apt-get") is None:
        raise StepFailed("apt-get is not installed")
    try:
        apt = PrivateApt(folder, source)
        apt.run(["update"], timeout=UPDATE_TIMEOUT)
        yield apt
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def find_archive(distribution: Distribution) -> tuple[Source, AptNames]:
    """Return this machine's mirror of the main archive, with the names that belong to it.

    Raises:
        StepFailed: No apt here, or no such entry among its sources.
    """
    if distribution.apt is None or shutil.which("apt-get") is None:
        raise StepFailed("no apt on this system")
    source = archive(system_sources(), distribution)
    if source is None:
        raise StepFailed(f"the apt sources contain no mirror of the {distribution.name} archive")
    return source, distribution.apt


def fetch_source(distribution: Distribution, package: str, name: str, file: Path) -> None:
    """Fetch one file of a source package from this machine's mirror, whichever suite it belongs to.

    No index is read, so nothing is verified: the caller must know the hash.

    Args:
        distribution: This machine's.
        package: The source package.
        name: The file's name in the archive.
        file: Where to write it.

    Raises:
        StepFailed: No apt here, or the mirror has no such file.
    """
    source, names = find_archive(distribution)
    options = [f"-o{setting}={value}" for setting, value in {**_PATIENCE, **_sandbox()}.items()]
    failures = []
    for component in names.source_components:
        address = f"{source.uri.rstrip('/')}/pool/{component}/{package[0]}/{package}/{name}"
        try:
            run([HELPER, *options, "download-file", address, str(file)], timeout=FETCH_TIMEOUT)
            return
        except StepFailed as failure:
            reason = re.search(r"^E: (Failed to fetch .*)", failure.output, re.MULTILINE)
            failures.append(reason[1] if reason else str(failure))
    raise StepFailed("; ".join(failures))


def _sandbox() -> dict[str, str]:
    """Return settings for root: otherwise apt fetches as the user _apt, which cannot write here, and warns about it."""
    return {"APT::Sandbox::User": "root"} if os.geteuid() == 0 else {}
