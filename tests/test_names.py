"""File names from content, names that rows give, and the shards of a batch."""

import json
import random
import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest

from app.batch.names import file_name, hash_inputs, slugify
from app.batch.rows import FIELD_TYPES, BatchRow, read_rows
from app.batch.shards import parse_shard, select_shard
from app.batch.sweeps import expand_rows
from dit.modes import MODES
from dit.request import Moment, Request, RequestError


def read(folder: Path, name: str, content: str | bytes) -> list[BatchRow]:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_rows(path)


def rows_of(*fields: dict) -> list[BatchRow]:
    return [BatchRow(number, one) for number, one in enumerate(fields, 1)]


def name_with(**changes) -> str:
    return file_name(Request(**{"prompt": "a red ball", **changes}), {})


def test_a_name_has_words_of_the_prompt_and_ends_in_a_hash():
    assert re.fullmatch(r"a-red-ball-[0-9a-f]{12}\.mp4", name_with())
    assert name_with(mode="text-to-image").endswith(".png") and name_with(mode="text-to-video").endswith(".mp4")
    assert file_name(Request(prompt="x"), {}, ".webm").endswith(".webm")
    for mode in MODES:
        assert name_with(mode=mode).endswith(".png") == MODES[mode].still
    assert file_name(Request(moments=(Moment(0, "a cube"),)), {}).startswith("a-cube-")


def test_names_are_those_of_version_0_1_so_that_old_batches_are_not_made_again():
    assert name_with() == "a-red-ball-bf0b52b647e5.mp4"
    renamed = Request(
        prompt="a red ball",
        sampler="heun",
        negative_prompt="blur",
        guidance_interval=(0.1, 0.9),
        guidance_rescale=0.5,
        upsampled_prompt="A ball.",
        watermark="top-left",
        keyframes=((0.0, "a.png"),),
    )
    assert file_name(renamed, {"a.png": "00" * 32}) == "a-red-ball-cec80ef7a982.mp4"


@pytest.mark.parametrize(
    "prompt, slug",
    [
        ("A Red, RED ball!", "a-red-red-ball"),
        ("Café à la crème", "cafe-a-la-creme"),
        ("一个红色的球，弹跳", "一个红色的球-弹跳"),
        ("", "clip"),
        ("🎈 !?", "clip"),
        ("../../etc/passwd", "etc-passwd"),
        ("con", "con"),
        ("a large red ball bounces on the grass while the camera pans", "a-large-red-ball-bounces-on-the-grass"),
        ("x" * 100, "x" * 40),
        ("a " + "x" * 100, "a-" + "x" * 38),
        ("\ud800 \0 a", "a"),
    ],
)
def test_a_slug_can_be_stored_on_any_file_system(prompt, slug):
    assert slugify(prompt) == slug


def test_any_prompt_gives_a_name_that_file_systems_accept(tmp_path):
    rng = random.Random(0)
    for _ in range(300):
        prompt = "".join(chr(rng.randrange(0x30000)) for _ in range(rng.randrange(60)))
        name = file_name(Request(prompt=prompt), {})
        assert len(name) <= 40 + 1 + 12 + 4 and len(name.encode()) < 200 and name[0] not in "-. "
        assert unicodedata.normalize("NFC", name) == name and not re.search(r'[\\/:*?"<>|\x00-\x1f\s]', name)
        (tmp_path / name).touch()
    assert len(list(tmp_path.iterdir())) > 290


def files(folder: Path) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    for name in ("a.png", "b.png", "c.mp4"):
        (folder / name).write_text(name)
    return {name[0]: str(folder / name) for name in ("a.png", "b.png", "c.mp4")}


def test_any_change_of_a_request_gives_another_name(tmp_path):
    at = files(tmp_path)
    changes = {
        **{name: "other" for name, kind in FIELD_TYPES.items() if kind == "str"},
        **{"image": at["a"], "clip": at["c"], "other": at["a"], "mask": at["b"]},
        "mode": "text-to-image",
        **{name: 0.5 for name, kind in FIELD_TYPES.items() if kind == "float"},
        **{name: 3 for name, kind in FIELD_TYPES.items() if kind == "int"},
        "keyframes": ((0.0, at["a"]),),
        "window": (0.0, 1.0),
        "guidance_interval": (0.0, 1.0),
        "box": (0, 0, 1, 1),
        "size": (64, 64),
        "moments": (Moment(0, "x"),),
        "hashes": (("a.png", "00"),),
        "loras": (("a.safetensors", 0.5),),
    }
    assert changes.keys() == FIELD_TYPES.keys()
    requests = [Request(prompt="x"), *(replace(Request(prompt="x"), **{name: one}) for name, one in changes.items())]
    requests.append(Request(prompt="x", keyframes=((0.0, at["b"]),)))
    requests.append(Request(prompt="x", moments=(Moment(0, "x", image=at["a"]),)))
    assert len({file_name(request, hash_inputs(request))[-16:] for request in requests}) == len(requests)


