"""The form of the page: the fields of a Request. Style sheets hide the fields that the chosen mode does not read.

The scripts replace the labels by those of the page's language; sizes and durations come from the options.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from app.studio.translations import read_translations
from captioning.camera import CAMERA_MOVES

MAX_STEPS, MAX_GUIDANCE = 100, 20


@dataclass(frozen=True)
class StudioForm:
    """Gradio's components by the names that the scripts use."""

    fields: dict[str, Any] = field(default_factory=dict)
    buttons: dict[str, gr.Button] = field(default_factory=dict)
    sections: dict[str, gr.Accordion] = field(default_factory=dict)

    def add_field(self, component: type, name: str, *values: Any, **settings: Any) -> Any:
        """Add a field with its English label; `values` are positional arguments of the component."""
        texts = read_translations()["en"]
        if hint := texts.get(f"form.{name}_hint"):
            settings["placeholder"] = hint
        if info := texts.get(f"form.{name}_info"):
            settings["info"] = info
        self.fields[name] = component(
            *values, label=texts[f"form.{name}"], interactive=True, elem_id=f"f-{name}", min_width=0, **settings
        )
        return self.fields[name]

    def add_button(self, name: str, **settings: Any) -> gr.Button:
        """Add a button."""
        label = read_translations()["en"][f"form.{name}"]
        self.buttons[name] = gr.Button(label, elem_id=f"b-{name}", min_width=0, **settings)
        return self.buttons[name]

    def add_section(self, name: str) -> gr.Accordion:
        """Add a section that is closed at first."""
        label = read_translations()["en"][f"form.{name}"]
        self.sections[name] = gr.Accordion(label, open=False, elem_id=f"a-{name}")
        return self.sections[name]


def add_form(options: dict[str, Any]) -> StudioForm:
    """Add the form to the page that is being built."""
    form, model = StudioForm(), options["models"][0]
    defaults, names = model["defaults"], [one["name"] for one in options["models"]]
    add_placeholder("presets")
    add_placeholder("sources")
    with gr.Column(elem_id="prompts", min_width=0):
        form.add_field(gr.Textbox, "prompt", lines=3, max_lines=10)
        add_placeholder("words")
        form.add_field(gr.Textbox, "negative_prompt", lines=1, max_lines=4)
    with form.add_section("upsampling"):
        form.add_field(gr.Radio, "upsample", options["upsamplers"], value=options["upsamplers"][0])
        form.add_field(gr.Textbox, "upsampled_prompt", lines=2, max_lines=10)
        form.add_button("upsample_now", size="sm")
    with gr.Row(elem_classes="reads-strength"):
        form.add_field(gr.Slider, "strength", 0, 1, 0.6, step=0.05)
    with gr.Row(elem_classes="reads-side"):
        form.add_field(gr.Radio, "side", options["sides"], value=options["sides"][0])
    with gr.Row(elem_classes="reads-camera"):
        form.add_field(gr.Dropdown, "camera", ["", *CAMERA_MOVES], value="", filterable=False)
    form.add_field(gr.Radio, "size", [one["size"] for one in model["sizes"]], value=defaults["size"])
    with gr.Row(elem_classes="trained"):
        seconds = sorted({seconds for size in model["sizes"] for seconds in size["seconds"]})
        form.add_field(gr.Radio, "seconds", seconds, value=defaults["seconds"])
    with gr.Row(elem_classes="any-length"):
        form.add_field(gr.Number, "length", None, minimum=0, step=0.5)
    with gr.Row(elem_id="seed-row"):
        form.add_field(gr.Number, "seed", 0, precision=0, minimum=0, scale=3)
        form.add_button("random_seed", size="sm", scale=0)
        form.add_field(gr.Checkbox, "lock", False, scale=2)
    form.add_field(gr.Slider, "variations", 1, options["limits"]["variations"], 1, step=1)
    with form.add_section("advanced"):
        add_advanced_fields(form, options, defaults, names)
    with gr.Row(elem_id="submit-row"):
        add_placeholder("estimate")
        form.add_button("generate", variant="primary")
    return form


def add_placeholder(name: str) -> None:
    """Add an empty element that a script fills."""
    gr.HTML(html_template=f'<div id="{name}"></div>', js_on_load=None, apply_default_css=False, elem_id=f"{name}-place")


def add_advanced_fields(form: StudioForm, options: dict[str, Any], defaults: dict[str, Any], names: list[str]) -> None:
    """Add the fields that most users leave at the defaults of the model."""
    form.add_field(gr.Slider, "steps", 1, MAX_STEPS, defaults["steps"], step=1)
    form.add_field(gr.Slider, "guidance", 0, MAX_GUIDANCE, defaults["guidance"], step=0.25)
    with gr.Row(elem_classes="reads-frames"):
        form.add_field(gr.Slider, "frame_guidance", 0, MAX_GUIDANCE, defaults["frame_guidance"], step=0.25)
    with gr.Row():
        form.add_field(gr.Number, "low", 0, minimum=0, maximum=1, step=0.05)
        form.add_field(gr.Number, "high", 1, minimum=0, maximum=1, step=0.05)
        form.add_field(gr.Number, "guidance_rescale", 0, minimum=0, maximum=1, step=0.05)
    with gr.Row():
        form.add_field(gr.Dropdown, "sampler", options["samplers"], value=defaults["sampler"], filterable=False)
        form.add_field(gr.Dropdown, "watermark", ["", *options["corners"]], value="", filterable=False)
    with gr.Row(elem_classes="several-models"):
        form.add_field(gr.Dropdown, "model", names, value=names[0], filterable=False)
