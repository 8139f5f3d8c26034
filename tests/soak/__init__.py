"""A long run with mixed traffic and lost connections, at whose end nothing may have grown: ``python -m tests.soak``."""
