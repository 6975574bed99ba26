"""How fast are texts cut into ids, with and without offsets, beside the Rust library and the other in-graph tokenizers?

    python -m benchmarks.tokenizer --corpus english TEXTS.txt VOCABULARY.txt

A corpus is a UTF-8 file, a text a line. How to read the result: README.md beside it.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks import report
from benchmarks.contest import Contestant, contest, quiet_environment

# Row -> title, and the row that its rate is compared with.
ROWS = {
    "ids": ("this library, ids", "rust_ids"),
    "core_ids": ("this library, ids, backend=tensorflow", "rust_ids"),
    "rust_ids": ("Rust tokenizers, encode_batch_fast", "rust_ids"),
    "fast_bert": ("tf_text.FastBertTokenizer, ids (not equal)", "rust_ids"),
    "keras_hub": ("KerasHub BertTokenizer, ids (not equal)", "rust_ids"),
    "offsets": ("this library, with offsets", "rust_offsets"),
    "core_offsets": ("this library, with offsets, backend=tensorflow", "rust_offsets"),
    "rust_offsets": ("Rust tokenizers, encode_batch", "rust_offsets"),
}


def sample(source: Path, megabytes: float, directory: Path) -> Path:
    """The first lines of a file that are not empty, as a file of its own."""
    lines, size = [], 0
    with source.open(encoding="utf-8") as file:
        for line in file:
            if line.strip() and size < megabytes * 1e6:
                lines.append(line.rstrip("\r\n"))
                size += len(line.encode())
    path = directory / source.name
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def table(name: str, texts: Path, vocabulary: Path, contestants: list[Contestant]) -> list[str]:
    content = texts.read_text(encoding="utf-8")
    lines, size = content.split("\n"), len(content.encode())
    ascii_share = sum(line.isascii() for line in lines) / len(lines)
    best = {c.name: max(c.measured["processor_rate"]) for c in contestants if not c.absent}
    mean = size / len(lines)
    rows = [
        f"### {name}: {len(lines):,} texts of {mean:.0f} bytes, {ascii_share:.0%} pure ASCII; {vocabulary.name}",
        "",
        "| | MB per processor second, best | median | spread | MB/s, best | of Rust's |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for c in contestants:
        title, peer = ROWS[c.name]
        if c.absent:
            rows.append(f"| {title} | {c.absent} | | | | |")
            continue
        rates = sorted(c.measured["processor_rate"])
        median, tenth = statistics.median(rates), len(rates) // 10
        spread = (rates[-1 - tenth] - rates[tenth]) / median
        rows.append(
            f"| {title} | {rates[-1]:.1f} | {median:.1f} | {spread:.0%} | {max(c.measured['wall_rate']):.1f} "
            f"| {best[c.name] / best[peer]:.1f} x |"
        )
    return [*rows, ""]


def main() -> None:
    parser = report.arguments(__doc__, rounds=7)
    parser.add_argument("--corpus", nargs=3, action="append", required=True, metavar=("NAME", "TEXTS", "VOCABULARY"))
    parser.add_argument("--cased", nargs="*", default=[], metavar="NAME", help="corpora that are not lowercased")
    parser.add_argument("--megabytes", type=float, default=3.0, help="how much of each corpus")
    parser.add_argument("--batch-size", type=int, default=256)
    options = parser.parse_args()

    tables, described = [], None
    with tempfile.TemporaryDirectory() as directory:
        for name, source, vocabulary in options.corpus:
            texts = sample(Path(source), options.megabytes, Path(directory))
            job = {"texts": str(texts), "vocabulary": str(Path(vocabulary).resolve()), "threads": options.threads}
            job |= {"batch_size": options.batch_size, "lowercase": name not in options.cased}

            def start(job=job):
                return [
                    Contestant(
                        row,
                        "tokenizer_contestant",
                        report.peer("tensorflow", options) if row == "keras_hub" else sys.executable,
                        job,
                        quiet_environment(options.threads),
                    )
                    for row in ROWS
                ]

            contestants = contest(start, options.rounds, name)
            described = described or contestants
            tables += table(name, texts, Path(vocabulary), contestants)
    heading = report.heading("Texts to ids, beside the Rust library", "tokenizer", options, described)
    report.write([*heading, f"Batches of {options.batch_size} texts.", "", *tables], "tokenizer", options)


if __name__ == "__main__":
    main()