def test_a_name_depends_on_the_contents_of_input_files_and_not_on_their_paths(tmp_path):
    def name(folder: Path) -> str:
        at = files(folder)
        row = {"prompt": "x", "image": at["a"], "clip": at["c"], "keyframes": [[0, at["b"]]]}
        row["moments"] = [{"at": 0, "prompt": "y", "image": at["a"]}]
        return expand_rows(rows_of({**row, "hashes": [[at["a"], "00"]]}))[0].name

    one = name(tmp_path / "one")
    assert name(tmp_path / "two") == one
    (tmp_path / "two" / "c.mp4.latents").write_text("kept")
    other = name(tmp_path / "two")
    assert other != one  # latents next to a clip replace the encoded file
    request = Request(prompt="x", image=str(tmp_path / "one" / "a.png"))
    before = file_name(request, hash_inputs(request))
    (tmp_path / "one" / "a.png").write_text("another image")
    assert file_name(request, hash_inputs(request)) != before


def test_the_same_row_has_the_same_name_in_any_order_and_format(tmp_path):
    rows = [{"prompt": f"ball {n}", "seed": n, "size": "64x64", "window": [0, 1]} for n in range(20)]
    names = [item.name for item in expand_rows(rows_of(*rows))]
    assert [item.name for item in expand_rows(rows_of(*rows[::-1]))] == names[::-1] and len(set(names)) == 20
    lines = "\n".join(json.dumps({"size": [64, 64], **row, "window": [0.0, 1.0]}) for row in rows)
    table = "seed,window,size,prompt,steps\n" + "\n".join(f'{n},"[0, 1]",64x64,ball {n},' for n in range(20))
    assert [item.name for item in expand_rows(read(tmp_path, "jobs.jsonl", lines))] == names
    assert [item.name for item in expand_rows(read(tmp_path, "jobs.csv", table))] == names


def test_duplicates_point_to_the_first_item_that_makes_their_file():
    items = expand_rows(rows_of({"prompt": "a"}, {"prompt": "{a|b|a}", "seed": 0}))
    assert [item.duplicate_of for item in items] == [None, (1, 1), None, (1, 1)]
    assert items[0].name == items[1].name == items[3].name != items[2].name


# Names of their own


def outputs(*names, **more) -> list:
    return expand_rows(rows_of(*({"prompt": f"p{n}", "output": name, **more} for n, name in enumerate(names))))


def test_a_row_may_name_its_own_file():
    items = outputs("one.mp4", "first/two.webm", "一.gif", "console.mkv")
    assert [item.name for item in items] == ["one.mp4", "first/two.webm", "一.gif", "console.mkv"]
    assert outputs("one.png", mode="text-to-image")[0].name == "one.png"
    assert len({item.digest for item in items}) == 4


@pytest.mark.parametrize(
    "name",
    [
        *("../a.mp4", "/a.mp4", "a/../../b.mp4", "C:\\a.mp4", "a\\b.mp4", "C:a.mp4", "", ".", "./a.mp4", "a//b.mp4"),
        *("a/", ".a.mp4", " a.mp4", "a.mp4 ", "a.mp4.", "a\n.mp4", "a\0.mp4", "a?.mp4", "con.mp4", "NUL", "lpt1.a.mp4"),
        *("a.avi", "a", "a.png", "x" * 300 + ".mp4", "aux/a.mp4", 5, ["a.mp4", "b.mp4"], True),
    ],
)
def test_a_harmful_name_is_refused_with_a_message(name):
    one, two = outputs(name, "b.mp4")
    assert one.error and "output must" in one.error and not one.name and two.name == "b.mp4"


