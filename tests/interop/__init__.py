"""Our client and server against the reference implementation, in both of its dialects."""
