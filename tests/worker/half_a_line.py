"""Imported by a branch of the zygote in a test."""

import sys

sys.stderr.write("half a line")
