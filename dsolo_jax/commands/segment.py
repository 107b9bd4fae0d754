"""`dsolo segment`: pictures and videos with class names to overlays, masks and other files."""

import argparse
import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dsolo_jax as dsolo
from dsolo_jax import results
from dsolo_jax.commands import common, inputs, pictures, records, videos
from dsolo_jax.commands.inputs import Source
from dsolo_jax.datasets.folder import PICTURES
from dsolo_jax.readings import described, resolve
from dsolo_jax.utils.faults import is_message
from dsolo_jax.utils.files import locked, remove_leftovers
from dsolo_jax.utils.progress import progress
from dsolo_jax.video import VIDEOS
from dsolo_jax.vocabulary import Vocabulary

STDOUT = Path("-")

_DESCRIPTION = """\
Labels every pixel of pictures, or of a video's frames, with one of the classes.

One picture with --output=OUT.png gives an overlay with a legend, one video with
--output=OUT.mp4 a video of overlays. Otherwise --output is a folder, which gets of each picture an
overlay <name>.png and an index map masks/<name>.png (.tif, with its place, of a georeferenced
TIFF), and shares.csv; of each video an overlay <name>.mp4. Names have the folders below the one
that is given.

A run that was stopped goes on where it was: pictures whose files are there are not segmented again,
unless their size or time of change is another. A video that was not finished starts anew. run.json
in the folder says what was asked; another question is refused there.
"""

