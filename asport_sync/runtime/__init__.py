"""What both sides of a tunnel run on: threads, timers, sockets, signals, logs. Knows nothing of QUIC or ASPORT."""
