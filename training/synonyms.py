"""Synonyms that the world's captions never use, so that the upsampler reads more words than it writes.

The tables have the format of `world/words_en.py` and `world/words_zh.py`; `draw_prompt` describes a scene in them by
the same grammar. None of those files' RESERVED words is here: they stay unseen, to measure what happens to such words.
"""

from __future__ import annotations

import re

import numpy as np

from training.world.lexicon import Table, WordPicker
from training.world.scene import Scene
from training.world.words import GRAMMARS, TABLES

ENGLISH_SYNONYMS: Table = {
    "colour": {
        "red": ("ruby", "cherry-red", "blood-red", "reddish", "ruby-red"),
        "orange": ("pumpkin-orange", "carrot-coloured", "apricot"),
        "yellow": ("canary", "golden-yellow", "mustard", "sunny yellow"),
        "green": ("jade", "lime", "forest green", "grass-green", "mint"),
        "blue": ("navy", "sapphire", "royal blue", "sky-blue", "dark blue"),
        "purple": ("lavender", "mauve", "lilac", "grape-coloured"),
        "pink": ("rose", "magenta", "salmon-pink", "rosy"),
        "white": ("snow-white", "milky", "snowy", "chalk-white"),
        "black": ("inky", "coal-black", "pitch-black", "onyx"),
    },
    "shape": {
        "ball": ("marble", "bead", "round ball"),
        "cube": ("carton", "square block", "square box"),
        "cylinder": ("tube", "tin", "canister"),
        "capsule": ("caplet", "gel cap", "rounded rod"),
    },
    "size": {
        "small": ("smallish", "compact", "smaller"),
        "medium": ("medium", "normal-sized", "regular-sized"),
        "large": ("hefty", "bulky", "great big"),
    },
    "material": {
        "matte": ("dull {}", "non-shiny {}", "{} foam"),
        "glossy": ("gleaming {}", "shining {}", "{} plastic", "glazed {}"),
        "metal": ("{} iron", "{} aluminium", "metal {}"),
    },
    "speed": {"slow": ("gently", "leisurely"), "fast": ("speedily", "briskly")},
    "event": {
        "rest": ("~stay put", "~sit there", "~lie there", "~do nothing", "~stand there quietly"),
        "roll": ("~wheel {way}", "~tumble along {way}", "~keep rolling {way}"),
        "slide": ("~skate {way}", "~drift {way}", "~scoot {way}"),
        "spin": ("~rotate", "~turn in circles", "~turn round and round", "~whirl"),
        "fall": ("~tumble down", "~fall down", "~come down from above", "~come crashing down"),
        "bounce": ("~leap up and down", "~hop", "~spring up and down", "~bounce around"),
        "throw": ("~be flung {way}", "~be launched {way}", "~soar {way}", "~fly {way}"),
        "swing": ("~swing from a rope", "~sway back and forth", "~rock to and fro on a rope", "~swing back and forth"),
        "occlude": (
            "~move {way} behind a screen and ~come back out",
            "~hide behind a wall and ~come back",
            "~go {way} behind a wall and ~come out again",
        ),
        "edge": ("~roll {way} off a table", "~fall {way} off a ledge", "~tumble {way} off a platform"),
        "collide": (
            "~bang into {object}",
            "~knock into {object}",
            "~move {heading} and ~knock into {object}",
            "~go {heading} and ~bang into {object}",
        ),
        "topple": (
            "~push over {object}",
            "~overturn {object}",
            "~move {heading} and ~push over {object}",
            "~go {heading} and ~overturn {object}",
        ),
    },
    "camera": {
        "still": ("~keep still", "~stay motionless", "~stay steady"),
        "orbit": ("~move around to the {side}", "~go around to the {side}", "~move in a circle to the {side}"),
        "pan": ("~sweep to the {side}", "~rotate to the {side}", "~look to the {side}"),
        "crane up": ("~go up", "~climb", "~lift", "~float upward"),
        "crane down": ("~go down", "~lower", "~float downward"),
        "zoom in": ("~close in", "~come closer", "~push in"),
        "zoom out": ("~pull out", "~pull back", "~back away"),
    },
    "ground": {
        "concrete": ("pavement", "a paved floor"),
        "sand": ("the desert", "dunes", "a sandy floor"),
        "wood": ("a wood floor", "planks", "parquet", "floorboards"),
        "grass": ("a meadow", "green grass", "a field"),
        "slate": ("dark stone", "slate tiles", "stone tiles"),
    },
    "sky": {"clear": ("sunny", "spotless"), "cloudy": ("grey", "gray", "cloud-covered")},
    "time": {
        "morning": ("sunrise", "daybreak"),
        "noon": ("noontime", "high noon"),
        "sunset": ("sundown", "twilight"),
        "night": ("nighttime", "late night"),
    },
}
CHINESE_SYNONYMS: Table = {
    "colour": {
        "red": ("大红色", "火红色", "血红色"),
        "orange": ("桔色", "橘黄色"),
        "yellow": ("金黄色", "明黄色"),
        "green": ("碧绿色", "草绿色", "墨绿色"),
        "blue": ("宝蓝色", "海蓝色", "湛蓝色"),
        "purple": ("淡紫色", "葡萄紫色"),
        "pink": ("玫红色", "嫩粉色"),
        "white": ("乳白色", "洁白色"),
        "black": ("乌黑色", "墨黑色"),
    },
    "shape": {
        "ball": ("皮球", "弹珠", "圆球球"),
        "cube": ("盒子", "箱子", "正方块"),
        "cylinder": ("圆筒", "罐子", "圆桶"),
        "capsule": ("胶囊体", "胶丸"),
    },
    "size": {
        "small": ("小号的", "较小的"),
        "medium": ("普通大小的", "中等的"),
        "large": ("大号的", "较大的"),
    },
    "material": {
        "matte": ("{}亚光", "哑面的{}"),
        "glossy": ("亮晶晶的{}", "闪亮的{}"),
        "metal": ("{}铁制", "{}不锈钢"),
    },
    "speed": {"slow": ("缓缓地", "徐徐地"), "fast": ("飞速地", "急速地")},
    "event": {
        "rest": ("停在那里不动", "静止着", "待着不动"),
        "roll": ("{way}滚过去", "{way}滚着走"),
        "slide": ("{way}滑过去", "{way}滑着走"),
        "spin": ("转来转去", "不停地转", "原地自转"),
        "fall": ("掉下来", "从上面落下来", "往下掉"),
        "bounce": ("弹来弹去", "一跳一跳", "反复弹起"),
        "throw": ("被{pace}{way}丢出去", "被{pace}{way}甩出去"),
        "swing": ("在绳子上{pace}摆来摆去", "吊着{pace}晃来晃去"),
        "occlude": ("{way}从墙后穿过", "{way}藏到墙后又出来"),
        "edge": ("{way}从台子边上掉下去", "{way}从平台上滚下来"),
        "collide": ("碰上{object}", "{heading}移动，~碰上{object}"),
        "topple": ("推倒{object}", "{heading}移动，~推倒{object}"),
    },
    "camera": {
        "still": ("不动", "静止", "一直不动"),
        "orbit": ("绕着向{side}转", "往{side}绕"),
        "pan": ("朝{side}摇", "往{side}转"),
        "crane up": ("往上升", "升起", "往上移"),
        "crane down": ("往下降", "降下来", "往下移"),
        "zoom in": ("推近", "变近", "放大"),
        "zoom out": ("拉开", "变远", "缩小"),
    },
    "ground": {
        "concrete": ("水泥路面", "水泥地板"),
        "sand": ("沙子", "沙堆"),
        "wood": ("木头地板", "木板"),
        "grass": ("青草地", "绿草地"),
        "slate": ("青石板", "石板路"),
    },
    "sky": {"clear": ("晴好", "明朗"), "cloudy": ("阴云密布", "布满云")},
    "time": {
        "morning": ("早上", "上午"),
        "noon": ("晌午", "午间"),
        "sunset": ("傍晚", "夕阳西下时"),
        "night": ("晚上", "夜间"),
    },
}
SYNONYMS: dict[str, Table] = {"en": ENGLISH_SYNONYMS, "zh": CHINESE_SYNONYMS}
SYNONYM_PROBABILITY = 0.5  # that an attribute is named by its synonyms
# Probability that a prompt mentions each attribute, often less than any caption of the grammar, as users write.
MENTION_PROBABILITY = {"colour": 0.8, "shape": 0.9, "event": 0.8, "size": 0.4, "material": 0.3, "direction": 0.6}
MENTION_PROBABILITY |= {"camera": 0.4, "speed": 0.25, "ground": 0.25, "sky": 0.25, "time": 0.25}
WETNESS_PROBABILITY = {"wet": 0.4, "dry": 0.05}  # of prompts of edition 2; nobody asks for a dry ground
LABEL_PROBABILITY = 0.15  # that a prompt only names the objects
OPENING_PHRASES = {
    "en": ("a video of", "a clip of", "show me", "make a video of", "i want to see", "video:", "please show"),
    "zh": ("一段视频：", "请生成", "我想看", "视频：", "做一个视频，", "画面："),
}
# Understood by the lexicons, but never drawn: events in one word, and words that no caption could contradict.
SHORT_EVENTS: dict[str, Table] = {
    "en": {
        "event": {
            "rest": ("~stand still", "~stay still", "~lie there"),
            "spin": ("~spin", "~spin around", "~turn around", "~twirl"),
            "fall": ("~fall from the sky", "~fall to the ground", "~fall onto the ground"),
            "swing": ("~swing", "~swing on a rope", "~swing from a string", "~swing from side to side"),
            "collide": ("~collide", "~collide with each other"),
        }
    },
    "zh": {
        "event": {
            "rest": ("不动", "静止"),
            "spin": ("旋转", "转动", "打转"),
            "fall": ("落下", "掉落", "下落"),
            "swing": ("摆动", "摇摆"),
            "collide": ("相撞", "撞到"),
        }
    },
}
ENGLISH_STOP_WORDS = """
    a an the and with while as then is are being it its there which that in on at of under over onto above across to
    near nearby beside next together some gets video clip shot film scene camera view object sky ground floor stack
    tower please show make create generate me us move moves moving
"""
CHINESE_STOP_WORDS = """
    一个 个 一只 一段 的 地 在 从 把 上 下 天空 里 中 面 它 它的 是 有 和 与 并 正 正在 着 同时 然后 物体 附近 旁边
    叠在一起的 叠成一摞的 视频 画面 镜头 请 生成 请生成 我想看 做 移动
"""
STOP_WORDS = {"en": [*ENGLISH_STOP_WORDS.split(), "i want to see"], "zh": CHINESE_STOP_WORDS.split()}
ARTICLES = {"en": r"\b(?:an?|the) ", "zh": "一个"}
NO_ARTICLE_PROBABILITY = 0.15
OPENING_PROBABILITY = 0.1


