"""The command line: ``python -m caravela run | check | show TARGET``."""
