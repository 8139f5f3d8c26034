"""Servers and clients: who may join, which port is whose, and what is done with streams and UDP packets.

Policy only. Bytes of relayed connections never come through here; see docs/architecture.md.
"""

from asport_sync.tunnel.client import Client
from asport_sync.tunnel.server import Server

__all__ = ["Client", "Server"]
