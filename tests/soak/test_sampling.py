"""What a process holds, when it is there and when it is not."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.soak.sampling import sample
from tests.support.waiting import wait_until


def test_of_a_process_that_lives() -> None:
    taken = sample(os.getpid())
    assert taken.memory > 1 << 20
    assert taken.threads >= 1
    assert taken.descriptors >= 3


def test_one_that_has_ended_and_was_not_waited_for_is_gone() -> None:
    with subprocess.Popen(["true"]) as process:
        wait_until(lambda: ") Z " in Path(f"/proc/{process.pid}/stat").read_text(), 10, "it has ended")
        with pytest.raises(ProcessLookupError, match=f"process {process.pid} has ended"):
            sample(process.pid)
