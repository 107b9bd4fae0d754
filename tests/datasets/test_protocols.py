import dataclasses

import pytest

from dsolo_jax import datasets
from dsolo_jax.background import BACKGROUND_WORDS, Threshold
from dsolo_jax.datasets.protocols import PROTOCOLS, classes, protocol

# (short side, probability threshold, reduce_zero_label) of NACLIP's configs and mmsegmentation.
PUBLISHED = {
    "voc21": (336, 0.1, False),
    "voc20": (336, None, True),
    "context60": (336, 0.1, False),
    "context59": (336, None, True),
    "coco_object": (336, 0.1, False),
    "coco_stuff": (336, None, False),
    "cityscapes": (560, None, False),
    "ade20k": (336, None, True),
}


def test_the_table_is_the_published_one():
    assert datasets.NAMES == tuple(PUBLISHED)
    for name, (short_side, threshold, reduce) in PUBLISHED.items():
        ours = protocol(name)
        assert (ours.short_side, ours.probability_threshold) == (short_side, threshold)
        assert (ours.long_side, ours.logit_scale, ours.vocabulary) == (2048, 40, "naclip")
        assert ours.reduce_zero_label == reduce


def test_the_threshold_is_of_logits_unless_asked_for():
    """A discrepancy is no probability."""
    ours = protocol("voc21")
    assert ours.threshold("logits") == Threshold(0.1, 40)
    assert ours.threshold("velocity") is ours.threshold("kl") is None
    asked = protocol("voc21", background_rule="threshold", probability_threshold=0.2)
    assert asked.threshold("velocity") == Threshold(0.2, 40)
    assert protocol("voc21", background_rule="words").threshold("logits") is None
    assert protocol("ade20k").threshold("logits") is None


def test_the_area_threshold_is_of_every_method():
    ours = protocol("voc21", area_threshold=0.1)
    assert ours.threshold("logits") == Threshold(0.1, 40, 0.1)
    assert ours.threshold("velocity") == Threshold(None, 40, 0.1)
    words = protocol("voc21", background_rule="words", area_threshold=0.2)
    assert words.threshold("logits") == Threshold(None, 40, 0.2)


def test_every_value_can_be_overridden():
    changes = {
        "short_side": 448,
        "long_side": 1024,
        "vocabulary": "proxyclip",
        "background_words": "sky, wall",
        "background_rule": "threshold",
        "probability_threshold": 0.25,
        "logit_scale": 50.0,
        "crop": 224,
        "stride": 112,
        "area_threshold": 0.1,
    }
    changed = dataclasses.asdict(protocol("coco_object", **changes))
    assert changes.items() <= changed.items()
    assert set(changes) | {"reduce_zero_label"} == set(changed)
    assert protocol("coco_object", **dict.fromkeys(changes)) == PROTOCOLS["coco_object"]


@pytest.mark.parametrize(
    "name, changes",
    [
        ("voc21", {"background_rule": "words"}),
        ("voc21", {"reduce_zero_label": True}),
        ("voc20", {"reduce_zero_label": False, "background_words": "sky"}),
        ("coco_object", {"background_rule": "threshold", "probability_threshold": 0.3}),
        ("cityscapes", {"vocabulary": "plain", "short_side": 100}),
    ],
)
def test_a_record_gives_the_protocol_back(name, changes):
    chosen = protocol(name, **changes)
    assert protocol(name, **dataclasses.asdict(chosen)) == chosen


def test_background_words_are_those_of_class_0():
    assert classes("voc21", protocol("voc21"))[1][0] == ", ".join(BACKGROUND_WORDS)
    names, words = classes("voc21", protocol("voc21", background_words="sky, sea"))
    assert (names[0], words[0]) == ("background", "sky, sea")
    assert words[1:] == classes("voc21", protocol("voc21"))[1][1:]
    assert classes("voc21", protocol("voc21", vocabulary="plain"))[1][0] == "background"


def test_reducing_the_zero_label_makes_one_of_a_pair_the_other():
    """voc21 without its zero label is voc20, and the other way round but for the words."""
    for whole, reduced in (("voc21", "voc20"), ("context60", "context59")):
        changed = protocol(whole, reduce_zero_label=True)
        assert changed == PROTOCOLS[reduced]
        assert classes(whole, changed) == classes(reduced, PROTOCOLS[reduced])
        changed = protocol(reduced, reduce_zero_label=False)
        assert changed.background_rule == "words"
        assert classes(reduced, changed)[0] == classes(whole, PROTOCOLS[whole])[0]
        assert classes(reduced, changed)[1][0] == "background"
        tables = [
            datasets.benchmark(name).label_table(coding, p)
            for name, p in ((whole, PROTOCOLS[whole]), (reduced, changed))
            for coding in list(datasets.benchmark(name).label_tables)[:1]
        ]
        assert tables[0] == tables[1]
    names, _ = classes("ade20k", protocol("ade20k", reduce_zero_label=False))
    assert len(names) == 151


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("voc22", {}, "unknown dataset 'voc22'.*'voc21'"),
        ("voc21", {"vocabulary": "naklip"}, "unknown vocabulary 'naklip'.*'naclip'"),
        ("voc21", {"background_rule": "word"}, "unknown background rule 'word'.*'words'"),
        ("voc21", {"background_rule": "none"}, "'none' does not fit voc21.*'background'"),
        ("ade20k", {"background_rule": "words"}, "'words' does not fit ade20k.*'wall'"),
        ("ade20k", {"probability_threshold": 0.1}, "not used.*--background_rule=threshold"),
        ("voc20", {"background_words": "sky"}, "voc20 has no background.*'aeroplane'"),
        (
            "voc21",
            {"probability_threshold": 1.5},
            "needs a probability_threshold between 0 and 1.* 1.5",
        ),
        ("voc20", {"area_threshold": 0.1}, "area_threshold is 0.1, but no class is the background"),
        ("voc21", {"area_threshold": 1.0}, "area_threshold is 1.0; wanted .* between 0 and 1"),
        ("folder", {"background_rule": "threshold"}, "needs a probability_threshold.*None"),
    ],
)
def test_what_does_not_fit_is_refused(name, changes, message):
    with pytest.raises(ValueError, match=message):
        protocol(name, **changes)
