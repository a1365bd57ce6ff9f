"""Valid examples of what clients send, and seeded ways to mutate and corrupt them."""

from __future__ import annotations

import csv
import io
import json
from random import Random
from typing import Any

REQUESTS: tuple[dict[str, Any], ...] = (
    {"prompt": "a red ball bounces on the grass", "seed": 1, "size": [64, 64], "seconds": 2.0, "fps": 8.0, "steps": 3},
    {
        "mode": "text-to-image",
        "prompt": "草地上的红球",
        "guidance": 2.0,
        "guidance_interval": [0.1, 0.9],
        "guidance_rescale": 0.5,
    },
    {"mode": "image-to-video", "prompt": "it spins", "image": "cube.png", "negative_prompt": "blur", "sampler": "heun"},
    {"mode": "keyframes", "prompt": "x", "keyframes": [[0, "a.png"], [1.5, "b.png"]], "frame_guidance": 1.5},
    {"mode": "inpaint", "prompt": "x", "clip": "c.mp4", "box": [0, 0, 8, 8], "mask": "m.png", "watermark": "top-left"},
    {"mode": "retake", "prompt": "{red|blue} ball", "clip": "c.mp4", "window": [1, 2], "strength": 0.5, "side": "both"},
    {
        "prompt": "x",
        "output": "mine.mp4",
        "upsample": "none",
        "upsampled_prompt": "A ball.",
        "model": "first",
        "other": "d.mp4",
    },
    {"prompt": "x", "hashes": [["a.png", "00ff"]], "model_hash": "00ff", "made_with": "torch 2.11"},
)
STORYBOARDS: tuple[Any, ...] = (
    {
        "seconds": 4,
        "size": "64x64",
        "seed": 3,
        "moments": [{"at": 0, "prompt": "a ball rests"}, {"at": 2.5, "prompt": "a ball bounces", "image": "a.png"}],
    },
    [{"at": 0, "prompt": "球"}, {"at": 1, "prompt": "弹跳", "clip": "c.mp4"}, {"at": 2, "prompt": "end"}],
    {"fps": 8, "negative_prompt": "blur", "moments": [{"at": 0, "prompt": "a", "image": None}]},
)
HEADS: tuple[bytes, ...] = (
    b"GET /v1/videos?limit=2 HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n\r\n",
    b'POST /v1/videos HTTP/1.1\r\nHost: a\r\nContent-Type: text/json\r\nContent-Length: 15\r\n\r\n{"prompt": "x"}',
    b"POST /v1/files HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost:\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\naGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /x HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n",
)
FIELDS = sorted({name for one in REQUESTS for name in one} | {"moments", "storyboard", "at", "prompt"})
PATHS = (
    *(
        "../elsewhere/secret.yaml",
        "/etc/hostname",
        "..",
        "/",
        "/dev/zero",
        "a\0b.png",
        "~root",
        "C:\\x.png",
        "//host/x",
    ),
    *("http://127.0.0.1:9/x.mp4", "file:///etc/hostname", "concat:a.mp4|b.mp4", "x" * 5000 + ".png", "-", "a\nb.mp4"),
    *("../../../../tmp/out.mp4", "．．／x.mp4", "con.mp4", ".mp4", "ünïcode🎥.mp4", "\u202egpj.exe", "%2e%2e%2fx.mp4"),
)
TEXTS = (
    *("", " ", "\0", "\n", "\ud800", "\udfff", "\ufeff", "\u2028", "\x1b[31m", "🎥" * 300, "a" * 20_000, "{" * 500),
    *("{a|b}" * 30, "{a|{b|c}}", "{|", "|}", "<script>alert(1)</script>", "'; DROP TABLE jobs; --", "%s%n", "nan"),
    *("64x64", "²x³", "٣x٣", "9" * 5000 + "x1", "-1x-1", "1e999", "0x10", "=1+1", "__class__", "none", "auto", "null"),
)
NUMBERS = (
    *(
        30_000,
        599.9,
        1e6,
        0,
        -1,
        1,
        2**31,
        2**63,
        -(2**63) - 1,
        2**64,
        10**400,
        10**4000,
        0.5,
        -0.0,
        1e308,
        -1e308,
        5e-324,
    ),
    *(float("nan"), float("inf"), float("-inf"), True, False, None),
)
SNIPPETS: tuple[bytes, ...] = (
    *(b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\xf0\x9f", b"\r", b"\n", b'"', b"'", b"\\", b"\\ud800", b"\\u0000"),
    *(b"\x85", b"{", b"}", b"[", b"]", b",", b":", b"- ", b"&a ", b"*a", b"<<: ", b"!!", b"? ", b"|", b">", b"#"),
    *(b"%", b"---\n", b"\t", b"NaN", b"Infinity", b"-Infinity", b"1e999", b"1" * 5000, b"0x" + b"f" * 5000, b".inf"),
    *(b"1:59:59", b"2026-13-45", b".nan", b"[" * 3000, b"{'a':" * 1500, b'{"a":' * 3000, b"- " * 1500, b"(" * 100),
    *(b"!!python/object/apply:os.system ['true']", b"!!binary x", b"!!timestamp x", b"!!int x", b"!!float x", b"`"),
    *(b"!!set {a}", b"!!omap [a: 1]", b"!!bool x", b"&a [*a]", b"../", b"/etc/hostname", b"\xef\xbb\xbf", b"true"),
    *(b"null", b"yes", b"=", b"@"),
)
BILLION_LAUGHS = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))
BILLION_MERGES = "\n".join(f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))
END = "\nmoments: [{at: 0, prompt: *a11}, *a11]\n"
WHOLE_TEXTS = (
    *(f"a0: &a0 [lol, lol]\n{BILLION_LAUGHS}{END}", f"a0: &a0 {{at: 0}}\n{BILLION_MERGES}{END}", "&a {moments: [*a]}"),
    *("&a [*a, {at: 0, prompt: x}]", "[" * 20_000, "{" * 20_000, "- " * 5_000, "? " * 5_000, "!" * 100),
)
SIZE_FIELDS = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4), b"\0\0\0\1")  # sizes in container headers


