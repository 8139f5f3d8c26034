"""Tests of threads, timers, sockets, signals and logs."""
