"""Chinese sentences: how the words of `words_zh.py` are joined into labels, plain captions and dense captions."""

from __future__ import annotations

import re
from collections.abc import Set

from .facts import STAYS, attributes, bystanders, patients
from .lexicon import Voice
from .scene import TRAVELS, Scene, Thing
from .words_zh import NUMBERS, OPPOSITE, PACES, PLACES, SIZED, STACKS, STANDS, STATIC, WAYS, fill

LOOKS = frozenset(("colour", "shape", "size", "material"))
CALM = ("rest", "roll", "slide", "spin", "bounce")  # the place may stand right in front of the verb
ONGOING = ("roll", "slide", "spin", "bounce", "swing", "fall")  # verbs that can be going on
ALOFT = ("fall", "throw", "bounce", "swing", "edge")  # not always on the ground
MADE = {
    "matte": ("表面哑光", "是橡胶做的"),
    "glossy": ("表面光亮", "是光亮的塑料做的"),
    "metal": ("是金属做的", "表面是金属的"),
}
BRIEF = ("红色", "黄色", "绿色", "蓝色", "紫色", "白色", "黑色")  # colours that make one word with 球
LIGHT = {"morning": "柔和", "noon": "明亮", "sunset": "温暖", "night": "昏暗"}
SHOWS = ("", "画面中，", "视频里，", "视频展示了", "这段视频中，")
PICTURES = ("图中是", "画面中有", "这张图片展示了", "图片里有")
STILLS = {"swing": "吊在绳子上的", "edge": "平台边的", "occlude": "墙边的"}  # what a still shows


def label(scene: Scene, voice: Voice) -> str:
    """Name the things: "红球，蓝色方块"."""
    return "，".join(noun(thing, {"colour", "shape"}, voice).replace("的", "") for thing in scene.things)


def plain(scene: Scene, says: Set[str], moving: bool, voice: Voice) -> str:
    """Say in one line, as somebody types it, the attributes in `says` and what else is there."""
    eventful = moving and "event" in says
    others = bystanders(scene)
    where, fronts, tails = "", [light(scene, says, voice)], []
    if {"ground", "wetness"} & says:
        ground = floor(scene, says, voice)
        if scene.event in ALOFT:
            tails = [f"地面是{ground}"]
        elif eventful and scene.event in CALM and voice.chance(0.5):
            where = f"在{ground}上"
        else:
            fronts = [f"{fronts[0]}的{ground}上"] if {"sky", "time"} & says == {"time"} else [*fronts, f"{ground}上"]
    placed = moving or scene.event in STAYS
    if len(others) == 1 and placed and not where and voice.chance(0.4):
        spot = f"在{one(others[0], glance(voice), voice)}{beside(others[0], voice)}"
        if eventful and scene.event in CALM:
            where = spot
        else:
            fronts.append(spot)
        others = []
    spotted = fronts[-1].startswith("在")
    if eventful:
        crowded = spotted or "一个" in where
        forms = ("finite", "progressive") if crowded else ("finite", "relative", "progressive")
        text = act(scene, says, voice.pick(forms), where, False, voice)
    else:
        text = ("有" if spotted else "") + picture(scene, says, moving, False, voice)
    name = "它的" if scene.event not in CALM or voice.chance(0.3) else ""
    if name and {"colour", "shape"} <= says and patients(scene):
        name = noun(scene.things[0], ("colour", "shape"), voice)
    if others:
        tails.insert(0, company(others, name, placed, [glance(voice) for _ in others], voice))
    text = "，".join(part for part in (*fronts, text, *tails) if part)
    return finish(add_camera(text, scene, says, voice), voice)


def dense(scene: Scene, moving: bool, voice: Voice) -> str:
    """Say everything that is true of the scene in a few sentences, in the dialect of a recaptioner."""
    truth = attributes(scene, moving)
    first, others = scene.things[0], voice.shuffle(bystanders(scene))
    inline = {name for name in ("size", "material") if voice.chance(0.6)}
    says = {"colour", "shape", "event", "direction"} | inline
    pace = truth.get("speed")
    if pace and pace != "normal" and voice.chance(0.7):
        says.add("speed")
    says -= voice.without
    pace = None if "speed" in voice.without else pace
    where = ""
    if moving and scene.event not in ALOFT and voice.chance(0.4) and beneath(scene, voice):
        where = f"在{floor(scene, beneath(scene, voice), voice, usual=True)}上"
        says.add("ground")
    if moving:
        opening = voice.pick(SHOWS)
        form = "relative" if opening.endswith("了") else voice.pick(("finite", "progressive"))
        text = opening + act(scene, says, form, where, True, voice)
    else:
        text = voice.pick(PICTURES) + picture(scene, says, moving, True, voice)
    sentences = [text]
    shape = next(word for word in voice.table["shape"][first.shape][::-1] if word in text)
    alike = any(thing.shape == first.shape for thing in scene.things[1:])
    name = voice.table["colour"][first.colour][0] + shape if alike else shape
    sentences += appearance(first, {"size", "material"} - inline - voice.without, f"这个{name}", voice)
    if pace and "speed" not in says and (pace != "normal" or voice.chance(0.3)):
        sentences.append(voice.pick(("动作", "它动得")) + PACES[pace] if pace != "normal" else f"运动{PACES[pace]}")
    if scene.event == "topple":
        cubes = [skin(cube, voice) for cube in patients(scene)]
        sentences.append(("从下往上，方块依次是" if moving else "方块是") + series(cubes))
    parts = []
    if others:
        start = "一开始，" if moving and scene.event in TRAVELS and voice.chance(0.5) else ""
        parts.append(
            [start + company(others, f"{name}的", moving or scene.event in STAYS, [LOOKS] * len(others), voice)]
        )
    elif len(scene.things) == 1 and scene.event not in STILLS and voice.chance(0.4):
        parts.append(["没有其他物体"])
    if moving and "camera" not in voice.without:
        parts.append([voice.pick(("", "与此同时，", "整个过程中，")) + camera(scene, voice)])
    parts.append(setting(scene, says, voice))
    for part in voice.shuffle(range(len(parts))):
        sentences += parts[part]
    return "".join(sentence + "。" for sentence in sentences)


