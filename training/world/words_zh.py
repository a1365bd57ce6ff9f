"""Chinese phrases of every attribute, and the lexicon that reads them back; `grammar_zh.py` joins them into captions.

Placeholders in the phrases: `{way}` takes an optional direction and `{heading}` a required one, `{side}` and `{other}`
are the side moved to and the one come from, `{pace}` is where the speed goes if not in front, `{object}` is what the
event happens to, `~` starts the part that names the event where that is not the first, and `{}` in a material is where
colour and size go.
"""

from __future__ import annotations

import re

from captioning.lexicon import OPPOSITE, Lexicon

from .lexicon import DIRECTABLE, DIRECTED, OTHER_SIDE, Table

SIDE_WORDS = {"left": "左", "right": "右"}
WORDS: Table = {
    "colour": {
        "red": ("红色", "鲜红色"),
        "orange": ("橙色", "橘色"),
        "yellow": ("黄色", "亮黄色"),
        "green": ("绿色",),
        "blue": ("蓝色", "深蓝色"),
        "purple": ("紫色",),
        "pink": ("粉色", "粉红色"),
        "white": ("白色", "纯白色"),
        "black": ("黑色", "纯黑色"),
    },
    "shape": {
        "ball": ("球", "圆球", "球体"),
        "cube": ("方块", "立方体"),
        "cylinder": ("圆柱", "圆柱体"),
        "capsule": ("胶囊", "药丸"),
    },
    "size": {
        "tiny": ("微小的", "极小的"),
        "small": ("小",),
        "medium": ("中等大小的", "中号的"),
        "large": ("大",),
        "huge": ("巨大的", "超大的"),
    },
    "material": {
        "matte": ("{}哑光", "{}橡胶", "哑光的{}"),
        "glossy": ("光亮的{}", "{}塑料", "{}亮面", "光亮的{}塑料"),
        "metal": ("{}金属", "{}钢制"),
    },
    "speed": {
        "very slow": ("非常缓慢地",),
        "slow": ("慢慢地", "缓慢地"),
        "fast": ("快速地", "迅速地"),
        "very fast": ("非常快速地", "非常迅速地"),
    },
    "event": {
        "rest": ("静止不动", "静静地停着", "一动不动", "安静地停着", "静静地待着"),
        "roll": ("{way}滚动", "{heading}滚去", "{way}滚动着", "一路{way}滚动"),
        "slide": ("{way}滑动", "{way}滑行", "{heading}滑去", "一路{way}滑行"),
        "spin": ("原地旋转", "原地打转", "旋转个不停", "原地转个不停", "原地转动"),
        "fall": ("从空中落下", "从上方掉下来", "从高处落下", "从空中掉落", "笔直落下"),
        "bounce": ("上下弹跳", "一上一下弹跳", "弹跳个不停", "一次次弹起", "蹦蹦跳跳"),
        "throw": ("被{pace}{way}抛出", "被{pace}{way}扔出去", "在空中{pace}{way}划出一道弧线", "在空中{pace}{way}飞过"),
        "swing": (
            "吊在绳子上{pace}来回摆动",
            "在绳子上{pace}荡来荡去",
            "像钟摆一样{pace}摆动",
            "吊在绳子上荡来荡去",
            "挂在绳子上{pace}来回摇摆",
        ),
        "occlude": (
            "{way}移动到一堵墙后面，又从另一侧出来",
            "{way}从一堵墙后面经过，然后重新出现",
            "消失在一堵墙后面，又在{side}边出现",
            "{way}移到一堵墙后面，再从另一边出来",
            "消失在一堵墙后面，然后重新出现",
        ),
        "edge": (
            "{way}滚动，从平台边缘掉下去",
            "从平台的{side}边缘滚落",
            "从平台边缘滚落",
            "{way}滚出平台边缘，掉了下去",
            "从平台边上滚下去",
        ),
        "collide": (
            "撞上{object}",
            "{heading}移动，~撞上{object}",
            "撞到{object}",
            "与{object}~相撞",
            "{heading}移动并~撞到{object}",
            "{heading}移动，与{object}~相撞",
            "从{other}边过来，~撞上{object}",
        ),
        "topple": (
            "撞倒{object}",
            "{heading}移动，~撞倒{object}",
            "把{object}~撞倒",
            "{heading}移动，把{object}~撞倒",
            "从{other}边过来，~撞倒{object}",
            "撞翻{object}",
        ),
    },
    "camera": {
        "still": ("保持不动", "固定不动", "始终不动"),
        "orbit": ("向{side}环绕", "向{side}绕行", "围绕主体向{side}转"),
        "pan": ("向{side}摇", "向{side}摇动", "向{side}转动"),
        "crane up": ("上升", "升高", "向上移动"),
        "crane down": ("下降", "降低", "向下移动"),
        "zoom in": ("拉近", "变焦推近", "放大画面"),
        "zoom out": ("拉远", "变焦拉远", "扩大视野"),
    },
    "ground": {
        "concrete": ("水泥地", "水泥地面"),
        "sand": ("沙地",),
        "wood": ("木地板", "木质地板"),
        "grass": ("草地",),
        "slate": ("石板地", "石板地面"),
    },
    "sky": {"clear": ("晴朗",), "cloudy": ("多云",)},
    "time": {"morning": ("早晨", "清晨"), "noon": ("正午", "中午"), "sunset": ("日落时分",), "night": ("夜晚", "夜里")},
}
WETNESS: Table = {"wetness": {"wet": ("湿漉漉的", "潮湿的"), "dry": ("干燥的",)}}  # from edition 2 on
# Never used by `write_caption`: held out, to measure the response to words that training lacks.
RESERVED: Table = {
    "colour": {
        "red": ("绯红色", "朱红色"),
        "orange": ("橘子色",),
        "yellow": ("柠檬色",),
        "green": ("翠绿色",),
        "blue": ("天蓝色", "蔚蓝色"),
        "purple": ("紫罗兰色",),
        "pink": ("桃红色",),
        "white": ("雪白色",),
        "black": ("漆黑色",),
    },
    "shape": {"ball": ("圆珠",), "cube": ("正方体",), "cylinder": ("柱体",), "capsule": ("药片",)},
    "size": {
        "tiny": ("迷你的",),
        "small": ("小巧的",),
        "medium": ("不大不小的",),
        "large": ("硕大的",),
        "huge": ("庞大的",),
    },
    "material": {"matte": ("磨砂的{}",), "glossy": ("锃亮的{}", "上了漆的{}"), "metal": ("{}铁皮",)},
    "speed": {"slow": ("慢吞吞地",), "fast": ("飞快地",)},
    "event": {
        "rest": ("纹丝不动",),
        "roll": ("{way}骨碌碌地滚着",),
        "slide": ("{way}溜过去",),
        "spin": ("原地转圈",),
        "fall": ("坠落下来",),
        "bounce": ("上下蹦跶",),
        "throw": ("被{pace}{way}投掷出去",),
        "swing": ("悬在绳子上{pace}晃荡",),
        "occlude": ("{way}躲到一堵墙背后，又冒了出来",),
        "edge": ("{way}从平台边沿跌落",),
        "collide": ("碰撞到{object}", "{heading}行进，~碰撞到{object}"),
        "topple": ("碰倒{object}", "{heading}行进，~碰倒{object}"),
    },
    "camera": {
        "still": ("纹丝不动",),
        "orbit": ("向{side}兜圈",),
        "pan": ("向{side}扭转",),
        "crane up": ("攀升",),
        "crane down": ("下沉",),
        "zoom in": ("凑近",),
        "zoom out": ("退远",),
    },
    "ground": {"concrete": ("混凝土地面",), "sand": ("沙滩",), "grass": ("草坪",)},
    "wetness": {"wet": ("湿淋淋的",)},
    "sky": {"clear": ("万里无云",), "cloudy": ("阴沉",)},
    "time": {"morning": ("黎明",), "sunset": ("黄昏",), "night": ("深夜",)},
}
DIRECTION_PHRASES = ("向{side}", "朝{side}", "往{side}", "从{other}向{side}")
NUMBERS = {2: "两", 3: "三"}
STACKS = ("{number}个叠在一起的{size}方块", "叠成一摞的{number}个{size}方块")
RELATION_WORDS = {
    "behind": ("后面", "后方"),
    "in front of": ("前面", "前方"),
    "left of": ("左边", "左侧"),
    "right of": ("右边", "右侧"),
}
PLACEMENT_VERBS = ("有", "是", "放着")
SIZE_PREDICATES = {"tiny": "极小", "small": "很小", "medium": "大小中等", "large": "很大", "huge": "巨大"}
SPEED_NAMES = {"very slow": "非常慢", "slow": "很慢", "normal": "速度正常", "fast": "很快", "very fast": "非常快"}
STATIC_SHOTS = ("固定镜头", "静止镜头")