_EPILOG = """\
exit codes: 0 all is done; 1 something could not be done, it is named; 2 wrong usage; 130 stopped by
Ctrl-C.

examples:
  dsolo segment cat.jpg --classes="cat; sofa, couch" --output=out.png
  dsolo segment photos --recursive --classes=classes.txt --save=mask,json --output=results
  dsolo segment "photos/**/*.jpg" --list=more.txt --classes=... --output=results
  dsolo segment clip.mp4 --classes=... --every=5 --smooth=0.7 --output=labelled.mp4
  cat cat.jpg | dsolo segment - --classes=... --output=- | display
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    command.description, command.epilog = _DESCRIPTION, _EPILOG
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    add = command.add_argument
    add(
        "pictures",
        nargs="*",
        metavar="PICTURE",
        help="pictures, videos, folders of pictures, patterns in quotes such as 'photos/**/*.jpg', "
        "or - for a picture from standard input",
    )
    add(
        "--list",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="a text file of more of them, one a line, relative to its folder; # begins a comment",
    )
    add("--recursive", action="store_true", help="look for pictures below the folders too")
    add(
        "--output",
        required=True,
        type=lambda text: Path(text).expanduser(),
        help="a folder; of one picture a PNG, or - for standard output; of one video an MP4",
    )
    add(
        "--save",
        type=_kinds,
        metavar="KINDS",
        help=f"of {','.join(results.FILES)}: what a folder gets, overlay,mask if left out (of a "
        "video overlay alone), or the one kind of a single output. Of a video mask is an index "
        "map masks/<name>/<frame>.png of each frame that is segmented, json their shares",
    )
    common.add_model(command)
    add(
        "--tile",
        type=_number(int, 0, None),
        metavar="PIXELS",
        help="side of overlapping windows that large pictures are taken by; 0 takes them whole; "
        "if left out, those above 50 megapixels are taken by windows",
    )
    add(
        "--every",
        type=_number(int, 1, None),
        default=1,
        metavar="N",
        help="segment every N-th frame of a video, those between keep its labels",
    )
    add(
        "--smooth",
        type=_number(float, 0, 1),
        default=0.0,
        metavar="S",
        help="share of the "
        "frames before in a frame's scores, 0 to below 1: labels of a video flicker less",
    )
    add("--overwrite", action="store_true", help="segment again what is there already")
    command.set_defaults(run=run, wrong_usage=command.error)


def _kinds(text: str) -> list[str]:
    """Reads what is to be saved."""
    kinds = [kind.strip() for kind in text.split(",")]
    for kind in kinds:
        if kind not in results.FILES:
            raise argparse.ArgumentTypeError(
                f"unknown kind {kind!r}; choose of: {', '.join(results.FILES)}"
            )
    return list(dict.fromkeys(kinds))


def _number(kind: type, least: float, below: float | None) -> Any:
    """A reader of numbers in a range."""

    def read(text: str) -> Any:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if value >= least and (below is None or value < below):
                return value
        end = "" if below is None else f" to below {below}"
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text!r}; wanted {what} from {least}{end}")

    return read


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    if not options.pictures and not options.list:
        options.wrong_usage("name pictures, or a --list of them")
    words, output = common.words(options), options.output
    sources = inputs.find(options.pictures, options.list, options.recursive, output)
    if output == STDOUT:
        stdout = sys.stdout
        if stdout.isatty():
            raise ValueError("--output=- would fill the terminal with a file; pipe it, or name one")
        with contextlib.redirect_stdout(sys.stderr):  # nothing else may come between
            return _single(options, words, sources, stdout)
    of_file = {*PICTURES, *VIDEOS, ".json"}
    if output.is_file() or (output.suffix.lower() in of_file and not output.is_dir()):
        return _single(options, words, sources)
    return _folder(options, words, sources)


def _keep(sources: Sequence[Source], targets: Sequence[Path]) -> None:
    """Refuses to overwrite what is to be read."""
    taken = {_file(source.path) for source in sources if source.path.exists()}
    for target in targets:
        if target.exists() and _file(target) in taken:
            raise ValueError(f"--output would overwrite the picture {target}; choose another")


def _file(path: Path) -> tuple[int, int]:
    """The same for all names of a file."""
    return path.stat().st_dev, path.stat().st_ino


# ------------------------------------------------------------------------------- one file


def _single(
    options: argparse.Namespace,
    words: Vocabulary,
    sources: Sequence[Source],
    stdout: Any = None,
) -> int:
    """One picture or video to one file, or to standard output."""
    output, kinds = options.output, options.save or ["overlay"]
    if not (len(sources) == len(kinds) == 1 and _is_for(output, sources[0], kinds[0])):
        raise ValueError(
            f"--output is {output}; wanted a folder, or a PNG for one picture, an MP4 for one "
            "video, a JSON for --save=json, - for a picture to standard output; a single file has "
            "one kind of --save"
        )
    [source], [kind] = sources, kinds
    _keep(sources, [output])
    if source.is_video:
        videos.check()
        videos.segment(common.load(options), words, options, source, {kind: output})
    else:
        result = pictures.segment(common.load(options), words, options, source)
        if output == STDOUT:
            stdout.buffer.write(pictures.encoded(kind, result, source))
            stdout.flush()
        else:
            pictures.write(kind, result, source, output)
        for name, share in sorted(result.shares().items(), key=lambda pair: -pair[1]):
            if share:
                common.say(f"{name:30} {share:6.1%}")
    common.say("written to " + ("standard output" if output == STDOUT else str(output)))
    return 0


def _is_for(output: Path, source: Source, kind: str) -> bool:
    if source.is_video:
        return kind == "overlay" and output.suffix.lower() == ".mp4"
    return output == STDOUT or pictures.fits(output, kind, source)


# ------------------------------------------------------------------------------- a folder


def _folder(options: argparse.Namespace, words: Vocabulary, sources: Sequence[Source]) -> int:
    """Any number of pictures and videos to a folder."""
    folder, classes = options.output, words.classes
    targets = {source: _targets(folder, source, options.save) for source in sources}
    paths = [path for each in targets.values() for path in each.values()]
    _keep(sources, paths)
    _check_distinct(folder, targets)
    question = _question(options, words)
    records.check(folder, question, options.overwrite, paths)
    earlier = {} if options.overwrite else records.done(folder, len(classes))
    todo = {s: each for s, each in targets.items() if not _is_done(s, each, earlier)}
    if any(source.is_video for source in todo):
        videos.check()
    model = common.load(options) if todo else None
    left = {source.place for source in todo}
    with locked(folder):
        records.start(folder, question, {n: one for n, one in earlier.items() if n not in left})
        for parent in {path.parent for path in paths}:
            remove_leftovers(parent)
        failed = [] if model is None else _all(model, words, options, todo)
        records.write_shares(folder, classes)
    kinds = {"videos" if source.is_video else "pictures" for source in sources}
    common.say(
        f"{len(todo) - len(failed)} {' and '.join(sorted(kinds))} segmented, "
        f"{len(sources) - len(todo)} were there already: the results are in {folder}"
    )
    for line in failed:
        print(f"not segmented: {line}", file=sys.stderr)
    return 1 if failed else 0


def _all(
    model: dsolo.Model,
    words: Vocabulary,
    options: argparse.Namespace,
    todo: Mapping[Source, Mapping[str, Path]],
) -> list[str]:
    """Makes the files of each picture, then of each video; says which could not be, and why."""
    failed = []
    stills = [source for source in todo if not source.is_video]
    for source in progress(stills, len(stills), "segment", unit="pictures"):
        state = records.state(source)
        try:
            result = pictures.segment(model, words, options, source)
        except (OSError, ValueError) as error:
            failed.append(_said(error, source))
            continue
        try:
            for kind, path in todo[source].items():
                pictures.write(kind, result, source, path)
        except ValueError as error:  # such as a place that labels cannot take; no OSError, which
            failed.append(_said(error, source))  # would be the next picture's too
            continue
        one = records.Done(state, list(result.shares().values()))
        records.add(options.output, source.place, one)
    for source in (source for source in todo if source.is_video):
        state = records.state(source)
        try:
            videos.segment(model, words, options, source, todo[source])
        except (FileNotFoundError, ValueError) as error:
            failed.append(_said(error, source))
            continue
        records.add(options.output, source.place, records.Done(state, None))
    return failed


def _targets(folder: Path, source: Source, kinds: Sequence[str] | None) -> dict[str, Path]:
    """The files that a picture or a video gets, by their kinds."""
    if source.is_video:
        return videos.targets(folder, source, kinds or ["overlay"])
    return pictures.targets(folder, source, kinds or ["overlay", "mask"])


def _check_distinct(folder: Path, targets: Mapping[Source, Mapping[str, Path]]) -> None:
    """Refuses two results in one place: masks of one picture where another's overlay is."""
    owners = {folder / name: f"the command's own {name}" for name in records.RESERVED}
    for source, each in targets.items():
        for kind, path in each.items():
            if path in owners:
                raise ValueError(
                    f"{path} would be both {owners[path]} and the {kind} of {source.path}; rename "
                    "that, or give each folder an --output of its own"
                )
            owners[path] = f"the {kind} of {source.path}"