def glance(voice: Voice) -> set[str]:
    """Choose what a passing look says of a thing: always its colour and shape."""
    return {"colour", "shape"} | {name for name in ("size", "material") if voice.chance(voice.detail)}


def skin(thing: Thing, voice: Voice) -> str:
    """Say colour and material: "红色金属的"."""
    if "material" in voice.without:
        return voice.word("colour", thing.colour) + "的"
    options = [words for words in voice.options("material", thing.material) if words.startswith("{}")]
    return voice.pick(options).format(voice.word("colour", thing.colour)) + "的"


def noun(thing: Thing, says, voice: Voice) -> str:
    """Name a thing by the attributes in `says`: "红色的大金属球"."""
    says = set(says) - voice.without
    colour = voice.word("colour", thing.colour) if "colour" in says else ""
    shape = voice.word("shape", thing.shape) if "shape" in says else "物体"
    size = voice.word("size", thing.size) if "size" in says else ""
    front, size = (size, "") if size.endswith("的") else ("", size)
    pattern = "{}"
    if "material" in says:
        options = voice.options("material", thing.material)
        behind = [words for words in options if words.startswith("{}")]
        pattern = voice.pick(behind if front and behind else options)
    before, after = pattern.split("{}")
    if not colour:
        return f"{front}{before}{size}{after}{shape}"
    bare = not (front or before or size or after)
    if bare and shape == "球" and colour in BRIEF and voice.chance(0.6):
        return colour[0] + shape
    if shape == "球" and not (size or after):
        return f"{front}{before}{colour}{'的球' if bare else '圆球'}"
    link = "的" if not (front or before) and voice.chance(0.4) else ""
    return f"{front}{before}{colour}{link}{size}{after}{shape}"


def short(name: str) -> str:
    """Leave out the 的 of a name that has one in front of it already."""
    return re.sub("色的(?!球)", "色", name)


def one(thing: Thing, says, voice: Voice) -> str:
    return "一个" + noun(thing, says, voice)


def series(parts: list[str]) -> str:
    return "、".join(parts[:-1]) + "和" * (len(parts) > 1) + parts[-1]


def beside(thing: Thing, voice: Voice) -> str:
    """Say where the subject is from a thing: "前面" of a thing that stands behind it, or just "旁边"."""
    assert thing.relation is not None
    near = thing.relation in ("left of", "right of") and voice.chance(0.5)
    return "旁边" if near else voice.pick(PLACES[OPPOSITE[thing.relation]])


def company(others: list[Thing], name: str, placed: bool, says: list, voice: Voice) -> str:
    """Say what stands around the subject called `name`, and where if it is `placed`: "它的后面有一个蓝色方块"."""
    if not placed:
        return "附近有" + series([one(thing, look, voice) for thing, look in zip(others, says, strict=True)])
    verb = voice.pick(STANDS)
    return "，".join(
        f"{'' if number else name}{voice.pick(PLACES[thing.relation or ''])}{verb}{one(thing, says[number], voice)}"
        for number, thing in enumerate(others)
    )


def victim(scene: Scene, full: bool, voice: Voice, stacked: bool = True) -> str:
    """Name what the event happens to: in "topple" all cubes, as a stack unless they are no longer `stacked`."""
    things = patients(scene)
    if scene.event != "topple":
        return one(things[0], LOOKS if full else glance(voice), voice)
    sized = (full or voice.chance(max(0.3, voice.detail))) and "size" not in voice.without
    size = voice.word("size", things[0].size) if sized else ""
    return (voice.pick(STACKS) if stacked else "{number}个{size}方块").format(number=NUMBERS[len(things)], size=size)


