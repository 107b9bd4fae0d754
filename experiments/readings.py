"""Which readings of the method serve on a benchmark: chosen on one split, reported on another.

python -m experiments.readings                              # on the miniature world
python -m experiments.readings --dataset=ade20k --data_dir=DIR --tune_split=training --limit=500

For each family of readings, attention source and method the readings are searched on --tune_split
by a fixed rule (experiments.study.search). What was chosen, the bundle it began from and the
controls (raw logits of the same start, plain propagation) are then measured once on --split, with
paired bootstrap intervals over pictures. Each start's maps are also compared to the naclip start's,
which real checkpoints have the right way up: a negative rank correlation says that the start is
inverted.

Leaves study.json and study.md; every run has a folder of its own, and what was cut off goes on.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from absl import flags

from dsolo_jax.readings import BUNDLES, Readings
from dsolo_jax.utils.files import atomic, write_json
from experiments import ablation, bootstrap, common, study
from experiments.ablation import Setting

_DATASET = common.define_dataset("miniature")
_MODEL = common.define_model(_DATASET)
_FAMILIES = flags.DEFINE_list("families", list(BUNDLES), "Bundles that the search begins from.")
_SOURCES = flags.DEFINE_list("sources", ["appearance", "clip"], "Attention sources.")
_METHODS = flags.DEFINE_list("methods", list(study.OPTIONS), "Methods that are searched.")
_TUNE_SPLIT = flags.DEFINE_string("tune_split", "tune", "Where readings are chosen.")
_TUNE_LIMIT = flags.DEFINE_integer("tune_limit", 300, "Pictures of it.", lower_bound=2)
_LIMIT = flags.DEFINE_integer("limit", None, "Pictures of --split; all by default.", lower_bound=2)
_ROUNDS = flags.DEFINE_integer("rounds", 2, "Of the search, at most.", lower_bound=0)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Pictures at a time.", lower_bound=1)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Default: outputs/<dataset>_readings.")


def main() -> None:
    output_dir = Path(
        _OUTPUT_DIR.value or f"outputs/{_DATASET.dataset.value}_readings"
    ).expanduser()
    protocol = _DATASET.protocol(_MODEL)
    of_held_out, model_config = _DATASET.settings(protocol), _MODEL.chosen()
    of_tune = of_held_out | {"split": _TUNE_SPLIT.value}
    tune, held_out = common.load_dataset(of_tune), common.load_dataset(of_held_out)
    load = partial(_MODEL.load, protocol)
    counts = bootstrap.draws(len(tune.ids[: _TUNE_LIMIT.value]))

    upright = study.uprightness(load(), tune, min(50, len(tune)))
    print("Rank correlation with the naclip start's maps (mean over classes and pictures):")
    for start, rho in upright.items():
        print(f"  {start:10} {rho:+.2f}  {'upright' if rho > 0 else 'inverted'}")

    def measure(method: str, source: str, variants: Mapping[str, Readings]):
        settings = {
            label: Setting(method, readings, (("attention", source),))
            for label, readings in variants.items()
        }
        folders = {study.digest(setting): setting for setting in settings.values()}
        tallies = ablation.measure(
            load,
            tune,
            folders,
            output_dir / "tune",
            of_tune | model_config,
            limit=_TUNE_LIMIT.value,
            batch_size=_BATCH_SIZE.value,
            what=f"{source} {method}",
        )
        return {label: tallies[study.digest(setting)] for label, setting in settings.items()}

    chosen = {}
    for family in _FAMILIES.value:
        for source in _SOURCES.value:
            for method in _METHODS.value:
                chosen[family, source, method] = study.search(
                    BUNDLES[family],
                    study.OPTIONS[method] | study.OF_FAMILY[family],
                    partial(measure, method, source),
                    counts,
                    rounds=_ROUNDS.value,
                )

    settings, compared = study.held_out(chosen)
    tallies = ablation.measure(
        load,
        held_out,
        {ablation.folder(label): setting for label, setting in settings.items()},
        output_dir / "held_out",
        of_held_out | model_config,
        limit=_LIMIT.value,
        batch_size=_BATCH_SIZE.value,
        what="held out",
    )
    tallies = {label: tallies[ablation.folder(label)] for label in settings}
    counts = bootstrap.draws(len(held_out.ids[: _LIMIT.value]))
    rows = study.report(tallies, compared, counts)
    text = study.markdown(rows, chosen)
    print(text)
    with atomic(output_dir / "study.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    content = {
        "config": of_held_out | model_config | {"tune_split": _TUNE_SPLIT.value},
        "rank_correlation": upright,
        "searches": {
            ", ".join(key): {
                "chosen": dataclasses.asdict(readings),
                "steps": [step._asdict() for step in steps],
            }
            for key, (readings, steps) in chosen.items()
        },
        "held_out": [row._asdict() for row in rows],
    }
    write_json(output_dir / "study.json", content)
    print(f"written to {output_dir}: study.md, study.json and the runs")


if __name__ == "__main__":
    common.run(main)
