"""Rows out of files of every format, and what is said of bad ones."""

import gzip
import json

import click
import numpy as np
import pytest

from keras_bert_lib.command_line.rows import (
    Columns,
    Row,
    in_chunks,
    json_lines,
    plain,
    read_rows,
    texts_of,
    write_answers,
)

TEXT, LABELLED = Columns(None, "text", None), Columns(None, "text", None, "label")


def rows(path, content, columns=TEXT):
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return list(read_rows(str(path), columns))


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.csv", 'label,text\nyes,"a ""gem"", of\na film"\nno,電影 😀\n'),
        (
            "a.jsonl",
            '{"text": "a \\"gem\\", of\\na film", "label": "yes"}\n\n{"label": "no", "text": "電影 😀", "x": 1}\n',
        ),
        ("a.ndjson", '{"text": "a \\"gem\\", of\\na film", "label": "yes"}\r\n{"label": "no", "text": "電影 😀"}'),
    ],
)
def test_a_row_is_the_same_in_csv_and_json(tmp_path, name, content):
    expected = [Row('a "gem", of\na film', None, "yes"), Row("電影 😀", None, "no")]
    assert rows(tmp_path / name, content, LABELLED) == expected
    assert rows(tmp_path / f"{name}.gz", content, LABELLED) == expected
    assert rows(tmp_path / "other", content, LABELLED._replace(format=name.split(".")[1][:5].replace("ndjso", "jsonl")))


def test_tsv_has_no_quotes(tmp_path):
    assert rows(tmp_path / "a.tsv", 'text\tlabel\n"a gem\t1\r\nof "a" film\t0\n', LABELLED) == [
        Row('"a gem', None, "1"),
        Row('of "a" film', None, "0"),
    ]


def test_plain_text_has_a_text_in_each_line_empty_ones_too(tmp_path):
    found = rows(tmp_path / "a.txt", "\ufeffa gem\r\n\n  of\u2028a film")
    assert found == [
        Row("a gem"),
        Row(""),
        Row("  of\u2028a film"),
    ]


def test_columns_are_named_by_the_options(tmp_path):
    columns = Columns(None, "premise", "hypothesis", "gold")
    found = rows(tmp_path / "a.csv", "gold,hypothesis,premise\n1,b,a\n", columns)
    assert found == [Row("a", "b", "1")]
    assert texts_of(found) == (["a"], ["b"])


def test_numbers_are_labels_in_json(tmp_path):
    assert rows(tmp_path / "a.jsonl", '{"text": "a", "label": 3}', LABELLED) == [Row("a", None, "3")]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "text,label\na,1\nb\n", r"a\.csv, line 3: expected 2 cells \(text, label\). Found: 1\."),
        ("a.csv", 'text,label\n"a\nb",1\nc,2,3\n', r"line 4: expected 2 cells .* Found: 3"),
        ("a.csv", 'text,label\n"a,1\n', "line 2: no CSV"),
        ("a.csv", "body,label\na,1\n", "line 2: expected a column 'text'. Found: 'body', 'label'. Name it with --text"),
        ("a.csv", "text,label\na,\n", "line 2: expected a label in 'label', a string or an integer. Found: \"\""),
        ("a.csv", "text,text\na,b\n", r"line 1: expected different names of columns. .*\['text'\]"),
        ("a.csv", b"text,label\n\xff,1\n", "line 2: not UTF-8"),
        ("a.jsonl", '{"text": "a", "label": 1}\n[1]\n', r"line 2: expected a JSON object. Found: \[1\]"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text"\n', "line 2: expected a JSON object, but it is no JSON"),
        ("a.jsonl", "[" * 100_000, "line 1: expected a JSON object, but it is no JSON"),
        ("a.jsonl", '{"text": null, "label": 1}', "line 1: expected a string in 'text'. Found: null"),
        ("a.jsonl", '{"text": "a", "label": true}', "line 1: expected a label in 'label'.* Found: true"),
    ],
)
def test_bad_rows_are_named_with_what_was_expected(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        rows(tmp_path / name, content, LABELLED)


def test_rows_before_a_bad_one_are_given(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{}\n')
    reader = read_rows(str(tmp_path / "a.jsonl"), TEXT)
    assert next(reader) == Row("a")
    with pytest.raises(ValueError, match=r"line 2: expected a column 'text'\. Found: nothing"):
        next(reader)


def test_a_cut_file_is_named(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a gem\n" * 99)[:-9])
    with pytest.raises(ValueError, match=r"a\.txt\.gz is cut off or damaged"):
        list(read_rows(str(tmp_path / "a.txt.gz"), TEXT))


def test_wrong_usage_is_said_before_the_file_is_opened():
    with pytest.raises(click.UsageError, match=r"data\.xlsx: the format is not clear .* Pass --format csv|tsv"):
        read_rows("data.xlsx", TEXT)
    with pytest.raises(click.UsageError, match=r"a\.txt is plain text, which has no column of labels"):
        read_rows("a.txt", LABELLED)


def test_chunks_are_in_order():
    assert list(in_chunks(map(Row, "abcde"), 2)) == [[Row("a"), Row("b")], [Row("c"), Row("d")], [Row("e")]]


def test_answers_are_json_whatever_the_text(tmp_path):
    answers = {
        "probabilities": np.array([[0.1, 1 / 3], [np.nan, np.inf]], "float32"),
        "label": np.array(["é", b"b"], object),
        "count": np.array([2**53 + 1, -1]),
    }
    with json_lines(str(tmp_path / "a.jsonl")) as write:
        write_answers(write, [Row("half a \ud83d pair"), Row("電影", "\x00")], answers)
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines[1] == '{"text": "電影", "second": "\\u0000", "count": -1, "label": "b", "probabilities": [null, null]}'
    assert json.loads(lines[0])["text"] == "half a \ud83d pair"
    assert '"probabilities": [0.1, 0.33333334]' in lines[0]


def test_digits_of_a_float32_lead_back_to_it():
    numbers = np.random.default_rng(0).normal(size=1_000).astype("float32")
    assert (np.array(plain(numbers)).astype("float32") == numbers).all()
