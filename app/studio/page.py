"""The studio's page: a Gradio form, and placeholders that the scripts in frontend/ fill.

No Gradio event calls Python: the scripts use the JSON routes, so a closed tab loses nothing.
"""

from __future__ import annotations

import os
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported

import gradio as gr
from gradio.themes import Base
from gradio.themes.utils.fonts import LocalFont

from app.studio.assets import STUDIO_PATH
from app.studio.form import StudioForm, add_form, add_placeholder
from app.studio.translations import read_translations

FONTS = (
    LocalFont("IBM Plex Sans", (400, 700)),
    "system-ui",
    "PingFang SC",
    "Microsoft YaHei",
    "Noto Sans CJK SC",
    "sans-serif",
)
STYLES = ("base", "compose", "tools", "timeline", "gallery", "sheets", "compare")
HEAD = "\n".join(
    [
        '<meta name="color-scheme" content="dark light">',
        *(f'<link rel="stylesheet" href="{STUDIO_PATH}/frontend/{name}.css">' for name in STYLES),
    ]
)
START = f"""
import("{STUDIO_PATH}/frontend/main.js").then((studio) => studio.open(props.value, () => trigger("fill")));
"""


def studio_page(options: dict[str, Any]) -> gr.Blocks:
    """Return the page of a studio with these options: the body of GET /studio/options."""
    with gr.Blocks(title="Longtake", analytics_enabled=False, fill_width=True) as blocks:
        add_placeholder("top")
        add_placeholder("modes")
        add_placeholder("stage")
        with gr.Row(elem_id="columns", equal_height=False):
            with gr.Column(elem_id="compose", min_width=0):
                form = add_form(options)
            with gr.Column(elem_id="gallery-column", min_width=0):
                add_placeholder("gallery")
        props = {
            "translations": read_translations(),
            "options": options,
            "initial": {name: component.value for name, component in form.fields.items()},
            "fields": list(form.fields),
            "buttons": list(form.buttons),
            "sections": list(form.sections),
        }
        start = gr.HTML(props, html_template="", js_on_load=START, elem_id="start")
        connect(form, start)
    return blocks


def connect(form: StudioForm, start: gr.HTML) -> None:
    """Call our scripts when a component changes, and let them fill the form, without a call to the server."""
    quiet = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    fields = list(form.fields.values())
    on_change = "(...values) => { window.studio?.fieldsChanged(values); }"
    gr.on([field.change for field in fields], None, fields, None, js=on_change, trigger_mode="multiple", **quiet)
    outputs = [*fields, *form.buttons.values(), *form.sections.values()]
    start.fill(None, None, outputs, js="() => window.studio.formUpdates()", **quiet)
    for name, button in form.buttons.items():
        on_click = f"(...values) => {{ window.studio?.buttonPressed({name!r}, values); }}"
        button.click(None, fields, None, js=on_click, trigger_mode="multiple", **quiet)


def page_settings() -> dict[str, Any]:
    """Return the arguments of `gr.mount_gradio_app` that set the theme and the style sheets."""
    return {"theme": theme(), "head": HEAD}


def theme() -> Base:
    """Return the theme of Gradio's own components, with the colours of frontend/base.css."""
    return Base(
        primary_hue="amber",
        neutral_hue="zinc",
        font=FONTS,
        font_mono=("ui-monospace", "Consolas", "monospace"),
        radius_size="md",
        text_size="md",
    ).set(
        **light_and_dark("body_background_fill", "var(--ground)"),
        **light_and_dark("body_text_color", "var(--ink)"),
        **light_and_dark("body_text_color_subdued", "var(--quiet)"),
        **light_and_dark("background_fill_primary", "var(--panel)"),
        **light_and_dark("background_fill_secondary", "var(--raised)"),
        **light_and_dark("border_color_primary", "var(--line)"),
        **light_and_dark("border_color_accent", "var(--accent)"),
        **light_and_dark("color_accent_soft", "var(--glow)"),
        **light_and_dark("block_background_fill", "transparent"),
        **light_and_dark("block_label_text_color", "var(--quiet)"),
        **light_and_dark("block_title_text_color", "var(--quiet)"),
        **light_and_dark("block_info_text_color", "var(--quiet)"),
        **light_and_dark("block_border_width", "0px"),
        **light_and_dark("block_shadow", "none"),
        **light_and_dark("input_background_fill", "var(--well)"),
        **light_and_dark("input_background_fill_focus", "var(--well)"),
        **light_and_dark("input_border_color", "var(--line)"),
        **light_and_dark("input_border_color_focus", "var(--accent)"),
        **light_and_dark("input_placeholder_color", "var(--faint)"),
        **light_and_dark("input_shadow", "none"),
        **light_and_dark("input_shadow_focus", "inset 0 0 0 1px var(--accent)"),
        **light_and_dark("input_border_width", "1px"),
        **light_and_dark("button_primary_background_fill", "var(--accent)"),
        **light_and_dark("button_primary_background_fill_hover", "var(--accent-strong)"),
        **light_and_dark("button_primary_text_color", "var(--on-accent)"),
        **light_and_dark("button_secondary_background_fill", "var(--raised)"),
        **light_and_dark("button_secondary_background_fill_hover", "var(--line)"),
        **light_and_dark("button_secondary_text_color", "var(--ink)"),
        **light_and_dark("button_border_width", "0px"),
        **light_and_dark("slider_color", "var(--accent)"),
        **light_and_dark("checkbox_background_color", "var(--well)"),
        **light_and_dark("checkbox_background_color_selected", "var(--accent)"),
        **light_and_dark("checkbox_border_color", "var(--line)"),
        **light_and_dark("checkbox_border_color_selected", "var(--accent)"),
        **light_and_dark("checkbox_label_background_fill", "var(--well)"),
        **light_and_dark("checkbox_label_background_fill_hover", "var(--raised)"),
        **light_and_dark("checkbox_label_background_fill_selected", "var(--glow)"),
        **light_and_dark("checkbox_label_border_color", "var(--line)"),
        **light_and_dark("checkbox_label_border_color_selected", "var(--accent)"),
        **light_and_dark("checkbox_label_text_color", "var(--ink)"),
        **light_and_dark("checkbox_label_text_color_selected", "var(--ink)"),
        block_title_text_weight="500",
        block_title_text_size="*text_sm",
        block_padding="0",
        layout_gap="14px",
        form_gap_width="0px",
    )


def light_and_dark(name: str, value: str) -> dict[str, str]:
    """Set one theme variable for light and dark; the CSS variable in the value differs between them."""
    return {name: value, f"{name}_dark": value}
