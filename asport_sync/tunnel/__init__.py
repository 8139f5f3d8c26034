"""Policy of servers and clients: authentication, port assignment, and the handling of streams and UDP packets.

The bytes of relayed connections never pass through this package; see docs/architecture.md.
"""
