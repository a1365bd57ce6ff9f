"""Chinese grammar: joins the words of `words_zh.py` into labels, plain captions and dense captions."""

from __future__ import annotations

import re
from collections.abc import Set

from .facts import STATIONARY_EVENTS, attributes, bystanders, patients
from .lexicon import WordPicker
from .scene import DIRECTED_EVENTS, Scene, Thing
from .words_zh import (
    DIRECTION_PHRASES,
    NUMBERS,
    OPPOSITE,
    PLACEMENT_VERBS,
    RELATION_WORDS,
    SIZE_PREDICATES,
    SPEED_NAMES,
    STACKS,
    STATIC_SHOTS,
    fill_template,
)

APPEARANCE = frozenset(("colour", "shape", "size", "material"))
SINGLE_VERB_EVENTS = ("rest", "roll", "slide", "spin", "bounce")  # the place may stand right in front of the verb
PROGRESSIVE_EVENTS = ("roll", "slide", "spin", "bounce", "swing", "fall")  # verbs that can be going on
AIRBORNE_EVENTS = ("fall", "throw", "bounce", "swing", "edge")  # not always on the ground
MATERIAL_CLAUSES = {
    "matte": ("表面哑光", "是橡胶做的"),
    "glossy": ("表面光亮", "是光亮的塑料做的"),
    "metal": ("是金属做的", "表面是金属的"),
}
ONE_WORD_COLOURS = ("红色", "黄色", "绿色", "蓝色", "紫色", "白色", "黑色")  # colours that make one word with 球
LIGHT_QUALITY = {"morning": "柔和", "noon": "明亮", "sunset": "温暖", "night": "昏暗"}
VIDEO_OPENINGS = ("", "画面中，", "视频里，", "视频展示了", "这段视频中，")
IMAGE_OPENINGS = ("图中是", "画面中有", "这张图片展示了", "图片里有")
STILL_CONTEXT = {"swing": "吊在绳子上的", "edge": "平台边的", "occlude": "墙边的"}  # what a still shows


def label(scene: Scene, picker: WordPicker) -> str:
    """List the things by colour and shape: "红球，蓝色方块"."""
    return "，".join(noun_phrase(thing, {"colour", "shape"}, picker).replace("的", "") for thing in scene.things)


def plain(scene: Scene, named: Set[str], moving: bool, picker: WordPicker) -> str:
    """Write a caption of one line that names the attributes in `named` and the bystanders, as a user types it."""
    eventful = moving and "event" in named
    others = bystanders(scene)
    where, fronts, tails = "", [light_phrase(scene, named, picker)], []
    if {"ground", "wetness"} & named:
        ground = ground_phrase(scene, named, picker)
        if scene.event in AIRBORNE_EVENTS:
            tails = [f"地面是{ground}"]
        elif eventful and scene.event in SINGLE_VERB_EVENTS and picker.chance(0.5):
            where = f"在{ground}上"
        else:
            fronts = [f"{fronts[0]}的{ground}上"] if {"sky", "time"} & named == {"time"} else [*fronts, f"{ground}上"]
    placed = moving or scene.event in STATIONARY_EVENTS
    if len(others) == 1 and placed and not where and picker.chance(0.4):
        spot = f"在{with_classifier(others[0], brief_attributes(picker), picker)}{subject_relation(others[0], picker)}"
        if eventful and scene.event in SINGLE_VERB_EVENTS:
            where = spot
        else:
            fronts.append(spot)
        others = []
    spotted = fronts[-1].startswith("在")
    if eventful:
        crowded = spotted or "一个" in where
        forms = ("finite", "progressive") if crowded else ("finite", "relative", "progressive")
        text = event_phrase(scene, named, picker.pick(forms), where, False, picker)
    else:
        text = ("有" if spotted else "") + still_phrase(scene, named, moving, False, picker)
    name = "它的" if scene.event not in SINGLE_VERB_EVENTS or picker.chance(0.3) else ""
    if name and {"colour", "shape"} <= named and patients(scene):
        name = noun_phrase(scene.things[0], ("colour", "shape"), picker)
    if others:
        tails.insert(0, bystander_clause(others, name, placed, [brief_attributes(picker) for _ in others], picker))
    text = "，".join(part for part in (*fronts, text, *tails) if part)
    return end_sentence(add_camera(text, scene, named, picker), picker)


