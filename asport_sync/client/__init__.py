"""The private end of a tunnel: connects to a server and relays to local services."""
