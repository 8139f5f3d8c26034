"""What both sides of a tunnel run on: threads, timers, sockets, signals, logs. Independent of QUIC and ASPORT."""
