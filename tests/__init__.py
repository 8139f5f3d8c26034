"""Tests. Run them from the root of the repository: ``python -m pytest``."""
