"""Names from content, names that rows give, and the parts of a batch that machines share by them."""

import json
import random
import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest

from app.batch.names import LATENTS, hashes_of, name_of, parse_shard, shard_of, slug_of
from app.batch.rows import KINDS, Row, read_rows
from app.batch.sweeps import expand
from dit.modes import MODES
from dit.request import Moment, Request, RequestError


def read(folder: Path, name: str, content: str | bytes) -> list[Row]:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_rows(path)


def given(*found: dict) -> list[Row]:
    return [Row(number, one) for number, one in enumerate(found, 1)]


def test_latents_end_as_they_are_kept():
    from dit import inputs as material

    assert LATENTS == material.LATENTS


def plain(**changes) -> str:
    return name_of(Request(**{"prompt": "a red ball", **changes}), {})


def test_a_name_says_the_prompt_and_ends_in_a_hash():
    assert re.fullmatch(r"a-red-ball-[0-9a-f]{12}\.mp4", plain())
    assert plain(mode="text-to-image").endswith(".png") and plain(mode="text-to-video").endswith(".mp4")
    assert name_of(Request(prompt="x"), {}, ".webm").endswith(".webm")
    for mode in MODES:
        assert plain(mode=mode).endswith(".png") == MODES[mode].still
    assert name_of(Request(moments=(Moment(0, "a cube"),)), {}).startswith("a-cube-")
    assert plain() == "a-red-ball-bf0b52b647e5.mp4"  # a name that changes makes all old batches anew


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
def test_a_slug_can_be_read_and_stored_anywhere(prompt, slug):
    assert slug_of(prompt) == slug


def test_any_prompt_makes_a_name_that_file_systems_take(tmp_path):
    draw = random.Random(0)
    for _ in range(300):
        prompt = "".join(chr(draw.randrange(0x30000)) for _ in range(draw.randrange(60)))
        name = name_of(Request(prompt=prompt), {})
        assert len(name) <= 40 + 1 + 12 + 4 and len(name.encode()) < 200 and name[0] not in "-. "
        assert unicodedata.normalize("NFC", name) == name and not re.search(r'[\\/:*?"<>|\x00-\x1f\s]', name)
        (tmp_path / name).touch()
    assert len(list(tmp_path.iterdir())) > 290


def files(folder: Path) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    for name in ("a.png", "b.png", "c.mp4"):
        (folder / name).write_text(name)
    return {name[0]: str(folder / name) for name in ("a.png", "b.png", "c.mp4")}


def test_any_change_gives_another_name(tmp_path):
    at = files(tmp_path)
    changes = {
        **{name: "other" for name, kind in KINDS.items() if kind == "str"},
        **{"image": at["a"], "clip": at["c"], "other": at["a"], "mask": at["b"]},
        "mode": "text-to-image",
        **{name: 0.5 for name, kind in KINDS.items() if kind == "float"},
        **{name: 3 for name, kind in KINDS.items() if kind == "int"},
        "keyframes": ((0.0, at["a"]),),
        "window": (0.0, 1.0),
        "guidance_interval": (0.0, 1.0),
        "box": (0, 0, 1, 1),
        "size": (64, 64),
        "moments": (Moment(0, "x"),),
        "hashes": (("a.png", "00"),),
    }
    assert changes.keys() == KINDS.keys()
    requests = [Request(prompt="x"), *(replace(Request(prompt="x"), **{name: one}) for name, one in changes.items())]
    requests.append(Request(prompt="x", keyframes=((0.0, at["b"]),)))
    requests.append(Request(prompt="x", moments=(Moment(0, "x", image=at["a"]),)))
    assert len({name_of(request, hashes_of(request))[-16:] for request in requests}) == len(requests)


def test_a_name_is_of_the_contents_of_files_and_not_of_where_they_lie(tmp_path):
    def name(folder: Path) -> str:
        at = files(folder)
        row = {"prompt": "x", "image": at["a"], "clip": at["c"], "keyframes": [[0, at["b"]]]}
        row["moments"] = [{"at": 0, "prompt": "y", "image": at["a"]}]
        return expand(given({**row, "hashes": [[at["a"], "00"]]}))[0].name

    one = name(tmp_path / "one")
    assert name(tmp_path / "two") == one
    (tmp_path / "two" / "c.mp4.latents").write_text("kept")
    other = name(tmp_path / "two")
    assert other != one  # a clip whose latents are kept makes another
    request = Request(prompt="x", image=str(tmp_path / "one" / "a.png"))
    before = name_of(request, hashes_of(request))
    (tmp_path / "one" / "a.png").write_text("another picture")
    assert name_of(request, hashes_of(request)) != before


