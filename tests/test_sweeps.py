"""Rows written out: lists, sweeps and wildcards, every combination once, in an order that never changes."""

from dataclasses import fields

import pytest

from app.batch.rows import KINDS, Row
from app.batch.sweeps import expand, is_several, read_wildcards
from dit.request import Request, RequestError


def given(*found: dict) -> list[Row]:
    return [Row(number, one) for number, one in enumerate(found, 1)]


def prompts(*rows: dict, **how) -> list[str]:
    jobs = expand(given(*rows), **how)
    assert not [job.wrong for job in jobs if job.wrong]
    return [job.request.prompt for job in jobs]


def test_every_field_of_a_request_has_a_type_that_is_known():
    assert list(KINDS) == [field.name for field in fields(Request)]
    assert all(kind in ("str", "int", "float") or kind.startswith("tuple[") for kind in KINDS.values())


SEVERAL = {
    "seed": (5, [5]),
    "prompt": ("x", ["x"]),
    "size": ([64, 64], [[64, 64]]),
    "window": ([0, 1], [[0, 1], [1, 2]]),
    "guidance_interval": ((0, 1), [(0, 1)]),
    "box": ([0, 0, 1, 1], [[0, 0, 1, 1]]),
    "keyframes": ([[0, "a.png"], [1, "b.png"]], [[[0, "a.png"]], [[1, "b.png"]]]),
    "hashes": ([["a.png", "00"]], [[["a.png", "00"]]]),
    "moments": ([{"at": 0, "prompt": "x"}], [[{"at": 0, "prompt": "x"}]]),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_one_value_that_is_a_list_is_told_from_a_list_of_values(name):
    one, several = SEVERAL[name]
    assert not is_several(name, one) and is_several(name, several) and is_several(name, [*several, None])


def test_a_size_in_words_is_one_and_a_list_of_them_several():
    sizes = lambda size: [job.request.size for job in expand(given({"prompt": "x", "size": size}))]
    assert sizes("64x64") == sizes([64, 64]) == sizes(["64x64"]) == [(64, 64)]
    assert sizes(["64x64", [80, 48], None]) == [(64, 64), (80, 48), None]
    assert [bool(job.wrong) for job in expand(given({"size": ["64x64", "big", 5]}))] == [False, True, True]


def test_a_product_is_every_combination_in_a_fixed_order_whatever_the_order_of_fields():
    row = {"seed": [1, 2], "size": ["64x64", "80x48"], "prompt": ["a", "b"]}
    for names in (("seed", "size", "prompt"), ("prompt", "seed", "size")):
        jobs = expand(given({name: row[name] for name in names}))
        found = [(job.request.prompt, job.request.size, job.request.seed) for job in jobs]
        assert found == [(p, s, n) for p in "ab" for s in ((64, 64), (80, 48)) for n in (1, 2)]
        assert [(job.row, job.part) for job in jobs] == [(1, part) for part in range(1, 9)]


def test_a_zip_goes_side_by_side_and_single_values_stay():
    rows = given({"prompt": ["a", "b"], "seed": [1, 2], "steps": [4], "guidance": 2.0}, {"prompt": "c"})
    jobs = expand(rows, mode="zip")
    assert [(job.request.prompt, job.request.seed, job.request.steps) for job in jobs] == [
        ("a", 1, 4),
        ("b", 2, 4),
        ("c", 0, None),
    ]
    (job,) = expand(given({"prompt": "{a|b|c}", "seed": [1, 2]}), mode="zip")
    assert "3 of prompt, 2 of seed" in job.wrong
    assert prompts({"prompt": "{a|b} {c|d}", "seed": [1, 2, 3, 4]}, mode="zip") == ["a c", "a d", "b c", "b d"]


def test_settings_of_all_rows_fill_in_what_a_row_leaves_out():
    rows = given({"prompt": "a", "seed": 9, "steps": 2}, {"prompt": "b"})
    jobs = expand(rows, {"seed": [1, 2], "size": [(64, 64)]}, defaults={"steps": 8, "guidance": None, "seed": 5})
    assert [(job.request.prompt, job.request.seed, job.request.steps) for job in jobs] == [
        ("a", 9, 2),
        ("b", 1, 8),
        ("b", 2, 8),
    ]
    assert {job.request.size for job in jobs} == {(64, 64)}


@pytest.mark.parametrize(
    "row, sentence",
    [
        ({"seed": []}, "a list of seed must hold one at least"),
        ({"seed": [[1, 2]]}, "seed must be int"),
        ({"seed": True}, "seed must be int"),
        ({"prompt": 5}, "prompt must be str"),
        ({"prompt": {"a": 1}}, "prompt must be str"),
        ({"seconds": 10**400}, "seconds must be a finite number"),
        ({"mode": "text-to-vide"}, "perhaps text-to-video was meant"),
        ({"strength": 2}, "strength must lie between 0 and 1"),
        ({"size": [64, 64, 64]}, "two whole numbers"),
        ({"image": "gone.png"}, "image must be a file that can be read; 'gone.png' is not there"),
        ({"image": "/dev/null"}, "'/dev/null' is none"),
        ({"clip": "a\0b"}, "is not there"),
        ({"keyframes": [[0, "gone.png"]]}, "a picture must be a file"),
        ({"promt": "x"}, "perhaps prompt was meant"),
    ],
)
def test_a_request_that_cannot_be_stops_no_other(row, sentence):
    one, two, three = expand(given({"prompt": "a"}, row, {"prompt": "b"}))
    assert one.request and three.request and not two.request and sentence in two.wrong
    assert (two.row, two.part, two.name) == (2, 1, "")


def test_of_a_sweep_only_the_wrong_parts_are_wrong():
    jobs = expand(given({"prompt": "x", "strength": [0.5, 2, 0.7]}))
    assert [(job.part, bool(job.wrong)) for job in jobs] == [(1, False), (2, True), (3, False)]


def test_too_many_clips_are_counted_and_refused_before_any_is_made():
    rows = given({"prompt": "{a|b}" * 30, "seed": list(range(1000))}, {"prompt": "x"})
    with pytest.raises(RequestError, match=f"may make 1,000,000 clips; these rows would make {1000 * 2**30 + 1:,}"):
        expand(rows)
    for mode in ("product", "zip"):
        with pytest.raises(RequestError, match="more than 1,000,000,000,000,000,000"):
            expand(given({"prompt": "{a|b}" * 20_000}), mode=mode)
    assert (
        "many of prompt, 2 of seed" in expand(given({"prompt": "{a|b}" * 20_000, "seed": [1, 2]}), mode="zip")[0].wrong
    )
    assert len(expand(given({"seed": list(range(9))}), most=9)) == 9
    with pytest.raises(RequestError, match="10"):
        expand(given({"seed": list(range(10))}), most=9)


def test_settings_that_no_row_can_use_are_refused_at_once():
    for how in ({"mode": "both"}, {"sweeps": {"sede": [1]}}, {"defaults": {"output": "a.mp4"}}, {"suffix": ".avi"}):
        with pytest.raises(RequestError):
            expand(given({"prompt": "x"}), **how)


# Wildcards


@pytest.mark.parametrize(
    "text, texts",
    [
        ("a ball", ["a ball"]),
        ("", [""]),
        ("{red|blue} ball", ["red ball", "blue ball"]),
        ("{a|b}{c|d}", ["ac", "ad", "bc", "bd"]),
        ("{a|{b|c} d|e}", ["a", "b d", "c d", "e"]),
        ("a{|, fast}", ["a", "a, fast"]),
        ("{a}", ["a"]),
        ("{}", [""]),
        ("a|b", ["a|b"]),
        (r"\{a\|b\} {c\|d|e\}}", ["{a|b} c|d", "{a|b} e}"]),
        (r"a\b\n \\", [r"a\b\n \\"]),
        ("{红|蓝}\n球", ["红\n球", "蓝\n球"]),
    ],
)
def test_a_wildcard_gives_all_its_alternatives_in_order(text, texts):
    choice = read_wildcards(text)
    assert list(choice.texts()) == texts and choice.count == len(texts)


@pytest.mark.parametrize("text", ["{", "}", "{a|b", "a}", "{a}}", "{{a}", r"{a\}", "{" * 50 + "}" * 50])
def test_braces_that_do_not_match_make_a_row_wrong(text):
    one, two = expand(given({"prompt": text}, {"prompt": "x"}))
    assert one.wrong and "\n" not in one.wrong and two.request


def test_wildcards_multiply_with_the_rest_in_prompt_written_and_negative():
    row = {"prompt": ["{a|b}", "c"], "upsampled_prompt": "{d|e}", "negative_prompt": "{f|g}", "seed": [1, 2]}
    jobs = expand(given(row))
    assert len({(r.prompt, r.upsampled_prompt, r.negative_prompt, r.seed) for r in (job.request for job in jobs)}) == len(jobs) == 24
    assert prompts({"prompt": "x", "model": "{a|b}"}) == ["x"]


def test_a_draw_is_a_function_of_seed_and_position_alone():
    text, seeds = "{a|b|c} {d|{e|f}} {g|h}", list(range(200))
    drawn = prompts({"prompt": text, "seed": seeds}, draw=True)
    assert drawn == [prompts({"seed": seed, "prompt": text, "steps": 4}, draw=True)[0] for seed in seeds]
    assert set(drawn) == set(read_wildcards(text).texts())  # all of 18, in 200 draws
    assert drawn[0] == prompts({"prompt": text}, draw=True)[0]  # the seed unless said is 0
    # Words around a wildcard, its neighbours and what it is called do not matter: only which it is.
    assert [one[0] for one in drawn] == [one[2] for one in prompts({"prompt": "x {a|b|c}", "seed": seeds}, draw=True)]
    other = expand(given({"prompt": "x", "negative_prompt": text, "seed": seeds}), draw=True)
    assert [job.request.negative_prompt for job in other] == drawn
