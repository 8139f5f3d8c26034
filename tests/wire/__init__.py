"""Tests of asport_sync.wire."""
