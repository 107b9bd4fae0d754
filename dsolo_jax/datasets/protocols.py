"""How the field runs each benchmark: every value in one table, each of them to be overridden.

Sources: the configs and name lists of NACLIP (github.com/sinahmr/NACLIP, configs/), which RF-CLIP,
CASS, SC-CLIP, PEARL and GLA-CLIP run with too, and the dataset classes of mmsegmentation 1.1.1.
"""

import dataclasses
from pathlib import Path
from typing import Any

from dsolo_jax.background import Threshold
from dsolo_jax.datasets.classes import read_classes
from dsolo_jax.utils.checks import choose

# Words that stand for the classes, a list for each benchmark in vocab/. NACLIP's have synonyms, and
# 26 words for the background; ProxyCLIP's are the same but for voc21, voc20 and coco_object, where
# they have one word a class; plain is the official names.
VOCABULARIES = ("naclip", "proxyclip", "plain")

# What makes a pixel background, where class 0 is that:
#   none              no class is the background
#   words             class 0 is scored by its words, as every class is by its own
#   threshold         and wins besides where the largest probability is below the threshold
#   logits_threshold  "threshold" with --method=logits, which is what the field's methods score by,
#                     and "words" with every other method: a discrepancy is no probability
BACKGROUND_RULES = ("none", "words", "threshold", "logits_threshold")

