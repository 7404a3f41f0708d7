"""What flows cost: ``python -m benchmarks`` from the root of the repository, see :mod:`.__main__`."""
