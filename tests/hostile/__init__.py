"""What strangers may do to a server, and what it costs. ``python -m tests.hostile`` measures it."""
