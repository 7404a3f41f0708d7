"""The library: one SQLite file. It also keeps a record of what it refused, so that it can be asked in the end."""

import sqlite3
from contextlib import closing
from pathlib import Path

SCHEMA = """
create table books (id integer primary key, title text not null, author text not null, year integer not null,
                    unique (title, author));
create table refusals (id integer primary key, title text not null, author text not null);
"""


class Duplicate(Exception):
    """The library has this book."""


def found(path: Path) -> None:
    """Make an empty library."""
    with closing(sqlite3.connect(path)) as db:
        db.executescript(SCHEMA)


def create_book(path: str, title: str, author: str, year: int) -> int:
    """Returns the number of the new book; ``Duplicate`` if it is there. On disk when this returns."""
    with closing(sqlite3.connect(path, timeout=10)) as db, db:
        row = db.execute(
            "insert into books (title, author, year) values (?, ?, ?) on conflict do nothing returning id",
            (title, author, year),
        ).fetchone()
        if row is not None:
            return int(row[0])
        db.execute("insert into refusals (title, author) values (?, ?)", (title, author))
    raise Duplicate(f"{title} by {author}")


def books(path: Path) -> list[tuple[str, str, int]]:
    """Title, author and year of every book, in the order in which they came."""
    with closing(sqlite3.connect(path)) as db:
        return db.execute("select title, author, year from books order by id").fetchall()


def refusals(path: Path) -> int:
    """How many duplicates were refused."""
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("select count(*) from refusals").fetchone()[0])
