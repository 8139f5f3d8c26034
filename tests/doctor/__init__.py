"""The doctor: each of its findings, by the fault that it names."""