BACKGROUND = "background"


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What is the benchmark's, not the method's.

    short_side, long_side: working size of a picture in CLIP, pixels: the aspect ratio is kept, the
        long side capped; mmsegmentation's scale (long_side, short_side).
    vocabulary, background_rule: see `VOCABULARIES`, `BACKGROUND_RULES`.
    probability_threshold: a pixel whose largest class probability is below it is background.
    logit_scale: probabilities are softmax(logit_scale * cosine).
    reduce_zero_label: the stored label 0 does not count and is no class; the others move down.
    background_words: of class 0, separated by ", ", instead of the vocabulary's.
    crop, stride: of windows, pixels of the resized picture, see `dsolo_jax.windows`; None takes the
        picture whole, as DSLO does. NACLIP, SCLIP and ClearCLIP take windows of 224 every 112.
    area_threshold: a class that has at most this share of all pixels but the background's becomes
        background; None leaves it out. SCLIP takes 0.1 on voc21.
    """

    short_side: int
    long_side: int
    vocabulary: str
    background_rule: str
    probability_threshold: float | None
    logit_scale: float
    reduce_zero_label: bool
    background_words: str | None = None
    crop: int | None = None
    stride: int | None = None
    area_threshold: float | None = None

    def __post_init__(self):
        choose("vocabulary", self.vocabulary, VOCABULARIES)
        rule, threshold = self.background_rule, self.probability_threshold
        if not choose("background rule", rule, BACKGROUND_RULES).endswith("threshold"):
            if threshold is not None:
                raise ValueError(
                    f"probability_threshold {threshold} is not used: the background rule is "
                    f"{rule!r}; give --background_rule=threshold too"
                )
        elif threshold is None or not 0 < threshold < 1:
            raise ValueError(
                f"background rule {rule!r} needs a probability_threshold between 0 and 1, such as "
                f"0.1, found {threshold}"
            )
        if (area := self.area_threshold) is None:
            return
        if rule == "none":
            raise ValueError(
                f"area_threshold is {area}, but no class is the background, which small classes "
                "would become: the background rule is 'none'; leave it out"
            )
        if not 0 < area < 1:
            raise ValueError(
                f"area_threshold is {area}; wanted a share between 0 and 1, such as 0.1"
            )

    def threshold(self, method: str) -> Threshold | None:
        """Gives the thresholds that are applied to scores of `method`: on probability by the rule,
        on areas with every method."""
        probability = self.probability_threshold
        if self.background_rule == "logits_threshold" and method != "logits":
            probability = None
        if probability is None and self.area_threshold is None:
            return None
        return Threshold(probability, self.logit_scale, self.area_threshold)


# fmt: off
PROTOCOLS = {
    #                       short  long  vocabulary  background rule     prob. logit reduce
    #                       side   side                                  thd.  scale zero label
    "voc21":       Protocol(336,   2048, "naclip",   "logits_threshold", 0.1,  40.0, False),
    "voc20":       Protocol(336,   2048, "naclip",   "none",             None, 40.0, True),
    "context60":   Protocol(336,   2048, "naclip",   "logits_threshold", 0.1,  40.0, False),
    "context59":   Protocol(336,   2048, "naclip",   "none",             None, 40.0, True),
    "coco_object": Protocol(336,   2048, "naclip",   "logits_threshold", 0.1,  40.0, False),
    "coco_stuff":  Protocol(336,   2048, "naclip",   "none",             None, 40.0, False),
    "cityscapes":  Protocol(560,   2048, "naclip",   "none",             None, 40.0, False),
    "ade20k":      Protocol(336,   2048, "naclip",   "none",             None, 40.0, True),
    # Drawn pictures, and one's own; their classes do not come from vocab/.
    "miniature":   Protocol(336,   2048, "plain",    "none",             None, 40.0, False),
    "folder":      Protocol(336,   2048, "plain",    "none",             None, 40.0, False),
}
# fmt: on
_UNLISTED = ("miniature", "folder")


def protocol(name: str, **changes: Any) -> Protocol:
    """Gives the benchmark's protocol, with `changes` of its fields that are not None.

    A change of `reduce_zero_label` takes the class 0 away, or adds it, and the background rule with
    it, unless that is changed too.

    Raises:
        ValueError: an unknown vocabulary or rule; a rule that the benchmark's classes do not allow,
            or whose threshold is missing.
    """
    official = PROTOCOLS[choose("dataset", name, PROTOCOLS)]
    changes = {field: value for field, value in changes.items() if value is not None}
    if changes.get("reduce_zero_label", official.reduce_zero_label) != official.reduce_zero_label:
        rule = "none" if changes["reduce_zero_label"] else "words"
        changes = {"background_rule": rule} | changes
    if changes.get("background_rule") in ("none", "words"):
        changes = {"probability_threshold": None} | changes
    chosen = dataclasses.replace(official, **changes)
    if name in _UNLISTED:
        return chosen
    [first, *_], _ = classes(name, chosen)
    if (first == BACKGROUND) == (chosen.background_rule == "none"):
        raise ValueError(
            f"background rule {chosen.background_rule!r} does not fit {name}, whose class 0 is "
            f"{first!r}: 'none' is for classes without {BACKGROUND!r}, and the others with it"
        )
    return chosen


def classes(name: str, protocol: Protocol) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Lists the official names of a benchmark's classes, and the words of each; ValueError where
    words are given for a background that is not there."""
    names, words = _listed(name, "plain"), _listed(name, protocol.vocabulary)
    reduced = PROTOCOLS[name].reduce_zero_label
    if protocol.reduce_zero_label and not reduced:
        names, words = names[1:], words[1:]
    elif reduced and not protocol.reduce_zero_label:
        names, words = (BACKGROUND, *names), (BACKGROUND, *words)
    if protocol.background_words is None:
        return names, words
    if names[0] != BACKGROUND:
        raise ValueError(
            f"background_words are {protocol.background_words!r}, but {name} has no background "
            f"class: its class 0 is {names[0]!r}; leave them out"
        )
    return names, (protocol.background_words, *words[1:])


def _listed(name: str, vocabulary: str) -> tuple[str, ...]:
    path = Path(__file__).parent / "vocab" / vocabulary / f"{name}.txt"
    if vocabulary == "proxyclip" and not path.is_file():  # the same as NACLIP's
        return _listed(name, "naclip")
    return read_classes(path)