def draw_prompt(
    scene: Scene,
    language: str,
    rng: np.random.Generator,
    attributes: tuple[str, ...] | None = None,
    synonym_probability: float = SYNONYM_PROBABILITY,
) -> str:
    """Draw a prompt that a user may type for a scene, partly in synonyms.

    It mentions `attributes`, or by default random ones. With `synonym_probability` 1, every attribute that has synonyms
    is named by one.
    """
    words = {name: values for name, values in SYNONYMS[language].items() if rng.random() < synonym_probability}
    table, grammar = TABLES[language], GRAMMARS[language]
    picker = WordPicker(rng, table.WORDS | table.WETNESS, words, use_reserved=True)
    if attributes is None and rng.random() < LABEL_PROBABILITY:
        return grammar.label(scene, picker)
    if attributes is None:
        chosen = {name for name, probability in MENTION_PROBABILITY.items() if rng.random() < probability}
        if scene.edition > 1 and rng.random() < WETNESS_PROBABILITY[scene.wetness]:
            chosen |= {"wetness", "ground"}
    else:
        chosen = set(attributes)
    return grammar.plain(scene, chosen or {"colour", "shape"}, True, picker)


def imitate_typing(text: str, language: str, rng: np.random.Generator) -> str:
    """Leave out the articles of a prompt, or begin it with a phrase like "show me", each with some probability."""
    if rng.random() < NO_ARTICLE_PROBABILITY:
        text = re.sub(ARTICLES[language], "", text, flags=re.IGNORECASE)
    if rng.random() < OPENING_PROBABILITY:
        separator = " " if language == "en" else ""
        text = str(rng.choice(OPENING_PHRASES[language])) + separator + text
    return text
