"""Compares our methods with the field's peers, under one protocol and as each is published.

python -m experiments.compare                                   # on the miniature world
python -m experiments.compare --dataset=all --data_dir=DIR --preset=dslo_b16
python -m experiments.compare --protocols=common --compared=velocity,naclip,lposs

By "common" every method sees the whole picture, the same graph and no refinement; by "published"
it has its own graph, windows, thresholds and refinement. Where a peer's own graph cannot be had,
--own_sources=lposs=appearance names another. Each row is a run like those of experiments.eval, in
a folder of its own; what was cut off goes on when it is started again. Leaves, for each dataset,
table.md and table.csv: mIoU with its 95 % interval, pictures a second and peak memory (each row by
itself, in a process of its own), the published number; and differ.png, the picture where a peer
and ours are furthest apart, either way.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from absl import flags

from dsolo_jax import datasets, draw, images, peers
from dsolo_jax.datasets import Protocol, miniature
from dsolo_jax.pipeline import Setting
from dsolo_jax.utils.configs import read_json
from dsolo_jax.utils.files import write_csv, write_json, write_text
from dsolo_jax.utils.progress import progress
from experiments import ablation, bootstrap, common, comparison, evaluation
from experiments.bootstrap import Interval, Tally
from experiments.comparison import Cost, Row

common.define_dataset("miniature")
common.define_model()
_COMPARED = flags.DEFINE_list(
    "compared", [*comparison.OURS, *peers.PEERS], "Methods of ours, and peers."
)
_PROTOCOLS = flags.DEFINE_list(
    "protocols", list(comparison.PROTOCOLS), f"Some of {', '.join(comparison.PROTOCOLS)}."
)
_OWN_SOURCES = flags.DEFINE_list(
    "own_sources",
    None,
    "PEER=SOURCE,...: instead of a peer's own source; on the miniature those without a download.",
)
_LIMIT, _BATCH_SIZE, _OUTPUT_DIR, _OVERWRITE = common.define_run("outputs/<dataset>_compare", 8)

_ON_MINIATURE = {"proxyclip": "appearance", "cliper": "miniature", "lposs": "appearance"}


def main() -> None:
    # Rows are measured in processes of their own, which need the device's memory too.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    name = flags.FLAGS.dataset
    root = Path(_OUTPUT_DIR.value or f"outputs/{name}_compare").expanduser()
    for one in common.chosen_datasets():
        _compare(one, root / one if name == common.ALL else root)


def _compare(name: str, output_dir: Path) -> None:
    settings = common.dataset_settings(name)
    own = _own_sources(name)
    usual = common.load_dataset(settings)
    config = common.load_model(usual.protocol, graph=False).config
    rows = comparison.rows(
        _COMPARED.value, _PROTOCOLS.value, name, common.readings(), config.source, own,
        short_side=usual.protocol.short_side, patch=config.clip.vision.patch_size,
    )  # fmt: skip
    costs, tallies = {}, {}
    for protocol, members in _by_protocol(name, usual.protocol, rows).items():
        changed = settings | {"protocol": dataclasses.asdict(protocol)}
        dataset = common.load_dataset(changed)
        for row in progress(members, len(members), f"{name}, what rows cost", unit="rows"):
            costs[row] = _cost(row, protocol, changed, output_dir / row.folder / "cost.json")
        wanted = {row.folder: (_setting(row, protocol), row.model) for row in members}
        measured = ablation.measure(
            partial(common.load_model, protocol), dataset, wanted, output_dir,
            changed | common.model_settings() | {"batch_size": _BATCH_SIZE.value},
            limit=_LIMIT.value, batch_size=_BATCH_SIZE.value, overwrite=_OVERWRITE.value, what=name,
        )  # fmt: skip
        tallies |= {row: measured[row.folder] for row in members}
    counts = bootstrap.draws(len(usual.ids[: _LIMIT.value]))
    found = {row: bootstrap.interval(tallies[row], counts) for row in rows}
    text = comparison.markdown(name, rows, found, costs)
    print(text)
    write_text(output_dir / "table.md", text)
    write_csv(output_dir / "table.csv", comparison.lines(name, rows, found, costs))
    _draw_differences(usual, rows, found, tallies, output_dir / "differ.png")
    print(f"written to {output_dir}: table.md, table.csv, differ.png and the runs")


def _own_sources(name: str) -> dict[str, str]:
    """The sources of --own_sources, by peer."""
    if _OWN_SOURCES.value is None:
        return _ON_MINIATURE if name == miniature.NAME else {}
    pairs = [text.partition("=") for text in _OWN_SOURCES.value]
    for peer, _, source in pairs:
        if peer not in peers.PEERS or not source:
            raise ValueError(
                f"--own_sources has {peer!r} with source {source!r}; wanted PEER=SOURCE, the peers "
                f"being {', '.join(peers.PEERS)}"
            )
    return {peer: source for peer, _, source in pairs}


def _by_protocol(name: str, usual: Protocol, rows: Sequence[Row]) -> dict[Protocol, list[Row]]:
    """Rows by the protocol of the dataset that they are run with."""
    found: dict[Protocol, list[Row]] = {}
    for row in rows:
        changes = dataclasses.asdict(usual) | dict(row.dataset)
        if "background_rule" in dict(row.dataset):  # the benchmark's threshold goes with its rule
            changes |= {"probability_threshold": dict(row.dataset).get("probability_threshold")}
        found.setdefault(datasets.protocol(name, **changes), []).append(row)
    return found


def _setting(row: Row, protocol: Protocol) -> Setting:
    return Setting(row.method, row.readings, protocol.threshold(row.method))


def _cost(row: Row, protocol: Protocol, settings: dict, path: Path) -> Cost:
    """What the row costs, measured unless it was before."""
    if path.is_file() and not _OVERWRITE.value:
        return Cost(**read_json(path))
    setting = _setting(row, protocol)
    load = common.loading(protocol, **dict(row.model), graph=setting.needs_graph)
    try:
        cost = comparison.cost(load, partial(common.load_dataset, settings), setting)
    except OSError as error:
        raise OSError(
            f"{row.name}, {row.protocol}: {error}; --own_sources={row.name}=SOURCE gives a peer "
            "another graph, --compared leaves a method out"
        ) from error
    write_json(path, cost._asdict())
    return cost


def _draw_differences(
    usual: datasets.Dataset,
    rows: Sequence[Row],
    found: Mapping[Row, Interval],
    tallies: Mapping[Row, Tally],
    path: Path,
) -> None:
    """Draws the two pictures where the best of ours and the best peer are furthest apart."""
    first = [row for row in rows if row.protocol == rows[0].protocol]
    kinds = [[row for row in first if (row.name in peers.PEERS) == peer] for peer in (False, True)]
    if not all(kinds):
        return
    pair = [max(members, key=lambda row: found[row].estimate) for members in kinds]
    indices = comparison.furthest(*map(tallies.get, pair))
    columns = []
    for row in pair:
        [(protocol, _)] = _by_protocol(usual.name, usual.protocol, [row]).items()
        model = common.load_model(protocol, **dict(row.model))
        said = evaluation.predictions(model, usual, indices, [_setting(row, protocol)])
        columns.append({example["id"]: (example, labels) for example, [labels] in said})
    examples = [
        (example["image"], example["labels"], labels, columns[1][id_][1])
        for id_, (example, labels) in columns[0].items()
    ]
    titles = "picture", "truth", f"ours: {pair[0].name}", f"peer: {pair[1].name}"
    images.write_png(path, draw.panel(examples, usual.names, titles=titles))


if __name__ == "__main__":
    common.run(main)
