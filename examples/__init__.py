"""What caravela looks like in use. Run one from the root of the repository: ``python -m examples.books``."""