def fill_template(template: str, way: str, direction: str | None = None) -> str:
    """Fill the placeholders of direction; `way` = "" leaves an optional one out."""
    hand, other = (SIDE_WORDS[direction], SIDE_WORDS[OTHER_SIDE[direction]]) if direction else ("", "")
    text = re.sub("{way}|{heading}", way, template)
    return text.replace("{side}", hand).replace("{other}", other)


def build_lexicon(tables: tuple[Table, ...] = (WORDS, WETNESS, RESERVED)) -> Lexicon:
    """Return the lexicon of every phrase that the grammar can write from the tables."""
    lexicon = Lexicon(per_character=True, fillers=("的",), objects=("体", "物体"))
    lexicon.add("没有其他物体")
    for side in OTHER_SIDE:
        for way in (*DIRECTION_PHRASES, "从{other}边过来"):
            lexicon.add(fill_template(way, "", side), ("direction", side))
    for table in tables:
        for attribute, values in table.items():
            for value, phrases in values.items():
                for phrase in phrases:
                    if attribute == "event":
                        add_event(lexicon, value, phrase)
                    elif attribute == "camera":
                        for side in OTHER_SIDE if "{side}" in phrase else (None,):
                            move = f"{value} {side}" if side else value
                            lexicon.add("镜头" + fill_template(phrase, "", side), ("camera", move))
                    elif attribute == "material":
                        for word in phrase.split("{}"):
                            if word:
                                lexicon.add(word.removesuffix("的"), (attribute, value))
                    else:
                        lexicon.add(phrase.removesuffix("的"), (attribute, value))
                        if attribute == "colour" and table is WORDS:
                            lexicon.add(phrases[0][0], (attribute, value))
    for value, phrase in SIZE_PREDICATES.items():
        lexicon.add(phrase, ("size", value))
    for pace, phrase in SPEED_NAMES.items():
        lexicon.add(phrase, ("speed", pace))
    for phrase in STATIC_SHOTS:
        lexicon.add(phrase, ("camera", "still"))
    for number, word in NUMBERS.items():
        lexicon.add(f"{word}个", ("stack", str(number)))
    for relation, places in RELATION_WORDS.items():
        for place in places:
            lexicon.add(place, ("relation", OPPOSITE[relation]))
            for verb in PLACEMENT_VERBS:
                lexicon.add(place + verb, ("relation", relation))
    return lexicon


def add_event(lexicon: Lexicon, event: str, template: str) -> None:
    """Add the part of an event's phrase that names it, with every phrase of direction and speed."""
    pieces = template.split("{object}")
    words = next((piece for piece in pieces if "~" in piece), pieces[0]).split("~")[-1]
    ways = [
        ("", ()),
        *((fill_template(way, "", side), (("direction", side),)) for side in OTHER_SIDE for way in DIRECTION_PHRASES),
    ]
    paces = [("", ())]
    for table in (WORDS, RESERVED):
        paces += [(word, (("speed", value),)) for value, options in table["speed"].items() for word in options]
    for verb in ("滚", "滑") if event == "edge" else ("滚",):
        for pace, speed in paces if "{pace}" in words else paces[:1]:
            for way, direction in ways if any(mark in words for mark in DIRECTABLE) else ways[:1]:
                if direction or not any(mark in words for mark in DIRECTED):
                    phrased = fill_template(
                        words.replace("滚", verb).replace("{pace}", pace), way, *(side for _, side in direction)
                    )
                    lexicon.add(phrased, ("event", event), *speed, *direction)
