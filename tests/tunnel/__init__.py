"""Tests of servers and clients against an engine that is played by the test."""
