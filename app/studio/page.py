"""The studio's page: a form of Gradio's, and places that the scripts in look/ fill.

No event of it calls Python: what is made, watched and kept goes through the JSON routes, so a closed tab loses nothing.
"""

from __future__ import annotations

import os
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # which gradio reads when it is imported

import gradio as gr
from gradio.themes import Base
from gradio.themes.utils.fonts import LocalFont

from app.studio.form import Form, add_form, place
from app.studio.translations import read_words

AT = "/studio"
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
        *(f'<link rel="stylesheet" href="{AT}/look/{name}.css">' for name in STYLES),
    ]
)
START = f"""
import("{AT}/look/main.js").then((studio) => studio.open(props.value, () => trigger("fill")));
"""


def page(offer: dict[str, Any]) -> gr.Blocks:
    """Return the page of a studio with such an offer: the models, modes and choices of GET /studio/offer."""
    with gr.Blocks(title="Longtake", analytics_enabled=False, fill_width=True) as blocks:
        place("top")
        place("modes")
        place("stage")
        with gr.Row(elem_id="desk", equal_height=False):
            with gr.Column(elem_id="compose", min_width=0):
                form = add_form(offer)
            with gr.Column(elem_id="shelf", min_width=0):
                place("gallery")
        told = {
            "words": read_words(),
            "offer": offer,
            "initial": {name: one.value for name, one in form.fields.items()},
        }
        told |= {name: list(getattr(form, name)) for name in ("fields", "buttons", "folds")}
        start = gr.HTML(told, html_template="", js_on_load=START, elem_id="start")
        connect(form, start)
    return blocks


def connect(form: Form, start: gr.HTML) -> None:
    """Tell the scripts what is typed and chosen, and let them fill the form, without asking the server."""
    quiet = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    fields = list(form.fields.values())
    heard = "(...values) => { window.studio?.heard(values); }"
    gr.on([one.change for one in fields], None, fields, None, js=heard, trigger_mode="multiple", **quiet)
    start.fill(
        None, None, [*fields, *form.buttons.values(), *form.folds.values()], js="() => window.studio.filling()", **quiet
    )
    for name, button in form.buttons.items():
        pressed = f"(...values) => {{ window.studio?.pressed({name!r}, values); }}"
        button.click(None, fields, None, js=pressed, trigger_mode="multiple", **quiet)


def look() -> dict[str, Any]:
    """Return what `gr.mount_gradio_app` is to be told of how the page looks."""
    return {"theme": theme(), "head": HEAD}


def theme() -> Base:
    """Return the colours and shapes of Gradio's own parts: those of look/base.css."""
    return Base(
        primary_hue="amber",
        neutral_hue="zinc",
        font=FONTS,
        font_mono=("ui-monospace", "Consolas", "monospace"),
        radius_size="md",
        text_size="md",
    ).set(
        **both("body_background_fill", "var(--ground)"),
        **both("body_text_color", "var(--ink)"),
        **both("body_text_color_subdued", "var(--quiet)"),
        **both("background_fill_primary", "var(--panel)"),
        **both("background_fill_secondary", "var(--raised)"),
        **both("border_color_primary", "var(--line)"),
        **both("border_color_accent", "var(--accent)"),
        **both("color_accent_soft", "var(--glow)"),
        **both("block_background_fill", "transparent"),
        **both("block_label_text_color", "var(--quiet)"),
        **both("block_title_text_color", "var(--quiet)"),
        **both("block_info_text_color", "var(--quiet)"),
        **both("block_border_width", "0px"),
        **both("block_shadow", "none"),
        **both("input_background_fill", "var(--well)"),
        **both("input_background_fill_focus", "var(--well)"),
        **both("input_border_color", "var(--line)"),
        **both("input_border_color_focus", "var(--accent)"),
        **both("input_placeholder_color", "var(--faint)"),
        **both("input_shadow", "none"),
        **both("input_shadow_focus", "inset 0 0 0 1px var(--accent)"),
        **both("input_border_width", "1px"),
        **both("button_primary_background_fill", "var(--accent)"),
        **both("button_primary_background_fill_hover", "var(--accent-strong)"),
        **both("button_primary_text_color", "var(--on-accent)"),
        **both("button_secondary_background_fill", "var(--raised)"),
        **both("button_secondary_background_fill_hover", "var(--line)"),
        **both("button_secondary_text_color", "var(--ink)"),
        **both("button_border_width", "0px"),
        **both("slider_color", "var(--accent)"),
        **both("checkbox_background_color", "var(--well)"),
        **both("checkbox_background_color_selected", "var(--accent)"),
        **both("checkbox_border_color", "var(--line)"),
        **both("checkbox_border_color_selected", "var(--accent)"),
        **both("checkbox_label_background_fill", "var(--well)"),
        **both("checkbox_label_background_fill_hover", "var(--raised)"),
        **both("checkbox_label_background_fill_selected", "var(--glow)"),
        **both("checkbox_label_border_color", "var(--line)"),
        **both("checkbox_label_border_color_selected", "var(--accent)"),
        **both("checkbox_label_text_color", "var(--ink)"),
        **both("checkbox_label_text_color_selected", "var(--ink)"),
        block_title_text_weight="500",
        block_title_text_size="*text_sm",
        block_padding="0",
        layout_gap="14px",
        form_gap_width="0px",
    )


def both(name: str, value: str) -> dict[str, str]:
    """Set a part of the theme for light and for dark alike; the variable in it differs."""
    return {name: value, f"{name}_dark": value}
