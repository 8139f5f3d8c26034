"""The public end of tunnels: accepts clients, opens public ports for them, and relays to them."""