def test_the_same_row_has_the_same_name_in_any_order_and_format(tmp_path):
    rows = [{"prompt": f"ball {n}", "seed": n, "size": "64x64", "window": [0, 1]} for n in range(20)]
    names = [job.name for job in expand(given(*rows))]
    assert [job.name for job in expand(given(*rows[::-1]))] == names[::-1] and len(set(names)) == 20
    lines = "\n".join(json.dumps({"size": [64, 64], **row, "window": [0.0, 1.0]}) for row in rows)
    table = "seed,window,size,prompt,steps\n" + "\n".join(f'{n},"[0, 1]",64x64,ball {n},' for n in range(20))
    assert [job.name for job in expand(read(tmp_path, "jobs.jsonl", lines))] == names
    assert [job.name for job in expand(read(tmp_path, "jobs.csv", table))] == names


def test_the_same_clip_twice_is_one_file_and_the_others_point_to_it():
    jobs = expand(given({"prompt": "a"}, {"prompt": "{a|b|a}", "seed": 0}))
    assert [job.twin for job in jobs] == [None, (1, 1), None, (1, 1)]
    assert jobs[0].name == jobs[1].name == jobs[3].name != jobs[2].name


# Names of their own


def outputs(*names, **more) -> list:
    return expand(given(*({"prompt": f"p{n}", "output": name, **more} for n, name in enumerate(names))))


def test_a_row_may_name_its_own_file():
    jobs = outputs("one.mp4", "first/two.webm", "一.gif", "console.mkv")
    assert [job.name for job in jobs] == ["one.mp4", "first/two.webm", "一.gif", "console.mkv"]
    assert outputs("one.png", mode="text-to-image")[0].name == "one.png"
    assert len({job.digest for job in jobs}) == 4


@pytest.mark.parametrize(
    "name",
    [
        *("../a.mp4", "/a.mp4", "a/../../b.mp4", "C:\\a.mp4", "a\\b.mp4", "C:a.mp4", "", ".", "./a.mp4", "a//b.mp4"),
        *("a/", ".a.mp4", " a.mp4", "a.mp4 ", "a.mp4.", "a\n.mp4", "a\0.mp4", "a?.mp4", "con.mp4", "NUL", "lpt1.a.mp4"),
        *("a.avi", "a", "a.png", "x" * 300 + ".mp4", "aux/a.mp4", 5, ["a.mp4", "b.mp4"], True),
    ],
)
def test_a_name_that_could_do_harm_is_refused_in_a_sentence(name):
    one, two = outputs(name, "b.mp4")
    assert one.wrong and "output must" in one.wrong and not one.name and two.name == "b.mp4"


def test_no_two_clips_share_a_name():
    one, two, three = outputs("One.mp4", "one.MP4", "caf\u00e9.mp4")
    assert one.name and not two.request and "row 1 has 'One.mp4' already" in two.wrong and three.name
    assert outputs("cafe\u0301.mp4", "caf\u00e9.mp4")[1].wrong
    (job,) = outputs("a.mp4", seed=[1, 2])
    assert "this row makes 2" in job.wrong
    same = {"prompt": "x", "output": "a.mp4"}
    assert [job.twin for job in expand(given(same, same))] == [None, (1, 1)]
    taken = expand(given({"prompt": "x"}))[0].name
    assert [bool(job.wrong) for job in expand(given({"prompt": "x"}, {"prompt": "y", "output": taken}))] == [
        False,
        True,
    ]


# Shards


def test_shards_part_all_jobs_and_a_job_keeps_its_own_when_rows_are_added():
    rows = [{"prompt": f"ball {n}"} for n in range(100)]
    few, many = expand(given(*rows[50:], {"seed": "x"})), expand(given({"seed": "x"}, *rows))
    for total in (1, 3, 8):
        parts = [{job.name for job in shard_of(many, index, total)} for index in range(1, total + 1)]
        assert sum(map(len, parts)) == 101 and set.union(*parts) == {job.name for job in many}
        assert total == 1 or max(map(len, parts)) < 101
        for index, part in enumerate(parts, 1):
            own = {job.name for job in shard_of(few, index, total)}
            assert own <= part and ("" in own) == (index == 1)  # what is wrong is told once
    for index, total in ((0, 8), (9, 8), (1, 0)):
        with pytest.raises(RequestError):
            shard_of(many, index, total)


def test_duplicates_lie_on_the_machine_of_the_first():
    jobs = expand(
        given(*({"prompt": f"ball {n % 10}", **({"output": f"{n}.mp4"} if n > 20 else {})} for n in range(30)))
    )
    for index in range(1, 5):
        own = shard_of(jobs, index, 4)
        assert {job.twin for job in own if job.twin} <= {(job.row, job.part) for job in own}


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
def test_a_shard_is_read_from_words_or_from_slurm(text, environ, shard):
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
def test_a_shard_that_is_none_is_refused_in_a_sentence(text, environ):
    with pytest.raises(RequestError, match=r"shard|array|process") as refused:
        parse_shard(text, environ)
    assert "\n" not in str(refused.value)
