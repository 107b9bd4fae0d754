"""Measures readings of the method on a benchmark, beside the paper's ladder of rows I to VII.

python -m experiments.readings --dataset=ade20k --data_dir=DIR --limit=200 \
    --variants="robust; paper; robust,tau=0.5; paper,start=kk"

Whoever has real weights can settle the open readings with it: each variant is a bundle and changes
to it. Each start's maps are also compared to the naclip start's, which real checkpoints have the
right way up: a negative rank correlation says that the start is inverted.
"""

import dataclasses

from absl import flags

from dsolo_jax.files import write_json
from experiments import common, ladder

_DATASET = common.define_dataset()
_MODEL = common.define_model(_DATASET)
_LIMIT = flags.DEFINE_integer("limit", 100, "Only the first pictures.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Pictures at a time.", lower_bound=1)
_VARIANTS = flags.DEFINE_string(
    "variants", "robust; paper", "Separated by ';': a bundle, then name=value after ','."
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON to write.")


def main() -> None:
    protocol = _DATASET.protocol(_MODEL)
    dataset = _DATASET.load(protocol)
    variants = {
        name: ladder.variant(name) for name in map(str.strip, _VARIANTS.value.split(";")) if name
    }
    model = _MODEL.load(protocol)
    count = min(_LIMIT.value, len(dataset))
    miou, uprightness = ladder.measure(
        model, dataset, count, variants, batch_size=_BATCH_SIZE.value
    )
    print(ladder.table(miou))
    print("\nRank correlation with the naclip start's maps (mean over classes and pictures):")
    for start, rho in uprightness.items():
        print(f"  {start:10} {rho:+.2f}  {'upright' if rho > 0 else 'inverted'}")
    if _OUTPUT.value:
        content = {
            "dataset": dataset.name,
            "num_images": count,
            "miou": miou,
            "rank_correlation": uprightness,
            "variants": {name: dataclasses.asdict(r) for name, r in variants.items()},
            "config": _MODEL.settings(model),
        }
        write_json(_OUTPUT.value, content)


if __name__ == "__main__":
    common.run(main)
