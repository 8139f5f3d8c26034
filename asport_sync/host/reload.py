"""Reloading a configuration: its result, what is logged of it, and the watch for changed files."""

from __future__ import annotations

import dataclasses
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from asport_sync.config import Credential
from asport_sync.errors import AsportError, ConfigError, ConfigErrors
from asport_sync.host.certificates import digest

_COPIES = (
    " in the copies of the files that systemd has made (LoadCredential=): it makes them when the service starts, and "
    "from systemd 260 on again at systemctl reload"
)
_MAX_SHOWN = 20  # changes in a log line; a file with thousands of users may change all of them


@dataclasses.dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload has done.

    Attributes:
        changes: What has changed, such as "user UUID: removed", "certificate: new" or "log_level: warn -> info".
        needs_restart: Keys that have changed in the file, but take effect only after a restart.
    """

    changes: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()


def log_reloaded(reloaded: Reloaded, log: logging.Logger, *, has_copies: bool = False) -> None:
    """Logs what a reload has done.

    Args:
        reloaded: That.
        log: Where.
        has_copies: Whether the files are copies that systemd has made.
    """
    shown = "; ".join(reloaded.changes[:_MAX_SHOWN]) or ("nothing has changed" + _COPIES * has_copies)
    more = len(reloaded.changes) - _MAX_SHOWN
    log.info("configuration reloaded: %s%s", shown, f"; and {more} more" if more > 0 else "")
    if reloaded.needs_restart:
        log.warning("a restart is needed for the changes of %s", ", ".join(reloaded.needs_restart))


def log_refused(problem: AsportError | OSError, log: logging.Logger) -> None:
    """Logs why a reload was refused, one line for each error."""
    errors: Sequence[Exception] = problem.errors if isinstance(problem, ConfigErrors) else [problem]
    for error in errors:
        log.error("reload: %s", error)
    log.error("the configuration is not reloaded; the previous configuration stays in use")


class FileWatch:
    """Polls files, and reports changes of their content from a thread of its own.

    inotify would miss what bind mounts and the symbolic links of a ConfigMap do. A file that differs from the previous
    poll in size, times, inode or device is read, and counts as changed once its content has stayed the same for one
    more poll: until then, something may still be writing it. FIFOs and devices are not read.

    Args:
        files: Returns the files.
        changed: Called after a change. Called again only after a further change.
    """

    def __init__(self, files: Callable[[], Iterable[Path]], changed: Callable[[], object]) -> None:
        self._files = files
        self._changed = changed
        self._lock = threading.Lock()  # guards the next three
        self._seen: dict[Path, _Content | None] = {}  # by file at the latest poll; None: it can't be read
        self._known: dict[Path, bytes | None] = {}  # the content that needs no report
        self._candidate: dict[Path, bytes | None] = {}  # what differed from it at the latest poll
        # Replaced by start(); the caller of start() and stop() sees to it that only one thread calls them at a time.
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def accept(self) -> None:
        """Takes the present content as known. Any thread."""
        with self._lock:
            self._known = self._look()
            self._candidate = {}

    def start(self, period: float) -> None:
        """Polls from now on.

        Args:
            period: Seconds between two polls.

        Raises:
            RuntimeError: The system can't create a thread.
        """
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(period, self._stopping), name="asport-watch", daemon=True
        )
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Ends the polls, and waits for the thread unless it is the caller's. Idempotent; ``start`` may follow."""
        self._stopping.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread.ident is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def poll(self) -> bool:
        """Returns whether content has changed and stayed the same since the previous poll."""
        with self._lock:
            now = self._look()
            # A file that was not watched before has no content to compare with.
            different = {file: content for file, content in now.items() if content != self._known.get(file, content)}
            is_stable = bool(different) and different == self._candidate
            self._known = {file: self._known.get(file, content) for file, content in now.items()}
            self._candidate = {} if is_stable else different
            if is_stable:
                self._known |= different
            return is_stable

    def _run(self, period: float, stopping: threading.Event) -> None:
        while not stopping.wait(period):
            if self.poll():
                self._changed()

    def _look(self) -> dict[Path, bytes | None]:
        """Returns a digest of the content of each file; None: it can't be read. The lock is held."""
        self._seen = {file: _look_at(file, self._seen.get(file)) for file in self._files()}
        return {file: None if content is None else content.digest for file, content in self._seen.items()}


@dataclasses.dataclass(frozen=True, slots=True)
class _Content:
    """What a poll has found.

    Attributes:
        state: Device, inode, size, and times of the last change of content and of status in nanoseconds.
        digest: Of the content; empty if the file is none that can be read twice.
    """

    state: tuple[int, ...]
    digest: bytes


def _look_at(file: Path, before: _Content | None) -> _Content | None:
    """Returns what a file contains; reads it only if its state differs from that of the previous poll."""
    try:
        found = os.stat(file)
        state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if before is not None and before.state == state:
            return before
        if not stat.S_ISREG(found.st_mode):
            return _Content(state, b"")
        return _Content(state, digest(Credential(path=file).read()))
    except (OSError, ConfigError):
        return None
