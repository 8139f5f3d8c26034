"""The relays that make a bad network do what they are told, and account for all of it."""
