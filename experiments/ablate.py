"""Ablates the method on a benchmark: the paper's ladder, sweeps, and a search of the readings.

python -m experiments.ablate                                  # the ladder, on the miniature world
python -m experiments.ablate --tables=ladder,tau,source --limit=100
python -m experiments.ablate --dataset=ade20k --data_dir=DIR --variants="robust; paper"
python -m experiments.ablate --search=300                     # readings, by rule, on --tune_split

Each row is a run like those of experiments.eval, in a folder of its own; what was cut off goes on
when it is started again. Leaves table.md, table.csv and a PNG of each table; of a search, which
changes each reading alone and reports what it takes on --split, search.md and search.json. The
table 'optimisation' also times its rows: optimisation.csv, and what moving the logits costs.
"""

from functools import partial
from pathlib import Path

from absl import flags

from dsolo_jax.readings import Readings, described, resolve
from dsolo_jax.utils.files import write_csv, write_json, write_text
from experiments import ablation, bootstrap, charts, common, optimisation, search

common.define_dataset("miniature")
common.define_model()
_TABLES = flags.DEFINE_list(
    "tables", ["ladder"], f"Some of {', '.join(ablation.TABLES)}; or 'all'."
)
_VARIANTS = flags.DEFINE_string(
    "variants",
    None,
    "Readings as in --readings, which is the default, separated by ';': columns of the tables, or "
    "what a search begins with.",
)
_SOURCES = flags.DEFINE_list(
    "sources", ["clip", "appearance"], "Attention sources of the table 'source' and of a search."
)
_LIMIT, _BATCH_SIZE, _OUTPUT_DIR, _OVERWRITE = common.define_run("outputs/<dataset>_ablation", 8)
_SEARCH = flags.DEFINE_integer(
    "search", None, "Search the readings on so many pictures, instead of tables.", lower_bound=2
)
_METHODS = flags.DEFINE_list("methods", list(search.OPTIONS), "search: methods.")
_TUNE_SPLIT = flags.DEFINE_string("tune_split", "tune", "search: where readings are chosen.")
_TUNE_IMAGES = flags.DEFINE_string("tune_images", None, "search: the same of a folder, pictures.")
_TUNE_LABELS = flags.DEFINE_string("tune_labels", None, "search: the same of a folder, labels.")


def main() -> None:
    output_dir = Path(_OUTPUT_DIR.value or f"outputs/{flags.FLAGS.dataset}_ablation").expanduser()
    _refuse_idle()
    settings = common.dataset_settings()
    dataset = common.load_dataset(settings)
    load = partial(common.load_model, dataset.protocol)
    measure = partial(
        ablation.measure, load, batch_size=_BATCH_SIZE.value, overwrite=_OVERWRITE.value
    )
    config = settings | common.model_settings() | {"batch_size": _BATCH_SIZE.value}
    (_search if _SEARCH.value else _tables)(output_dir, dataset, load, measure, config)


def _refuse_idle() -> None:
    """Refuses flags that do nothing beside the others."""
    if _VARIANTS.value:
        common.refuse("beside --variants", "readings")
    of_folder, of_others = ("tune_images", "tune_labels"), ("tune_split",)
    if _SEARCH.value is None:
        common.refuse("without --search", "methods", *of_folder, *of_others)
        if not {"source", "all"} & set(_TABLES.value):
            common.refuse("without the table 'source'", "sources")
        return
    common.refuse("with --search", "tables")
    common.refuse("with --search, which has --sources", "attention")
    folder = flags.FLAGS.dataset == "folder"
    common.refuse(f"with --dataset={flags.FLAGS.dataset}", *(of_others if folder else of_folder))


def _variants() -> dict[str, Readings]:
    texts = (text.strip() for text in (_VARIANTS.value or "").split(";"))
    return {text: resolve(text) for text in texts if text}


def _tables(output_dir, dataset, load, measure, config) -> None:
    variants = _variants() or {"": common.readings()}
    source = load(graph=False).config.source
    names = ablation.tables(source) if _TABLES.value == ["all"] else _TABLES.value
    tables = {name: ablation.rows(name, source, _SOURCES.value) for name in names}
    wanted = {
        ablation.folder(variant, table, row.name): ablation.setting(row, readings, dataset.protocol)
        for variant, readings in variants.items()
        for table, rows in tables.items()
        for row in rows
    }
    tallies = measure(dataset, wanted, output_dir, config, limit=_LIMIT.value)
    counts = bootstrap.draws(len(dataset.ids[: _LIMIT.value]))
    found, parts = {}, []
    for table, rows in tables.items():
        of_variant = {
            variant: {r.name: tallies[ablation.folder(variant, table, r.name)] for r in rows}
            for variant in variants
        }
        found[table] = {
            row.name: {v: bootstrap.interval(of[row.name], counts) for v, of in of_variant.items()}
            for row in rows
        }
        parts.append(ablation.markdown(table, found[table]))
        parts += [ablation.gains(variant, of, counts) for variant, of in of_variant.items()]
        if table != "optimisation":
            charts.draw_table(output_dir / f"{table}.png", table, found[table])
            continue
        settings = {
            variant: {
                row.name: ablation.setting(row, readings, dataset.protocol)[0] for row in rows
            }
            for variant, readings in variants.items()
        }
        of_table = settings, found[table], output_dir
        parts.append(optimisation.report(load(), dataset, *of_table))
    text = "\n".join(parts)
    print(text)
    write_text(output_dir / "table.md", text)
    write_csv(output_dir / "table.csv", ablation.lines(found))
    print(f"written to {output_dir}: table.md, table.csv, charts and the runs")


def _search(output_dir, dataset, load, measure, config) -> None:
    changes = {"split": _TUNE_SPLIT.value}
    if dataset.name == "folder":
        changes = {"images": _TUNE_IMAGES.value, "labels": _TUNE_LABELS.value}
        if None in changes.values():
            raise ValueError(
                "a folder has no splits: name the pictures that readings are chosen on by "
                "--tune_images and --tune_labels"
            )
    if all(config[name] == value for name, value in changes.items()):
        raise ValueError(
            "readings would be chosen and reported on the same pictures; give another "
            + ("--tune_images" if dataset.name == "folder" else "--tune_split")
        )
    tune = common.load_dataset(config | changes)
    text, content = search.study(
        load,
        tune,
        dataset,
        partial(measure, tune, config=config | changes, limit=_SEARCH.value),
        partial(measure, dataset, config=config, limit=_LIMIT.value),
        output_dir,
        variants=_variants() or {described(common.readings()): common.readings()},
        sources=_SOURCES.value,
        methods=_METHODS.value,
        tune_limit=_SEARCH.value,
        limit=_LIMIT.value,
    )
    print(text)
    write_text(output_dir / "search.md", text)
    write_json(output_dir / "search.json", config | content)
    print(f"written to {output_dir}: search.md, search.json and the runs")


if __name__ == "__main__":
    common.run(main)
