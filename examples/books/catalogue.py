"""The books that there are.

``books.csv``: titles in their own language (romanised where the script is not Latin, Greek or Cyrillic), authors as
English readers know them, the year of the first edition in book form. Everything in it is in the public domain.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

BOOKS = Path(__file__).with_name("books.csv")


@dataclass(frozen=True, slots=True)
class Book:
    """``id`` is the place in the catalogue, from 1."""

    id: int
    title: str
    author: str
    year: int


def read_books(path: Path = BOOKS) -> list[Book]:
    with path.open(encoding="utf-8", newline="") as lines:
        return [
            Book(number, row["title"], row["author"], int(row["year"]))
            for number, row in enumerate(csv.DictReader(lines), start=1)
        ]