def act(scene: Scene, says, form: str, where: str, full: bool, voice: Voice) -> str:
    """Say subject and event: it rolls ("finite"), it is rolling ("progressive"), a rolling ball ("relative")."""
    words = voice.event(scene.event, directed := bool(scene.direction) and "direction" in says).replace("~", "")
    way = voice.pick(WAYS) if directed else ""
    if scene.event == "edge" and scene.things[0].shape == "cube":
        words = words.replace("滚", "滑")
    thing = noun(scene.things[0], says, voice)
    whole = "，" in words or "{object}" in words
    words = fill(words, fill(way, "", scene.direction), scene.direction)
    if "{object}" in words:
        words = words.replace("{object}", victim(scene, full, voice))
    pace = attributes(scene).get("speed", "normal") if "speed" in says else "normal"
    adverb = "" if pace == "normal" else voice.phrase("speed", pace)
    words = words.replace("{pace}", adverb) if "{pace}" in words else adverb + words
    if form == "relative" and not whole:
        return f"一个{where}{words}的{short(thing)}"
    if form == "progressive" and scene.event in ONGOING:
        where = "正" + (where or ("" if re.search("在|像", words) else "在"))
    return f"一个{thing}{where}{words}"


def picture(scene: Scene, says, moving: bool, full: bool, voice: Voice) -> str:
    """Name the subject and what its event would happen to, with nothing that only time can show."""
    state = STILLS.get(scene.event, "") if not moving and (full or voice.chance(0.5)) else ""
    if moving and "direction" in says and scene.direction:
        state = fill(voice.pick(WAYS), "", scene.direction) + "移动的"
    if moving and "speed" in says and scene.event != "rest" and (pace := attributes(scene)["speed"]) != "normal":
        state = voice.phrase("speed", pace) + (state or "移动的")
    thing = noun(scene.things[0], says, voice)
    text = f"一个{state}{short(thing)}" if state else f"一个{thing}"
    return f"{text}和{victim(scene, full, voice, stacked=False)}" if patients(scene) else text


def beneath(scene: Scene, voice: Voice) -> set[str]:
    """Choose what a dense caption says of the ground."""
    return ({"ground", "wetness"} if scene.rules.wet_share else {"ground"}) - voice.without


def floor(scene: Scene, says, voice: Voice, usual: bool = False) -> str:
    """Name the ground: "湿漉漉的水泥地", or "地面" where `says` has no ground; `usual` prefers the usual word."""
    name = (voice.word if usual else voice.phrase)("ground", scene.ground) if "ground" in says else "地面"
    return (voice.word("wetness", scene.wetness) if "wetness" in says else "") + name


def light(scene: Scene, says, voice: Voice) -> str:
    """Say time and sky: "晴朗的早晨", "多云的天空下", or nothing."""
    time, sky = voice.word("time", scene.time), voice.word("sky", scene.sky)
    if "time" not in says:
        return f"{sky}的天空下" if "sky" in says else ""
    if scene.time == "sunset" and "sky" in says:
        return f"{time}，{sky}的天空下"
    return f"{sky}的{time}" if "sky" in says else time


def camera(scene: Scene, voice: Voice) -> str:
    """Say what the camera does: "镜头向左环绕"."""
    move, _, side = scene.camera.partition(" ")
    move, side = (move, side) if side in ("left", "right") else (scene.camera, None)
    return "镜头" + fill(voice.phrase("camera", move), "", side)


def add_camera(text: str, scene: Scene, says, voice: Voice) -> str:
    if "camera" not in says:
        return text
    if scene.camera == "still" and voice.chance(0.6) and not voice.use_reserved:
        shot = voice.pick(STATIC)
        return f"{shot}，{text}" if voice.chance(0.4) else f"{text}，{shot}"
    words = camera(scene, voice)
    return voice.pick((f"{text}，{words}", f"{words}，{text}", f"{text}，同时{words}"))


def finish(text: str, voice: Voice) -> str:
    return text + "。" if voice.chance(0.12) else text


def appearance(thing: Thing, missing: set[str], name: str, voice: Voice) -> list[str]:
    """Say the size and the material that the first sentence left out."""
    parts = [SIZED[thing.size]] * ("size" in missing) + [voice.pick(MADE[thing.material])] * ("material" in missing)
    return [name + "，".join(parts)] if parts else []


def setting(scene: Scene, says, voice: Voice) -> list[str]:
    """Say the ground, unless it has been said, and the light."""
    named = beneath(scene, voice)
    time, sky = (voice.word(name, getattr(scene, name)) for name in ("time", "sky"))
    ground = floor(scene, named, voice, usual=True)
    options = [
        f"时间是{time}，天空{sky}",
        f"{time}{LIGHT[scene.time]}的光线从{sky}的天空洒下",
        f"{sky}的天空下，{time}的光线{LIGHT[scene.time]}",
    ]
    if scene.time in ("morning", "night"):
        options.append(f"这是一个{sky}的{voice.table['time'][scene.time][0]}")
    if "time" in voice.without:
        options = [f"天空{sky}"]
    if "sky" in voice.without:
        options = [f"时间是{time}", f"{time}的光线{LIGHT[scene.time]}"]
    words = voice.pick(options)
    if "ground" in says or not named:
        return [words]
    where = voice.pick((f"地面是{ground}", f"场景在{ground}上"))
    if "ground" not in named:
        where = "地面" + ground.removesuffix("的地面")
    return [f"{words}，{where}"] if voice.chance(0.3) else voice.shuffle([where, words])
