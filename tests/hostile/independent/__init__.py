"""Peers that keep no rules, played with another QUIC stack, against the running programs."""
