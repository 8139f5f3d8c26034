"""The server: sessions, claims, public ports, policy."""
