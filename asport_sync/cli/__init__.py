"""The command ``asport-sync``: the library with files instead of arguments.

Exit status: 0 after an end by SIGINT or SIGTERM, and after a check that found nothing; 1 when a configuration is wrong
or a start fails, with one message on stderr; 2 for a wrong command line; 129 after SIGHUP; 130 after a second SIGINT;
141 where nobody reads what it prints.
"""

from asport_sync.cli.main import main

__all__ = ["main"]
