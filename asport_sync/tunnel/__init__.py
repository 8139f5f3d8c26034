"""Servers and clients: who may join, which port is whose, and what is done with streams and UDP packets.

Policy only. Bytes of relayed connections never come through here; see docs/architecture.md.
"""