def dense(scene: Scene, moving: bool, picker: WordPicker) -> str:
    """Write a caption of several sentences that names all attributes."""
    truth = attributes(scene, moving)
    first, others = scene.things[0], picker.shuffle(bystanders(scene))
    inline = {name for name in ("size", "material") if picker.chance(0.6)}
    named = {"colour", "shape", "event", "direction"} | inline
    pace = truth.get("speed")
    if pace and pace != "normal" and picker.chance(0.7):
        named.add("speed")
    named -= picker.excluded
    pace = None if "speed" in picker.excluded else pace
    where = ""
    if moving and scene.event not in AIRBORNE_EVENTS and picker.chance(0.4) and ground_attributes(scene, picker):
        where = f"在{ground_phrase(scene, ground_attributes(scene, picker), picker, usual=True)}上"
        named.add("ground")
    if moving:
        opening = picker.pick(VIDEO_OPENINGS)
        form = "relative" if opening.endswith("了") else picker.pick(("finite", "progressive"))
        text = opening + event_phrase(scene, named, form, where, True, picker)
    else:
        text = picker.pick(IMAGE_OPENINGS) + still_phrase(scene, named, moving, True, picker)
    sentences = [text]
    shape = next(word for word in picker.table["shape"][first.shape][::-1] if word in text)
    alike = any(thing.shape == first.shape for thing in scene.things[1:])
    name = picker.table["colour"][first.colour][0] + shape if alike else shape
    sentences += appearance_sentences(first, {"size", "material"} - inline - picker.excluded, f"这个{name}", picker)
    if pace and "speed" not in named and (pace != "normal" or picker.chance(0.3)):
        sentences.append(
            picker.pick(("动作", "它动得")) + SPEED_NAMES[pace] if pace != "normal" else f"运动{SPEED_NAMES[pace]}"
        )
    if scene.event == "topple":
        cubes = [colour_and_material(cube, picker) for cube in patients(scene)]
        sentences.append(("从下往上，方块依次是" if moving else "方块是") + join_list(cubes))
    parts = []
    if others:
        start = "一开始，" if moving and scene.event in DIRECTED_EVENTS and picker.chance(0.5) else ""
        parts.append(
            [
                start
                + bystander_clause(
                    others, f"{name}的", moving or scene.event in STATIONARY_EVENTS, [APPEARANCE] * len(others), picker
                )
            ]
        )
    elif len(scene.things) == 1 and scene.event not in STILL_CONTEXT and picker.chance(0.4):
        parts.append(["没有其他物体"])
    if moving and "camera" not in picker.excluded:
        parts.append([picker.pick(("", "与此同时，", "整个过程中，")) + camera_phrase(scene, picker)])
    parts.append(setting_sentences(scene, named, picker))
    for part in picker.shuffle(range(len(parts))):
        sentences += parts[part]
    return "".join(sentence + "。" for sentence in sentences)


def brief_attributes(picker: WordPicker) -> set[str]:
    """Choose the attributes that a brief mention names: colour, shape and sometimes others."""
    return {"colour", "shape"} | {name for name in ("size", "material") if picker.chance(picker.detail_probability)}


def colour_and_material(thing: Thing, picker: WordPicker) -> str:
    """Name colour and material: "红色金属的"."""
    if "material" in picker.excluded:
        return picker.word("colour", thing.colour) + "的"
    options = [words for words in picker.options("material", thing.material) if words.startswith("{}")]
    return picker.pick(options).format(picker.word("colour", thing.colour)) + "的"


def noun_phrase(thing: Thing, named, picker: WordPicker) -> str:
    """Name a thing by the attributes in `named`: "红色的大金属球"."""
    named = set(named) - picker.excluded
    colour = picker.word("colour", thing.colour) if "colour" in named else ""
    shape = picker.word("shape", thing.shape) if "shape" in named else "物体"
    size = picker.word("size", thing.size) if "size" in named else ""
    front, size = (size, "") if size.endswith("的") else ("", size)
    pattern = "{}"
    if "material" in named:
        options = picker.options("material", thing.material)
        behind = [words for words in options if words.startswith("{}")]
        pattern = picker.pick(behind if front and behind else options)
    before, after = pattern.split("{}")
    if not colour:
        return f"{front}{before}{size}{after}{shape}"
    bare = not (front or before or size or after)
    if bare and shape == "球" and colour in ONE_WORD_COLOURS and picker.chance(0.6):
        return colour[0] + shape
    if shape == "球" and not (size or after):
        return f"{front}{before}{colour}{'的球' if bare else '圆球'}"
    link = "的" if not (front or before) and picker.chance(0.4) else ""
    return f"{front}{before}{colour}{link}{size}{after}{shape}"


