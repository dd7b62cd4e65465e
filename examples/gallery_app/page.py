"""The gallery's page: Gradio components, and what happens when people use them."""

from dataclasses import replace
from math import ceil, floor
from pathlib import Path

import gradio as gr

from . import markup, pictures, statements
from .catalog import Choices
from .database import Problem
from .statements import Request

STYLE = Path(__file__).with_name("style.css").read_text()
SYSTEM_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
FIXED_FONTS = ["ui-monospace", "Menlo", "Consolas", "monospace"]
STEP = 24
PREVIEW_EDGE = 160

# A click somewhere in the element becomes an event with what the button carries.
CLICKS = """
element.addEventListener('click', event => {
    const button = event.target.closest('[data-id], [data-text], [data-clear]');
    if (!button) return;
    if ('id' in button.dataset) {
        window.scrollTo({top: 0, behavior: 'smooth'});
        trigger('more', {id: button.dataset.id});
    } else if ('text' in button.dataset) trigger('example', {text: button.dataset.text});
    else trigger('clear', {});
});
"""


def theme():
    return gr.themes.Base(
        primary_hue="teal",
        neutral_hue="zinc",
        radius_size="lg",
        font=SYSTEM_FONTS,
        font_mono=FIXED_FONTS,
    ).set(
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        button_large_text_weight="500",
    )