def test_no_two_clips_share_a_name():
    one, two, three = outputs("One.mp4", "one.MP4", "caf\u00e9.mp4")
    assert one.name and not two.request and "row 1 has 'One.mp4' already" in two.error and three.name
    assert outputs("cafe\u0301.mp4", "caf\u00e9.mp4")[1].error
    (item,) = outputs("a.mp4", seed=[1, 2])
    assert "this row makes 2" in item.error
    same = {"prompt": "x", "output": "a.mp4"}
    assert [item.duplicate_of for item in expand_rows(rows_of(same, same))] == [None, (1, 1)]
    taken = expand_rows(rows_of({"prompt": "x"}))[0].name
    assert [bool(item.error) for item in expand_rows(rows_of({"prompt": "x"}, {"prompt": "y", "output": taken}))] == [
        False,
        True,
    ]


# Shards


def test_shards_divide_all_items_and_an_item_keeps_its_shard_when_rows_are_added():
    rows = [{"prompt": f"ball {n}"} for n in range(100)]
    few, many = expand_rows(rows_of(*rows[50:], {"seed": "x"})), expand_rows(rows_of({"seed": "x"}, *rows))
    for total in (1, 3, 8):
        parts = [{item.name for item in select_shard(many, index, total)} for index in range(1, total + 1)]
        assert sum(map(len, parts)) == 101 and set.union(*parts) == {item.name for item in many}
        assert total == 1 or max(map(len, parts)) < 101
        for index, part in enumerate(parts, 1):
            own = {item.name for item in select_shard(few, index, total)}
            assert own <= part and ("" in own) == (index == 1)  # an invalid item is reported once
    for index, total in ((0, 8), (9, 8), (1, 0)):
        with pytest.raises(RequestError):
            select_shard(many, index, total)


def test_duplicates_are_in_the_shard_of_the_first():
    items = expand_rows(
        rows_of(*({"prompt": f"ball {n % 10}", **({"output": f"{n}.mp4"} if n > 20 else {})} for n in range(30)))
    )
    for index in range(1, 5):
        own = select_shard(items, index, 4)
        assert {item.duplicate_of for item in own if item.duplicate_of} <= {(item.row, item.part) for item in own}


def slurm(**values) -> dict[str, str]:
    return {f"SLURM_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize(
    "text, environ, shard",
    [
        ("2/8", {}, (2, 8)),
        (" 1 / 1 ", {}, (1, 1)),
        ("2/8", slurm(ARRAY_TASK_ID=1, ARRAY_TASK_MIN=0, ARRAY_TASK_COUNT=4), (2, 8)),
        ("slurm", slurm(ARRAY_TASK_ID=0, ARRAY_TASK_MIN=0, ARRAY_TASK_COUNT=4, PROCID=3, NTASKS=4), (1, 4)),
        ("slurm", slurm(ARRAY_TASK_ID=8, ARRAY_TASK_MIN=5, ARRAY_TASK_MAX=8, ARRAY_TASK_COUNT=4), (4, 4)),
        (
            "Slurm",
            slurm(ARRAY_TASK_ID=20, ARRAY_TASK_MIN=0, ARRAY_TASK_MAX=30, ARRAY_TASK_STEP=10, ARRAY_TASK_COUNT=4),
            (3, 4),
        ),
        ("slurm", slurm(PROCID=3, NTASKS=4), (4, 4)),
    ],
)
def test_a_shard_is_parsed_from_text_or_from_slurm(text, environ, shard):
    assert parse_shard(text, environ) == shard


@pytest.mark.parametrize(
    "text, environ",
    [
        *((text, {}) for text in ("", "0/8", "9/8", "1/0", "-1/8", "1.5/8", "1", "1/", "a/b", "1/2/3", "١/٢", "slurm")),
        ("slurm", slurm(ARRAY_TASK_ID=1)),
        ("slurm", slurm(ARRAY_TASK_ID="x", ARRAY_TASK_MIN=0, ARRAY_TASK_COUNT=4)),
        ("slurm", slurm(ARRAY_TASK_ID=5, ARRAY_TASK_MIN=1, ARRAY_TASK_COUNT=4)),
        ("slurm", slurm(ARRAY_TASK_ID=3, ARRAY_TASK_MIN=1, ARRAY_TASK_MAX=7, ARRAY_TASK_COUNT=3)),
        ("slurm", slurm(PROCID=4, NTASKS=4)),
        ("slurm", slurm(PROCID=0)),
    ],
)
def test_an_invalid_shard_is_refused_in_one_line(text, environ):
    with pytest.raises(RequestError, match=r"shard|array|process") as refused:
        parse_shard(text, environ)
    assert "\n" not in str(refused.value)
