"""Our client towards the reference's server: what it does to notice a loss is plain QUIC, and so is migration."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from tests.e2e.tunnels import PASSWORD, USER
from tests.interop.endpoints import REFERENCE_0_1_2, REFERENCE_0_4_0, Reference, Tunnel
from tests.interop.install import is_installed
from tests.recovery.faults import BRIEF, AddressChanged
from tests.support.certificates import Certificate


class TowardsReference(AddressChanged):
    """The reference's server behind a change of our address."""

    reference: ClassVar[Reference]

    def server_argv(self, certificate: Certificate) -> list[str]:
        """Write the reference's configuration; the command that runs it."""
        tunnel = Tunnel(user=USER, server_password=PASSWORD, port=self.PUBLIC[1])
        listen = (self.path.address_a, self.QUIC_PORT)
        file = self.reference.write_server_config(self.directory, tunnel, listen, certificate)
        return self.reference.argv("asport-server", file)


class Towards012(TowardsReference):
    """The release with the draft's dialect."""

    name = "towards-0.1.2"
    reference = REFERENCE_0_1_2
    dialect: ClassVar[dict[str, str]] = {"dialect": "draft"}


class Towards040(TowardsReference):
    """The release with flags."""

    name = "towards-0.4.0"
    reference = REFERENCE_0_4_0
    dialect: ClassVar[dict[str, str]] = {"dialect": "flags"}


@pytest.mark.parametrize("fault", [Towards012, Towards040], ids=lambda fault: fault.name)
def test_a_connection_to_the_reference_follows_our_address(fault: type[TowardsReference], tmp_path: Path) -> None:
    reason = fault.unavailable()
    if reason is not None:
        pytest.skip(reason)
    if not is_installed(fault.reference.name):
        pytest.skip(f"asport {fault.reference.name} is not installed; make interop builds it")
    with fault(tmp_path, BRIEF) as made:
        for _ in range(3):
            made.once()