def hostile_value(rng: Random) -> Any:
    """Return a value that no client should send."""
    variant = rng.randrange(7)
    if variant == 0:
        return rng.choice(NUMBERS)
    if variant == 1:
        return rng.choice(TEXTS)
    if variant == 2:
        return rng.choice(PATHS)
    if variant == 3:
        return rng.choice(([], {}, [[]], [None], [1, 2, 3], {"a": 1}, [{}] * 50, ["x"] * 2000, list(range(999))))
    if variant == 4:  # deep
        value: Any = rng.choice((1, "x", None))
        for _ in range(rng.choice((5, 100, 400))):
            value = [value] if rng.random() < 0.5 else {"a": value}
        return value
    if variant == 5:
        return "".join(chr(rng.choice((rng.randrange(128), rng.randrange(0xD800), 0x1F3A5))) for _ in range(9))
    return [hostile_value(rng) for _ in range(rng.randint(1, 4))]


def mutate(tree: Any, rng: Random) -> Any:
    """Return an example with some values replaced, removed, added, renamed or duplicated, at any depth."""
    if rng.random() < 0.02:
        return hostile_value(rng)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        tree = _mutate_once(tree, rng)
    return tree


def _mutate_once(tree: Any, rng: Random) -> Any:
    if isinstance(tree, dict) and tree:
        changed, name = dict(tree), rng.choice(list(tree))
        variant = rng.randrange(6)
        if variant == 0:
            del changed[name]
        elif variant == 1:
            changed[rng.choice(FIELDS)] = hostile_value(rng)
        elif variant == 2:
            changed[rng.choice((name.upper(), f"{name} ", f"_{name}", "", "\ud800", "x" * 5000, "a\nb"))] = changed.pop(
                name
            )
        elif variant == 3:
            changed[name] = hostile_value(rng)
        else:
            changed[name] = _mutate_once(tree[name], rng)
        return changed
    if isinstance(tree, list) and tree:
        changed, place = list(tree), rng.randrange(len(tree))
        variant = rng.randrange(5)
        if variant == 0:
            del changed[place]
        elif variant == 1:
            changed.insert(place, hostile_value(rng))
        elif variant == 2:
            changed *= rng.choice((2, 50))
        else:
            changed[place] = _mutate_once(tree[place], rng)
        return changed
    if isinstance(tree, str) and rng.random() < 0.5:
        place = rng.randint(0, len(tree))
        return tree[:place] + rng.choice(TEXTS) + tree[place:]
    return hostile_value(rng)


def corrupt(content: bytes, rng: Random) -> bytes:
    """Return content with bytes flipped, removed, duplicated, inserted or overwritten, or truncated."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not found:
            break
        place, variant = rng.randrange(len(found)), rng.randrange(8)
        end = min(len(found), place + rng.choice((1, 4, 16, 256)))
        if variant <= 1:
            found[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, found[place] ^ 1 << rng.randrange(8)))
        elif variant == 2:
            del found[place:end]
        elif variant == 3:
            found[place:place] = found[place:end]
        elif variant == 4:
            found[place:place] = rng.choice(SNIPPETS)
        elif variant == 5:
            found[place : place + 4] = rng.choice(SIZE_FIELDS)
        elif variant == 6:
            found[place:end] = rng.randbytes(end - place)
        else:
            del found[place:]
    return bytes(found)


def as_yaml(tree: Any, rng: Random) -> str:
    """Write a value as YAML, or something hostile in its place."""
    import yaml  # type: ignore[import-untyped]

    if rng.random() < 0.05:
        return rng.choice(WHOLE_TEXTS)
    try:
        return yaml.safe_dump(tree, allow_unicode=rng.random() < 0.5)
    except (yaml.YAMLError, ValueError, RecursionError):
        return json.dumps(tree, default=str)


def as_csv(trees: list[Any], delimiter: str) -> str:
    """Write rows as a table, lists as JSON."""
    rows = [tree if isinstance(tree, dict) else {"prompt": tree} for tree in trees]
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    written = io.StringIO(newline="")
    table = csv.writer(written, delimiter=delimiter)
    table.writerow(names)
    for row in rows:
        cells = (row.get(name, "") for name in names)
        table.writerow(
            [json.dumps(cell, default=str) if isinstance(cell, (list, dict)) else _cell(cell) for cell in cells]
        )
    return written.getvalue()


def _cell(value: Any) -> str:
    try:
        return "" if value is None else str(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "9" * 5000
