"""Tests of asport_sync.config."""
