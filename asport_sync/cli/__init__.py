"""The command ``asport-sync``: the library with files instead of arguments.

Exit status: 0 after SIGINT or SIGTERM, and after a successful check; 1 if a configuration is wrong or a start fails,
with one message on stderr; 2 for a wrong command line; 130 after a second SIGINT; 141 if stdout is a pipe without a
reader.
"""

from asport_sync.cli.main import main

__all__ = ["main"]
