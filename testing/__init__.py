"""For tests of your own flows: run them under a virtual clock, in this process, in microseconds."""

from .scripts import Script, takes
from .simulate import Simulation, simulate

__all__ = ["Script", "Simulation", "simulate", "takes"]