def drop_particle(name: str) -> str:
    """Leave out the 的 of a name that has one in front of it already."""
    return re.sub("色的(?!球)", "色", name)


def with_classifier(thing: Thing, named, picker: WordPicker) -> str:
    return "一个" + noun_phrase(thing, named, picker)


def join_list(parts: list[str]) -> str:
    return "、".join(parts[:-1]) + "和" * (len(parts) > 1) + parts[-1]


def subject_relation(thing: Thing, picker: WordPicker) -> str:
    """Describe where the subject is relative to a thing: "前面" of a thing that stands behind it, or just "旁边"."""
    assert thing.relation is not None
    near = thing.relation in ("left of", "right of") and picker.chance(0.5)
    return "旁边" if near else picker.pick(RELATION_WORDS[OPPOSITE[thing.relation]])


def bystander_clause(others: list[Thing], name: str, placed: bool, named: list, picker: WordPicker) -> str:
    """Describe the bystanders of the subject `name`, and where they are if `placed`: "它的后面有一个蓝色方块"."""
    if not placed:
        return "附近有" + join_list(
            [with_classifier(thing, own, picker) for thing, own in zip(others, named, strict=True)]
        )
    verb = picker.pick(PLACEMENT_VERBS)
    return "，".join(
        ("" if number else name)
        + picker.pick(RELATION_WORDS[thing.relation or ""])
        + verb
        + with_classifier(thing, named[number], picker)
        for number, thing in enumerate(others)
    )


def patient_phrase(scene: Scene, full: bool, picker: WordPicker, stacked: bool = True) -> str:
    """Name the patients of the event: in "topple" all cubes, as a stack unless they are no longer `stacked`."""
    things = patients(scene)
    if scene.event != "topple":
        return with_classifier(things[0], APPEARANCE if full else brief_attributes(picker), picker)
    sized = (full or picker.chance(max(0.3, picker.detail_probability))) and "size" not in picker.excluded
    size = picker.word("size", things[0].size) if sized else ""
    return (picker.pick(STACKS) if stacked else "{number}个{size}方块").format(number=NUMBERS[len(things)], size=size)


def event_phrase(scene: Scene, named, form: str, where: str, full: bool, picker: WordPicker) -> str:
    """Write subject and event: it rolls ("finite"), it is rolling ("progressive"), a rolling ball ("relative")."""
    words = picker.event_phrase(scene.event, directed := bool(scene.direction) and "direction" in named).replace(
        "~", ""
    )
    way = picker.pick(DIRECTION_PHRASES) if directed else ""
    if scene.event == "edge" and scene.things[0].shape == "cube":
        words = words.replace("滚", "滑")
    thing = noun_phrase(scene.things[0], named, picker)
    whole = "，" in words or "{object}" in words
    words = fill_template(words, fill_template(way, "", scene.direction), scene.direction)
    if "{object}" in words:
        words = words.replace("{object}", patient_phrase(scene, full, picker))
    pace = attributes(scene).get("speed", "normal") if "speed" in named else "normal"
    adverb = "" if pace == "normal" else picker.phrase("speed", pace)
    words = words.replace("{pace}", adverb) if "{pace}" in words else adverb + words
    if form == "relative" and not whole:
        return f"一个{where}{words}的{drop_particle(thing)}"
    if form == "progressive" and scene.event in PROGRESSIVE_EVENTS:
        where = "正" + (where or ("" if re.search("在|像", words) else "在"))
    return f"一个{thing}{where}{words}"


