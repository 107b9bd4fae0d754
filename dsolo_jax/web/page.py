"""The page itself, in Gradio: what stands where, and which function answers what."""

import base64
import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from dsolo_jax import images
from dsolo_jax.datasets import miniature
from dsolo_jax.solver.discrepancy import METHODS
from dsolo_jax.web.answer import OWN, Question, Service, explain, pack, split
from dsolo_jax.web.guard import Guard
from dsolo_jax.web.view import view_of

_HERE = Path(__file__).parent

_INTRO = """# dsolo
Give a picture, name what may be in it: every pixel gets one of the names."""
_MINIATURE = (
    "The preset *miniature* knows small drawn scenes alone, as in the examples, and these words: "
)

# Scenes of the drawn world, and what is asked of each.
_EXAMPLES = {
    80: ("wood", "sky", "ball", "house"),
    103: ("water", "lava", "grass", "house", "arrow"),
    85: ("grass", "sky", "sand", "arrow"),
    81: ("sand", "sky", "brick", "ring", "cross"),
    146: ("road", "grass", "lava", "heart"),
    98: ("grass", "road", "water", "ring"),
}

# Their buttons tell the server their number.
_ON_EXAMPLE = """element.querySelectorAll("button").forEach((button, index) =>
  button.addEventListener("click", () => trigger("select", { index })));"""

_KEPT_FOR = 3600  # seconds that uploaded files and ZIPs lie on the disk
_WAITING = 16  # questions
_SESSIONS = 1000
# What is asked before the page opens: programs serve 8, 16, 32, ... classes, and the class for
# everything else has many names.
_FIRST = next(iter(_EXAMPLES))
_WARM = (
    (miniature.CLASSES[:8], False),
    (miniature.CLASSES[:16], False),
    (miniature.CLASSES[:4], True),
)


def serve(service: Service, host: str, port: int) -> None:
    """Serves the page until the process is interrupted or told to end.

    Raises:
        OSError: the host or port cannot be listened at.
    """
    with _told_to_stop() as stopped, temporary_folder() as folder:
        if service.presets[0] == "miniature":  # so that whoever comes first need not wait
            for classes, everything in _WARM:
                if not stopped.is_set():
                    scene = str(_example(folder, _FIRST))
                    service.ask(Question(scene, classes, background=everything))
        page = build(service, folder)
        try:
            page.launch(**launching(service), server_name=host, server_port=port)
        except OSError as error:
            raise OSError(
                f"the page cannot listen at {host}, port {port} ({error}); is the port taken? Give "
                "another one with --port"
            ) from error
        print(f"the page is at {page.local_url} (Ctrl+C ends it)", flush=True)
        stopped.wait()
        service.close()
        page.close()


@contextlib.contextmanager
def _told_to_stop() -> Iterator[threading.Event]:
    """Gives an event that Ctrl+C and a request to terminate set, instead of ending the process."""
    stopped = threading.Event()
    handlers = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        handlers[number] = signal.signal(number, lambda *_: stopped.set())
    try:
        yield stopped
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Gives a private folder for all that Gradio keeps, which is removed at the end."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="dsolo_web_", dir=before) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield Path(folder)
        finally:
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def launching(service: Service) -> dict[str, Any]:
    """Gives the arguments of Gradio's `launch`: nothing is shared, reported or served besides."""
    guard = Middleware(Guard, upload=service.limits.upload)
    return {
        "allowed_paths": [],
        "app_kwargs": {"middleware": [guard], "docs_url": None, "redoc_url": None},
        "css": (_HERE / "page.css").read_text("utf-8"),
        "enable_monitoring": False,
        "footer_links": [],
        "max_file_size": service.limits.upload,
        "prevent_thread_lock": True,
        "pwa": False,
        "quiet": True,
        "run_history": False,
        "share": False,
        "ssr_mode": False,
        "state_session_capacity": _SESSIONS,
        "theme": _theme(),
    }


