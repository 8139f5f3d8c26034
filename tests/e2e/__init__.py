"""The whole tunnel on loopback, as library and as commands."""
