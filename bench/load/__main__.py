"""`python -m bench.load ARGUMENT ...` builds the program and becomes it; without arguments it says what there is."""

from __future__ import annotations

import os
import sys

from bench.load.build import build

program = str(build())
os.execv(program, [program, *sys.argv[1:]])
