"""A library that imports its books and keeps them in step with a catalogue, over real HTTP into a real SQLite file.

Run it from the root of the repository::

    python -m examples.books [--seed N]

    books.csv     350 books in the public domain
    flows.py      the two flows: sync_book and import_books        start reading here
    job.py        starts everything, edits, kills, waits           then here
    server.py     the catalogue: an HTTP server in its own process, with trouble by plan
    plan.py       what goes wrong when, and who edits what: a function of the seed
    library.py    the SQLite file
    report.py     what server and SQLite say in the end, and whether it agrees
    screen.py     how it looks
"""

from .flows import import_books, sync_book

__all__ = ["import_books", "sync_book"]
