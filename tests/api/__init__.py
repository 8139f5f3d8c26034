"""What a program that uses the package gets: from type checkers, and from the examples of docs/api.md."""
