import time

import pytest

from keras_bert_lib.preprocessing import split_sentences


@pytest.mark.parametrize(
    "sentences",
    [
        ["One sentence.", "Another one!", "A third?"],
        ["He left…", "She stayed."],
        ["No mark at the end"],
        ['"Who goes there?" asked the guard.', "“Nobody.”", "(He lied.)", "Then he ran."],
        ["It was 1984.", "3 men came."],
        ["Dr. Smith and Mrs. J. S. Jones of Fig. 3 met St. John, e.g. Peter.", "They spoke."],
        ["It was I.", "He knew."],
        ["Élan vital.", "Über alles.", "Это он.", "¿Qué?", "«Oui.»", "—Non."],
        ["Version 2.0 of www.example.com is out.", "Get it."],
        ["Wait... what? he said."],
        ["He lived in the U.S. Army camp."],
    ],
)
def test_a_paragraph_is_cut_where_its_sentences_end(sentences):
    assert split_sentences(" ".join(sentences)) == sentences
    assert split_sentences("  " + " \t ".join(sentences) + " \n") == sentences


@pytest.mark.parametrize("text", ["", "  \n", "\t"])
def test_white_space_holds_no_sentence(text):
    assert split_sentences(text) == []


def test_nothing_but_white_space_is_lost():
    text = "A b. C d! 'E f?' G (H.) I. J 1. 2... x. Y"
    assert "".join(split_sentences(text)).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("unit", ["Mr. ", "a", "A. ", ".", '."', ". ", "”", "a.b", " "])
def test_time_is_linear_in_hostile_text(unit):
    """In time in square it would take a minute."""
    text = unit * (100_000 // len(unit)) + ". A"
    started = time.process_time()
    split_sentences(text)
    assert time.process_time() - started < 3


def test_words_that_are_abbreviations_before_numbers_alone():
    sentences = ["Look at fig. 3 and no. 7.", "She said no.", "It was art.", "Then he sat.", "He saw the sun.", "Why?"]
    assert split_sentences(" ".join(sentences)) == sentences
