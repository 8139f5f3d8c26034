"""What a tunnel more in one client costs, within generous limits. The program measures; these are the bounds."""

from __future__ import annotations

from pathlib import Path

from tests.bounds.services import line, measure
from tests.support.certificates import Certificate

MIB = 1 << 20


def test_a_hundred_tunnels_are_one_small_process(tmp_path: Path, certificate: Certificate) -> None:
    """Resident memory includes the program, Python and the libraries, which it shares with others."""
    one, many = (measure(number, tmp_path, certificate) for number in (1, 100))
    print(line(one), line(many), sep="\n")
    assert many.memory < 50 * MIB
    assert many.threads <= one.threads + 4  # workers for look-ups, which end again
    assert many.descriptors - one.descriptors <= 99 + 4  # one UDP socket each