def _question(options: argparse.Namespace, words: Vocabulary) -> dict[str, Any]:
    """What the results answer."""
    of_class: list[list[str]] = [[] for _ in words.classes]
    for query, c in zip(words.queries, words.query_class, strict=True):
        of_class[c].append(query)
    readings = options.readings or common.preset(options).readings
    return {
        "classes": [", ".join(queries) for queries in of_class],
        "background": options.background,
        "preset": options.preset,
        "clip": options.clip,
        "attention": options.attention,
        "dtype": options.dtype,
        "method": common.method(options),
        "readings": described(resolve(readings)),
        "tile": options.tile,
        "every": options.every,
        "smooth": options.smooth,
    }


def _is_done(
    source: Source, targets: Mapping[str, Path], earlier: Mapping[str, records.Done]
) -> bool:
    """Whether all its files are there, and it is as it was when they were made."""
    one, state = earlier.get(source.place), records.state(source)
    same = one is not None and state is not None and one.state == state
    return same and all(path.exists() for path in targets.values())


def _said(error: Exception, source: Source) -> str:
    """What to tell of a picture that cannot be segmented; a fault of ours is raised again."""
    if not is_message(error):
        raise error
    named = str(source.path) in str(error)  # as reading does it
    return str(error) if named else f"{source.path}: {error}"
