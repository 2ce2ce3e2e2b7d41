"Label spaces: no map loses or invents a class, and none guesses."
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fer_bench.core import BenchError
from fer_bench.data import labels
from fer_bench.data.labels import (
    ABAW8,
    AFFECTNET8,
    BASIC7,
    CK7,
    DROPPED,
    FERPLUS8,
    SYNONYMS,
    argmax,
    field_name,
    label_map,
    majority,
)

SPACES = {name: value for name, value in vars(labels).items() if name[-1].isdigit() and isinstance(value, tuple)}


def test_spaces_are_of_the_field():
    assert len(SPACES) == 8
    for name, space in SPACES.items():
        assert len(space) == len(set(space)) == int(name[-1]) and all(field_name(c) == c for c in space)


@pytest.mark.parametrize("source", SPACES)
@pytest.mark.parametrize("target", SPACES)
def test_every_pair_is_a_map_or_refused(source, target):
    source, target = SPACES[source], SPACES[target]
    lost = set(source) - set(target)
    if lost <= set(DROPPED):
        assert label_map(source, target) == {c: c if c in target else None for c in source}
    else:
        with pytest.raises(BenchError, match="trained on .* cannot be tested on .* without a map"):
            label_map(source, target)


def test_eight_to_seven_and_back():
    assert [c for c, to in label_map(FERPLUS8, BASIC7).items() if to is None] == ["contempt"]
    assert [c for c, to in label_map(ABAW8, BASIC7).items() if to is None] == ["other"]
    assert None not in label_map(BASIC7, AFFECTNET8).values()
    with pytest.raises(BenchError, match="'neutral' has no counterpart"): label_map(BASIC7, CK7)
    assert label_map(BASIC7, CK7, drop=("neutral",))["neutral"] is None
    with pytest.raises(BenchError, match="'contempt' has no counterpart"): label_map(FERPLUS8, BASIC7, drop=())


def test_synonyms_meet():
    named = {"Angry": "anger", "HAPPY": "happiness", "sa": "sad"}
    assert label_map(("Angry", "HAPPY", "sa"), ("sad", "anger", "happiness")) == named
    assert [field_name(code) for code in ("AN", "DI", "FE", "HA", "NE", "SA", "SU")] == list(labels.JAFFE7)
    assert field_name("bored") is None and field_name("") is None


@pytest.mark.parametrize("source, target", [
    (("angry", "anger"), BASIC7), (("anger",), ("angry", "anger")), (("a", "b"), ("a", "c")), ((), BASIC7),
    (("contempt",), BASIC7),
    (("anger", "anger"), BASIC7), (BASIC7, ())])
def test_refused(source, target):
    with pytest.raises(BenchError, match="without a map"): label_map(source, target)


WORDS = [word for words in SYNONYMS.values() for word in words]
NAMES = st.sampled_from([*ABAW8, "contempt", *WORDS, "a", "b", "Angry"]) | st.text(max_size=5)


@given(st.lists(NAMES, max_size=9), st.lists(NAMES, max_size=9), st.lists(NAMES, max_size=3))
def test_no_map_loses_or_invents_a_class(source, target, drop):
    try: out = label_map(source, target, drop)
    except BenchError: return
    kept = [to for to in out.values() if to is not None]
    assert list(out) == source and kept and set(kept) <= set(target) and len(set(kept)) == len(kept)
    for name, to in out.items():
        if to is None: assert (field_name(name) or name) in drop
        else: assert name == to or field_name(name) == field_name(to) is not None


@given(st.lists(st.integers(0, 10), min_size=10, max_size=10))
def test_rules_give_a_label_or_a_reason(votes):
    for rule in (majority, argmax):
        label, why = rule(votes)
        assert (label is None) != (why is None) and label in (*FERPLUS8, None)
        if label and rule is argmax: assert votes[FERPLUS8.index(label)] == max(votes)
        if label and rule is majority: assert votes[FERPLUS8.index(label)] > 1