def still_phrase(scene: Scene, named, moving: bool, full: bool, picker: WordPicker) -> str:
    """Name the subject and the patients of its event, without motion."""
    state = STILL_CONTEXT.get(scene.event, "") if not moving and (full or picker.chance(0.5)) else ""
    if moving and "direction" in named and scene.direction:
        state = fill_template(picker.pick(DIRECTION_PHRASES), "", scene.direction) + "移动的"
    if moving and "speed" in named and scene.event != "rest" and (pace := attributes(scene)["speed"]) != "normal":
        state = picker.phrase("speed", pace) + (state or "移动的")
    thing = noun_phrase(scene.things[0], named, picker)
    text = f"一个{state}{drop_particle(thing)}" if state else f"一个{thing}"
    return f"{text}和{patient_phrase(scene, full, picker, stacked=False)}" if patients(scene) else text


def ground_attributes(scene: Scene, picker: WordPicker) -> set[str]:
    """Return the attributes of the ground that a dense caption names."""
    return ({"ground", "wetness"} if scene.rules.wet_share else {"ground"}) - picker.excluded


def ground_phrase(scene: Scene, named, picker: WordPicker, usual: bool = False) -> str:
    """Name the ground: "湿漉漉的水泥地", or "地面" if `named` has no ground; `usual` prefers the most common word."""
    name = (picker.word if usual else picker.phrase)("ground", scene.ground) if "ground" in named else "地面"
    return (picker.word("wetness", scene.wetness) if "wetness" in named else "") + name


def light_phrase(scene: Scene, named, picker: WordPicker) -> str:
    """Name time of day and sky: "晴朗的早晨", "多云的天空下", or nothing."""
    time, sky = picker.word("time", scene.time), picker.word("sky", scene.sky)
    if "time" not in named:
        return f"{sky}的天空下" if "sky" in named else ""
    if scene.time == "sunset" and "sky" in named:
        return f"{time}，{sky}的天空下"
    return f"{sky}的{time}" if "sky" in named else time


def camera_phrase(scene: Scene, picker: WordPicker) -> str:
    """Describe the camera move: "镜头向左环绕"."""
    move, _, side = scene.camera.partition(" ")
    move, side = (move, side) if side in ("left", "right") else (scene.camera, None)
    return "镜头" + fill_template(picker.phrase("camera", move), "", side)


def add_camera(text: str, scene: Scene, named, picker: WordPicker) -> str:
    if "camera" not in named:
        return text
    if scene.camera == "still" and picker.chance(0.6) and not picker.use_reserved:
        shot = picker.pick(STATIC_SHOTS)
        return f"{shot}，{text}" if picker.chance(0.4) else f"{text}，{shot}"
    words = camera_phrase(scene, picker)
    return picker.pick((f"{text}，{words}", f"{words}，{text}", f"{text}，同时{words}"))


def end_sentence(text: str, picker: WordPicker) -> str:
    return text + "。" if picker.chance(0.12) else text


def appearance_sentences(thing: Thing, missing: set[str], name: str, picker: WordPicker) -> list[str]:
    """Name the size and the material that the first sentence left out."""
    parts = [SIZE_PREDICATES[thing.size]] * ("size" in missing) + [picker.pick(MATERIAL_CLAUSES[thing.material])] * (
        "material" in missing
    )
    return [name + "，".join(parts)] if parts else []


def setting_sentences(scene: Scene, named, picker: WordPicker) -> list[str]:
    """Describe the light, and the ground unless `named` has it."""
    below = ground_attributes(scene, picker)
    time, sky = (picker.word(name, getattr(scene, name)) for name in ("time", "sky"))
    ground = ground_phrase(scene, below, picker, usual=True)
    options = [
        f"时间是{time}，天空{sky}",
        f"{time}{LIGHT_QUALITY[scene.time]}的光线从{sky}的天空洒下",
        f"{sky}的天空下，{time}的光线{LIGHT_QUALITY[scene.time]}",
    ]
    if scene.time in ("morning", "night"):
        options.append(f"这是一个{sky}的{picker.table['time'][scene.time][0]}")
    if "time" in picker.excluded:
        options = [f"天空{sky}"]
    if "sky" in picker.excluded:
        options = [f"时间是{time}", f"{time}的光线{LIGHT_QUALITY[scene.time]}"]
    words = picker.pick(options)
    if "ground" in named or not below:
        return [words]
    where = picker.pick((f"地面是{ground}", f"场景在{ground}上"))
    if "ground" not in below:
        where = "地面" + ground.removesuffix("的地面")
    return [f"{words}，{where}"] if picker.chance(0.3) else picker.shuffle([where, words])
