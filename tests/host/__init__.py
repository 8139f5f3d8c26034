"""The host, and what it gives to sessions."""
