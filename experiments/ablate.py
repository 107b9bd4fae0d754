"""Ablates the method on a benchmark: the paper's ladder of rows I to VII, and sweeps.

python -m experiments.ablate                                  # the ladder, on the miniature world
python -m experiments.ablate --tables=ladder,tau,source --limit=100
python -m experiments.ablate --dataset=ade20k --data_dir=DIR --attention=clip \
    --variants="robust; paper; robust,tau=0.5"

Each row is a run like those of experiments.eval, in a folder of its own; what was cut off goes on
when it is started again. Leaves table.md, table.csv and, with matplotlib, a PNG of each table.
"""

from functools import partial
from pathlib import Path

from absl import flags

from dsolo_jax.utils.files import atomic
from experiments import ablation, bootstrap, common, plots

_DATASET = common.define_dataset("miniature")
_MODEL = common.define_model(_DATASET)
_TABLES = flags.DEFINE_list(
    "tables", ["ladder"], f"Some of {', '.join(ablation.TABLES)}; or 'all'."
)
_VARIANTS = flags.DEFINE_string(
    "variants",
    None,
    "Columns, separated by ';': a bundle of readings, then name=value after ','. One by default: "
    "the readings of the other flags.",
)
_SOURCES = flags.DEFINE_list(
    "sources", ["clip", "appearance"], "Attention sources of the table 'source'."
)
_LIMIT = flags.DEFINE_integer("limit", None, "Only the first pictures.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Pictures at a time.", lower_bound=1)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Default: outputs/<dataset>_ablation.")
_PLOTS = flags.DEFINE_bool("plots", True, "Draw the tables; needs matplotlib.")


def main() -> None:
    if _PLOTS.value:
        plots.require()  # before hours of work
    output_dir = Path(
        _OUTPUT_DIR.value or f"outputs/{_DATASET.dataset.value}_ablation"
    ).expanduser()
    names = ablation.TABLES if _TABLES.value == ["all"] else _TABLES.value
    protocol = _DATASET.protocol(_MODEL)
    dataset, load = _DATASET.load(protocol), partial(_MODEL.load, protocol)
    variants = {"": _MODEL.resolve_readings()}
    if _VARIANTS.value:
        texts = [text.strip() for text in _VARIANTS.value.split(";")]
        variants = {text: ablation.variant(text) for text in texts if text}
    model = load() if "layer" in names else None
    tables = {name: ablation.rows(name, model, _SOURCES.value) for name in names}
    settings = {
        ablation.folder(variant, table, row.name): row.setting(readings)
        for variant, readings in variants.items()
        for table, rows in tables.items()
        for row in rows
    }
    tallies = ablation.measure(
        load,
        dataset,
        settings,
        output_dir,
        {**_DATASET.settings(protocol), **_MODEL.chosen()},
        limit=_LIMIT.value,
        batch_size=_BATCH_SIZE.value,
    )
    counts = bootstrap.draws(len(dataset.ids[: _LIMIT.value]))
    found = {
        table: {
            row.name: {
                variant: bootstrap.interval(
                    tallies[ablation.folder(variant, table, row.name)], counts
                )
                for variant in variants
            }
            for row in rows
        }
        for table, rows in tables.items()
    }
    text = "\n".join(ablation.markdown(table, rows) for table, rows in found.items())
    print(text)
    with atomic(output_dir / "table.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    with atomic(output_dir / "table.csv") as temporary:
        temporary.write_text(ablation.comma_separated(found), encoding="utf-8")
    if _PLOTS.value:
        for table, rows in found.items():
            plots.draw(output_dir / f"{table}.png", table, rows, ablation.PAPER)
    print(f"written to {output_dir}: table.md, table.csv and the runs")


if __name__ == "__main__":
    common.run(main)
