"""The command ``asport-sync``: the library with files instead of arguments.

Exit status: 0 after SIGINT or SIGTERM, and after a successful check; 1 if a configuration is wrong or a start fails,
with one message on stderr; 2 for a wrong command line; 130 after a second SIGINT; 141 if stdout is a pipe without a
reader.
"""

from __future__ import annotations

from collections.abc import Sequence

from asport_sync.errors import NativeLibraryError

try:
    from asport_sync.cli.main import main
except NativeLibraryError as problem:
    _problem = str(problem)

    def main(argv: Sequence[str] | None = None) -> int:
        """Prints why the command cannot run, whatever its arguments are."""
        from asport_sync.cli import output

        output.complain(_problem)
        return 1


__all__ = ["main"]