class Gallery:
    """The page over one table. A session keeps its `Request` and what its headline says of it."""

    def __init__(self, catalog, database, title, examples, connections):
        self.catalog = catalog
        self.database = database
        self.blocks = gr.Blocks(title=title, fill_width=True, analytics_enabled=False)
        with self.blocks:
            self._lay_out(examples)
            self._connect()
        # Searches of several people run side by side, as many as there are connections.
        self.blocks.queue(default_concurrency_limit=connections, api_open=False)

    def _lay_out(self, examples):
        self.state = gr.State((Request(limit=STEP), ""))
        gr.HTML(markup.header(self.catalog))
        with gr.Row(elem_id="search", equal_height=True):
            self.text = gr.Textbox(
                placeholder="What are you looking for?", show_label=False, container=False,
                autofocus=True, scale=8, min_width=280, elem_id="text", max_length=2000,
            )  # fmt: skip
            self.button = gr.Button(
                "Search", variant="primary", scale=1, min_width=90, elem_id="go"
            )
            self.upload = gr.UploadButton(
                "Search by picture", file_types=["image"], scale=1, min_width=165, elem_id="upload"
            )
        self.examples = gr.HTML(markup.examples(examples), js_on_load=CLICKS)
        with gr.Row(elem_id="filters"):
            self.mode = gr.Radio(
                [("Meaning", statements.VECTOR), ("Meaning and words", statements.HYBRID)],
                value=statements.VECTOR, label="Search by", min_width=290, elem_id="mode",
            )  # fmt: skip
            self.filters = [self._filter(one) for one in self.catalog.filters]
        with gr.Row(elem_id="main"):
            with gr.Column(scale=7, min_width=320):
                self.headline = gr.HTML(elem_id="headline", js_on_load=CLICKS)
                self.results = gr.HTML(elem_id="results", js_on_load=CLICKS)
                self.further = gr.Button("Show more", visible=False, elem_id="further")
            with gr.Column(scale=3, min_width=320, elem_id="side"):
                self.sql = gr.Code(
                    language="sql", label="SQL that ran", interactive=False, elem_id="sql",
                    show_line_numbers=False, wrap_lines=True, buttons=["copy"],
                )  # fmt: skip
                self.plan = gr.Code(
                    label="Its plan", interactive=False, elem_id="plan", language=None,
                    show_line_numbers=False, wrap_lines=True, buttons=["copy"],
                )  # fmt: skip

    @staticmethod
    def _filter(one):
        name = one.title.replace("_", " ").capitalize()
        if isinstance(one, Choices):
            return gr.Dropdown(
                [(str(value), value) for value in one.values], multiselect=True, label=name,
                min_width=200, elem_id=f"filter-{one.title}",
            )  # fmt: skip
        low, high = floor(one.low), ceil(one.high)
        # Whole numbers, unless the column is of such that lie between two.
        step = 1 if high - low > 10 else (high - low) / 100
        return gr.Slider(
            low, high, value=high, step=step, label=f"{name} at most", min_width=220,
            elem_id=f"filter-{one.title}", buttons=["reset"],
        )  # fmt: skip

    def _connect(self):
        shown = [self.state, self.headline, self.results, self.further, self.sql, self.plan]
        settings = [self.state, self.mode, *self.filters]
        options = {"show_progress": "minimal", "show_progress_on": self.results}
        options |= {"api_visibility": "private"}
        self.blocks.load(self.refine, settings, shown, **options)
        gr.on(
            [self.text.submit, self.button.click], self.search, [self.text, *settings], shown,
            trigger_mode="always_last", **options,
        )  # fmt: skip
        # A slider that is drawn changes often: what is asked last counts.
        gr.on(
            [self.mode.change, *(one.change for one in self.filters)], self.refine,
            settings, shown, trigger_mode="always_last", **options,
        )  # fmt: skip
        self.further.click(self.show_more, settings, shown, **options)
        self.upload.upload(
            self.by_picture, [self.upload, *settings], [self.text, self.upload, *shown], **options
        )
        self.results.more(self.more_like, settings, [self.text, *shown], **options)
        self.headline.clear(self.clear, settings, [self.text, *shown], **options)
        self.examples.example(self.example, settings, [self.text, *shown], **options)

    # What follows runs for a person's action. `state` is (request, about); mode
    # and filters are as the page has them now.

    def search(self, text, _state, mode, *chosen):
        """Searches by the text, or browses where there is none."""
        return self._show(Request(text.strip(), None, mode, STEP, list(chosen)))

    def refine(self, state, mode, *chosen):
        """The same search with other filters or in the other mode."""
        request, about = state
        return self._show(replace(request, mode=mode, limit=STEP, chosen=list(chosen)), about)

    def show_more(self, state, mode, *chosen):
        request, about = state
        more = replace(request, mode=mode, limit=request.limit + STEP, chosen=list(chosen))
        return self._show(more, about)

    def clear(self, _state, mode, *chosen):
        return "", *self._show(Request("", None, mode, STEP, list(chosen)))

    def example(self, event: gr.EventData, state, mode, *chosen):
        return event.text, *self.search(event.text, state, mode, *chosen)

    def more_like(self, event: gr.EventData, state, mode, *chosen):
        """Searches by the vector of the picture that was clicked."""
        request = Request("", None, mode, STEP, list(chosen))
        try:
            key = self.catalog.key(event.id)
            rows = self.database.fetch(statements.describe(self.catalog, key))
            if not rows:
                raise Problem("This picture is no longer in the table.")
            ((description, has_vector),) = rows
            if not has_vector:
                raise Problem("This picture has no vector yet.", hint="Its row is not described.")
        except Problem as problem:
            return gr.skip(), *self._failed(problem, state)
        about = markup.like_title(key, description)
        return "", *self._show(replace(request, like=key), about)

    def by_picture(self, file, state, mode, *chosen):
        """Describes an uploaded picture and searches by the description; the file is removed."""
        path = Path(file)
        image = path.read_bytes()
        path.unlink(missing_ok=True)
        try:
            description, milliseconds = self.database.describe(image)
        except Problem as problem:
            return gr.skip(), None, *self._failed(problem, state)
        about = markup.picture_title(preview(image), description, milliseconds)
        request = Request(description, None, mode, STEP, list(chosen))
        return "", None, *self._show(request, about)

    def _show(self, request, about=""):
        """Runs a request; values for state, headline, results, further, SQL and plan."""
        state = (request, about)
        try:
            answer = self.database.search(
                statements.build(self.catalog, request), statements.order(self.catalog, request)
            )
        except Problem as problem:
            return self._failed(problem, state)
        blank = not request.text and request.like is None
        if not answer.rows and blank and not any(request.chosen):
            results = markup.empty(self.catalog)
        else:
            results = markup.cards(self.catalog, answer.rows)
        return (
            state,
            markup.headline(self.catalog, request, answer, about),
            results,
            gr.Button(visible=len(answer.rows) == request.limit),
            code(answer.statement),
            code(answer.plan),
        )

    @staticmethod
    def _failed(problem, state):
        return state, "", markup.error(problem), gr.Button(visible=False), code(""), code("")


def code(text):
    """An update of a box with code, which is shown where there is some."""
    return gr.Code(text, visible=bool(text))


def preview(image):
    """A small form of a picture that PostgreSQL could read, or of nothing where Pillow cannot."""
    try:
        return pictures.shrink(image, PREVIEW_EDGE)
    # Pillow raises whatever its decoders do.
    except Exception:
        return b""
