"""Shorter forms of captions."""

import pytest
from pydantic import ValidationError

from t2i.data.captions import Captions

FORMS = [
    {"match": r"(?P<ink>\w+) (?P<thing>.+) icon on a (?P<ground>\w+) background", "use": ["{thing}", "{ink} {thing}"]},
    {
        "match": r"(?P<thing>.+), (?P<style>\w+) emoji(?: on a (?P<ground>\w+) background)?",
        "use": ["{thing}, {style} emoji", "{thing} on a {ground} background", "{thing}"],
    },
]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("red police car icon on a yellow background", ["police car", "red police car"]),
        ("frog, noto emoji on a blue background", ["frog, noto emoji", "frog on a blue background", "frog"]),
        ("frog, noto emoji", ["frog"]),  # no background to keep, and the whole caption is not shorter
        ("a photo of a frog", []),
    ],
)
def test_shorter_forms(caption, expected):
    assert Captions.model_validate({"forms": FORMS}).shorter(caption) == expected


def test_the_default_keeps_what_stands_before_a_comma():
    assert Captions().shorter("a frog, green, 4k") == ["a frog"] and Captions().shorter("a frog") == []


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"match": "(", "use": ["x"]}, "is not a regular expression"),
        ({"match": "(?P<a>.+)", "use": ["{b}"]}, "the pattern has no group 'b' .its groups: a."),
        ({"match": "x", "use": []}, "at least 1 item"),
    ],
)
def test_forms_that_cannot_work_are_refused(entry, message):
    with pytest.raises(ValidationError, match=message):
        Captions.model_validate({"forms": [entry]})
