"""What is used of multiprocess, which ships no types: it is multiprocessing with dill, name by name."""

from multiprocessing import Array as Array
from multiprocessing import Event as Event
from multiprocessing import Lock as Lock
from multiprocessing import Pipe as Pipe
from multiprocessing import Process as Process
from multiprocessing import Queue as Queue
from multiprocessing import SimpleQueue as SimpleQueue
from multiprocessing import Value as Value
from multiprocessing import get_context as get_context
