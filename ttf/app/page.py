"""The page itself, in Gradio: settings on the left, what comes of them on the right."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported: nothing is sent anywhere

import gradio as gr

from ttf.app import html
from ttf.app.comparison import Way, compare
from ttf.app.link import BUDGET, NONE, RATIO, Settings, settings
from ttf.app.shelf import Loaded, Shelf, methods
from ttf.app.viewers import shown

FOLDER = Path(__file__).parent
LEAST = 0.1
FONT = ["system-ui", "sans-serif"]  # nothing is fetched from elsewhere
SUGGESTED = 6  # questions that are shown beside the field
OWN = -1  # the number of a picture that the person brought
HEAD = "# Token Transforming\nWhich tokens go, what the model says without them, and what that saves."


class Page:
    """The page over a shelf of models.

    Args:
        shelf: what it offers.
    """

    def __init__(self, shelf: Shelf) -> None:
        self.shelf, self.methods = shelf, methods()

    # what happens

    def restored(self, request: gr.Request) -> list[Any]:
        """The settings of the address that was opened, as values of all inputs."""
        told = settings(dict(request.query_params), self.shelf.names, list(self.methods))
        loaded = self.shelf.loaded(told.model)
        number = min(max(told.image, 0), len(loaded.pictures) - 1)
        values = [told.model, told.method, told.other, told.by, told.value, told.blocks]
        return [*values, self._question(loaded, told.question), *self._pictures(loaded, number)]

    def changed_model(self, name: str) -> list[Any]:
        """Another model: its question and its pictures."""
        loaded = self.shelf.loaded(name)
        return [self._question(loaded, ""), *self._pictures(loaded, 0)]

    @staticmethod
    def _question(loaded: Loaded, told: str) -> Any:
        """What is asked, with what the data set asks, for models that are asked."""
        known = loaded.questions
        said = f"of the data set: {' '.join(known[:SUGGESTED])}" if known else None
        return gr.update(value=told or (known[0] if known else ""), info=said, visible=loaded.viewer.asks)

    @staticmethod
    def _pictures(loaded: Loaded, number: int) -> list[Any]:
        there = bool(loaded.pictures)
        return [
            gr.update(value=loaded.pictures, visible=there),
            loaded.pictures[number] if there else None,
            number if there else OWN,
        ]

    def picked(self, name: str, event: gr.SelectData) -> tuple[Any, int]:
        """A picture of the data set."""
        return self.shelf.loaded(name).pictures[event.index], int(event.index)

    def updated(self, *given: Any) -> tuple[str, str, str, str]:
        """Everything on the right: numbers, answers, tokens, the address of these settings."""
        picture, model, method, other, by, value, blocks, question, image = given
        told = Settings(model, method, other, by, value, blocks, image, question)
        if picture is None:
            return "<p>Drop a picture on the left.</p>", "", "", ""
        try:
            found = compare(
                loaded := self.shelf.loaded(told.model), picture.convert("RGB"), self._ways(told), told.question
            )
        except ValueError as error:
            return f"<p role=alert>{escape(str(error))}</p>", "", "", self._link(told)
        seen = shown(found.image, loaded.viewer.mean, loaded.viewer.std)
        return html.numbers(found), html.answers(found), html.tokens(found, seen), self._link(told)

    def _ways(self, told: Settings) -> list[Way]:
        names = dict.fromkeys(name for name in (told.method, told.other) if name != NONE)
        return [Way(name, {**self.methods[name], **told.options()}) for name in names]

    @staticmethod
    def _link(told: Settings) -> str:
        query = escape(told.query() if told.image != OWN else Settings(**{**vars(told), "image": 0}).query())
        own = " (your own picture is not part of it)" if told.image == OWN else ""
        return f'<a id=permalink href="{query}">Link to these settings</a>{own}'

    # how it looks

    def build(self) -> gr.Blocks:
        """The page with its events."""
        with gr.Blocks(title="Token Transforming", analytics_enabled=False) as page:
            gr.Markdown(HEAD)
            with gr.Row():
                with gr.Column(scale=1, min_width=320):
                    inputs, gallery = self._inputs()
                with gr.Column(scale=2, min_width=480):
                    outputs = self._outputs()
            self._events(page, inputs, gallery, outputs)
        found: gr.Blocks = page
        return found

    def _inputs(self) -> tuple[dict[str, Any], Any]:
        picture = gr.Image(label="Picture", type="pil", sources=["upload", "clipboard"], elem_id="picture", height=260)
        gallery = gr.Gallery(
            label="Pictures of the data set",
            columns=4,
            height=150,
            elem_id="pictures",
            allow_preview=False,
            interactive=False,
        )
        first = self.shelf.names[0]
        inputs = {
            "picture": picture,
            "model": gr.Dropdown(self.shelf.names, value=first, label="Model", elem_id="model"),
            "method": gr.Dropdown(list(self.methods), label="Method", elem_id="method"),
            "other": gr.Dropdown([NONE, *self.methods], label="Compared with", elem_id="other"),
            "by": gr.Radio([RATIO, BUDGET], label="Limit by", elem_id="by", info="budget: of the multiply-accumulates"),
            "value": gr.Slider(LEAST, 1, step=0.05, label="Share that is kept", elem_id="value"),
            "blocks": gr.Textbox(label="Blocks that reduce", elem_id="blocks", placeholder="3,6,9; empty: the default"),
            "question": gr.Textbox(label="Question", elem_id="question", visible=False),
            "image": gr.State(0),
        }
        return inputs, gallery

    @staticmethod
    def _outputs() -> list[Any]:
        numbers = gr.HTML(label="Numbers", elem_id="numbers")
        said = gr.HTML(label="Answers", elem_id="answers")
        tokens = gr.HTML(label="Tokens", elem_id="tokens")
        return [numbers, said, tokens, gr.HTML(elem_id="link")]

    def _events(self, page: Any, inputs: dict[str, Any], gallery: Any, outputs: list[Any]) -> None:
        settled = [inputs[k] for k in ("model", "method", "other", "by", "value", "blocks", "question")]
        seen = [gallery, inputs["picture"], inputs["image"]]
        every = list(inputs.values())
        quiet: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last"}
        page.load(self.restored, None, [*settled, *seen]).then(self.updated, every, outputs, **quiet)
        inputs["model"].input(self.changed_model, inputs["model"], [inputs["question"], *seen]).then(
            self.updated, every, outputs, **quiet
        )
        gallery.select(self.picked, inputs["model"], [inputs["picture"], inputs["image"]]).then(
            self.updated, every, outputs, **quiet
        )
        inputs["picture"].upload(lambda: OWN, None, inputs["image"]).then(self.updated, every, outputs, **quiet)
        inputs["picture"].clear(lambda: OWN, None, inputs["image"]).then(self.updated, every, outputs, **quiet)
        for name in ("method", "other", "by", "value"):
            inputs[name].input(self.updated, every, outputs, **quiet)
        for name in ("blocks", "question"):
            inputs[name].submit(self.updated, every, outputs, **quiet)
            inputs[name].blur(self.updated, every, outputs, **quiet)


def serve(shelf: Shelf, host: str, port: int, wait: bool = True) -> gr.Blocks:
    """Serve the page. Raises ``OSError`` where the port is taken.

    Args:
        shelf: what it offers.
        host, port: where; port 0 takes a free one.
        wait: until it is interrupted; else the page comes back at once, with its ``local_url`` and ``close()``.
    """
    page = Page(shelf).build()
    page.launch(
        server_name=host,
        server_port=port or None,
        prevent_thread_lock=not wait,
        quiet=not wait,
        share=False,
        footer_links=[],
        theme=gr.themes.Default(font=FONT, font_mono=["monospace"]),
        css=(FOLDER / "page.css").read_text(),
        head=f"<script>{(FOLDER / 'page.js').read_text()}</script>",
    )
    return page
