"""Bounds that hold: what is short refuses new work and keeps the old, and who stalls stalls nobody else."""