def _theme() -> gr.themes.Base:
    """Gradio's soft theme with the system's fonts, and text that stands out from its ground."""
    dark = ("*primary_700", "*primary_800", "*primary_200", "*primary_900", "*neutral_300")
    light = ("*primary_700", "*primary_800", "*primary_900", "*primary_100", "*neutral_600")
    colours: dict[str, str] = {}
    for suffix, (fill, hover, label, label_fill, subdued) in {"": light, "_dark": dark}.items():
        colours |= {
            f"button_primary_background_fill{suffix}": fill,
            f"button_primary_background_fill_hover{suffix}": hover,
            f"block_label_text_color{suffix}": label,
            f"block_label_background_fill{suffix}": label_fill,
            f"block_title_text_color{suffix}": label,
            f"block_title_background_fill{suffix}": label_fill,
            f"block_info_text_color{suffix}": subdued,
            f"body_text_color_subdued{suffix}": subdued,
        }
    soft = gr.themes.Soft(primary_hue="teal", font=["system-ui", "sans-serif"])
    return soft.set(
        **colours,
        body_background_fill="*neutral_100",
        checkbox_border_color="*neutral_500",
        input_border_width="1px",
        input_border_color="*neutral_400",
        input_border_color_dark="*neutral_500",
    )


def build(service: Service, folder: Path) -> gr.Blocks:
    """Makes the page.

    Args:
        folder: where example pictures and ZIPs are put.
    """
    queue: Any = {"concurrency_limit": 1, "concurrency_id": "model"}
    cleaning = (min(_KEPT_FOR, 600), _KEPT_FOR)
    with gr.Blocks(title="dsolo", analytics_enabled=False, delete_cache=cleaning) as page:
        asked = gr.State(None)
        gr.Markdown(_INTRO)
        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=2, min_width=300):
                picture = gr.Image(
                    label="Picture",
                    type="filepath",
                    sources=["upload", "clipboard"],
                    buttons=[],
                    height=260,
                    elem_id="picture",
                )
                _take_uploads_alone(picture, folder)
                classes = gr.Dropdown(
                    list(miniature.CLASSES) if "miniature" in service.presets else [],
                    label="Classes",
                    info="Type a name and press Enter; synonyms after commas: sofa, couch",
                    multiselect=True,
                    allow_custom_value=True,
                    elem_id="classes",
                )
                everything = gr.Checkbox(
                    label="add a class for everything else", elem_id="background"
                )
                start = gr.Button("Segment", variant="primary", elem_id="segment")
                examples = gr.HTML(
                    None,
                    html_template=_example_buttons(folder),
                    js_on_load=_ON_EXAMPLE,
                    apply_default_css=False,
                    visible="miniature" in service.presets,
                    elem_id="examples",
                )
                with gr.Accordion("Model and method", open=False):
                    settings = _settings(service)
            with gr.Column(scale=3, min_width=300):
                viewer = gr.HTML(
                    None,
                    html_template=(_HERE / "viewer.html").read_text("utf-8"),
                    css_template=(_HERE / "viewer.css").read_text("utf-8"),
                    js_on_load=(_HERE / "viewer.js").read_text("utf-8"),
                    apply_default_css=False,
                    elem_id="viewer",
                )
                download = gr.Button("Download masks (ZIP)", elem_id="download", interactive=False)
                packed = gr.DownloadButton("ZIP", visible="hidden", elem_id="packed")

        def ask(path, names, everything, *settings):
            """Answers a question: what the viewer shows, what was asked, whether it can be
            downloaded, and a chip for each class. An error is told in the viewer, which keeps the
            last answer."""
            try:
                if not path:
                    raise ValueError("no picture is given; drop, paste or choose one first")
                typed = tuple(map(str, names or ()))
                chips = split(typed)
                question = Question(path, chips, *settings, bool(everything))
                answer = service.ask(question)
            except Exception as error:
                return {"error": explain(error)}, gr.skip(), gr.skip(), gr.skip()
            tidied = gr.skip() if chips == typed else list(chips)
            return view_of(answer), question, gr.update(interactive=True), tidied

        def zipped(question):
            """Answers a question again and packs it."""
            try:
                if question is None:
                    raise ValueError("nothing is segmented yet")
                return str(pack(service.ask(question, whole=True).result, folder))
            except Exception as error:
                raise gr.Error(explain(error), print_exception=False) from error

        def chosen(event: gr.EventData):
            """Gives an example and its classes, for the preset that knows them."""
            index, names = list(_EXAMPLES.items())[int(event.index)]
            return str(_example(folder, index)), list(names), False, "miniature"

        given = [picture, classes, everything, *settings]
        shown = [viewer, asked, download, classes]
        start.click(ask, given, shown, api_name="segment", show_progress_on=viewer, **queue)
        examples.select(
            chosen,
            None,
            [picture, classes, everything, settings[0]],
            api_visibility="private",
            queue=False,
        ).then(ask, given, shown, api_visibility="private", show_progress_on=viewer, **queue)
        download.click(zipped, asked, packed, api_name="download", **queue).success(
            None, js="() => document.querySelector('#packed').click()"
        )
    page.queue(max_size=_WAITING, default_concurrency_limit=1)
    return page


