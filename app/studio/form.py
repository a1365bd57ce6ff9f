"""The form in which a clip is asked for: the fields of a Request. What only some modes read is shown with them.

Labels are put in by the scripts, in the language of the page; sizes and durations are those of the offer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from app.studio.translations import read_words

MOST_STEPS, MOST_GUIDANCE = 100, 20


@dataclass(frozen=True)
class Form:
    """Gradio's components by the names that the scripts know: fields have values, buttons are pressed,
    folds are opened."""

    fields: dict[str, Any] = field(default_factory=dict)
    buttons: dict[str, gr.Button] = field(default_factory=dict)
    folds: dict[str, gr.Accordion] = field(default_factory=dict)

    def add(self, kind: type, name: str, *values: Any, **settings: Any) -> Any:
        """Add a field, with its English label until the scripts know better; `values` are those of its class."""
        words = read_words()["en"]
        if hint := words.get(f"form.{name}_hint"):
            settings["placeholder"] = hint
        if info := words.get(f"form.{name}_info"):
            settings["info"] = info
        self.fields[name] = kind(
            *values, label=words[f"form.{name}"], interactive=True, elem_id=f"f-{name}", min_width=0, **settings
        )
        return self.fields[name]

    def press(self, name: str, **settings: Any) -> gr.Button:
        """Add a button."""
        words = read_words()["en"]
        self.buttons[name] = gr.Button(words[f"form.{name}"], elem_id=f"b-{name}", min_width=0, **settings)
        return self.buttons[name]

    def fold(self, name: str) -> gr.Accordion:
        """Add a part that is opened by who wants it."""
        self.folds[name] = gr.Accordion(read_words()["en"][f"form.{name}"], open=False, elem_id=f"a-{name}")
        return self.folds[name]


def add_form(offer: dict[str, Any]) -> Form:
    """Add the form to the page that is being built."""
    form, model = Form(), offer["models"][0]
    defaults, names = model["defaults"], [one["name"] for one in offer["models"]]
    place("presets")
    place("sources")
    with gr.Column(elem_id="words", min_width=0):
        form.add(gr.Textbox, "prompt", lines=3, max_lines=10)
        form.add(gr.Textbox, "negative_prompt", lines=1, max_lines=4)
    with form.fold("writing"):
        form.add(gr.Radio, "upsample", offer["upsamplers"], value=offer["upsamplers"][0])
        form.add(gr.Textbox, "upsampled_prompt", lines=2, max_lines=10)
        form.press("write", size="sm")
    with gr.Row(elem_classes="reads-strength"):
        form.add(gr.Slider, "strength", 0, 1, 0.6, step=0.05)
    with gr.Row(elem_classes="reads-side"):
        form.add(gr.Radio, "side", offer["sides"], value=offer["sides"][0])
    form.add(gr.Radio, "size", [one["size"] for one in model["sizes"]], value=defaults["size"])
    with gr.Row(elem_classes="trained"):
        seconds = sorted({one for size in model["sizes"] for one in size["seconds"]})
        form.add(gr.Radio, "seconds", seconds, value=defaults["seconds"])
    with gr.Row(elem_classes="any-length"):
        form.add(gr.Number, "length", None, minimum=0, step=0.5)
    with gr.Row(elem_id="chance"):
        form.add(gr.Number, "seed", 0, precision=0, minimum=0, scale=3)
        form.press("dice", size="sm", scale=0)
        form.add(gr.Checkbox, "lock", False, scale=2)
    form.add(gr.Slider, "variations", 1, offer["limits"]["variations"], 1, step=1)
    with form.fold("advanced"):
        add_advanced(form, offer, defaults, names)
    with gr.Row(elem_id="making"):
        place("estimate")
        form.press("make", variant="primary")
    return form


def place(name: str) -> None:
    """Leave a place on the page that a script fills."""
    gr.HTML(html_template=f'<div id="{name}"></div>', js_on_load=None, apply_default_css=False, elem_id=f"{name}-place")


def add_advanced(form: Form, offer: dict[str, Any], defaults: dict[str, Any], names: list[str]) -> None:
    """Add what most people leave to the model."""
    form.add(gr.Slider, "steps", 1, MOST_STEPS, defaults["steps"], step=1)
    form.add(gr.Slider, "guidance", 0, MOST_GUIDANCE, defaults["guidance"], step=0.25)
    with gr.Row(elem_classes="reads-frames"):
        form.add(gr.Slider, "frame_guidance", 0, MOST_GUIDANCE, defaults["frame_guidance"], step=0.25)
    with gr.Row():
        form.add(gr.Number, "low", 0, minimum=0, maximum=1, step=0.05)
        form.add(gr.Number, "high", 1, minimum=0, maximum=1, step=0.05)
        form.add(gr.Number, "guidance_rescale", 0, minimum=0, maximum=1, step=0.05)
    with gr.Row():
        form.add(gr.Dropdown, "sampler", offer["samplers"], value=defaults["sampler"], filterable=False)
        form.add(gr.Dropdown, "watermark", ["", *offer["corners"]], value="", filterable=False)
    with gr.Row(elem_classes="several-models"):
        form.add(gr.Dropdown, "model", names, value=names[0], filterable=False)
