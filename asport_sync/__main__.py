"""``python -m asport_sync``: the same as the command ``asport-sync``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