def _take_uploads_alone(picture: gr.Image, folder: Path) -> None:
    """Has the path of an uploaded file taken as it is, whose content `answer` looks at, and nothing
    else: no other path that a client names, and no address.

    Set on the object, as Gradio writes a file of types beside every class made of its components.
    """
    move = picture.async_move_resource_to_block_cache

    async def no_address(resource):
        if str(resource).lower().startswith(("http:", "https:")):
            raise gr.Error("pictures are uploaded; none is fetched from an address")
        return await move(resource)

    def path(payload):
        if payload is None or payload.path is None:
            return None
        # Gradio looks at this too, but only of what says that it is a file.
        place = Path(payload.path).resolve()
        if not place.is_relative_to(folder.resolve()):
            raise gr.Error("the picture was not uploaded here; give it again")
        return str(place)

    picture.async_move_resource_to_block_cache = no_address  # type: ignore[method-assign]
    picture.preprocess = path  # type: ignore[method-assign]


def _settings(service: Service) -> list[gr.components.Component]:
    """Draws the choice of preset, source, method and readings, in `Question`'s order."""
    preset = gr.Dropdown(list(service.presets), value=service.presets[0], label="Preset")
    source = gr.Dropdown([OWN, *service.sources], value=OWN, label="Source of the patch graph")
    method = gr.Dropdown([OWN, *METHODS], value=OWN, label="Method")
    readings = gr.Dropdown(
        [OWN, "robust", "paper"],
        value=OWN,
        label="Readings",
        info="or a bundle with changes, such as robust,tau=0.3",
        allow_custom_value=True,
    )
    if "miniature" in service.presets:
        gr.Markdown(_MINIATURE + ", ".join(miniature.CLASSES) + ".")
    return [preset, source, method, readings]


def _example(folder: Path, index: int) -> Path:
    """Gives an example scene as a PNG, drawn where it is not there yet or was cleaned away."""
    path = folder / "examples" / f"scene_{index}.png"
    if not path.is_file():
        images.write_png(path, miniature.draw(0, index, split="validation").image)
    return path


def _example_buttons(folder: Path) -> str:
    """Draws a button for each example, in HTML; it is named by the classes."""
    buttons = []
    for index, names in _EXAMPLES.items():
        data = base64.b64encode(_example(folder, index).read_bytes()).decode("ascii")
        label = ", ".join(names)
        buttons.append(
            f'<button type="button" title="{label}" aria-label="Drawn scene: {label}">'
            f'<img alt="" src="data:image/png;base64,{data}"></button>'
        )
    return f'<p>Drawn scenes to try</p><div class="scenes">{"".join(buttons)}</div>'
