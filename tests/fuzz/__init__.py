"""Coverage-guided fuzzing: ``make fuzz``, or ``python -m tests.fuzz --help``."""
