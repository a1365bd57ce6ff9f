"""Lists, sweeps and wildcards are expanded: every combination once, in a fixed order."""

from dataclasses import fields

import pytest

from app.batch.rows import FIELD_TYPES, BatchRow
from app.batch.sweeps import expand_rows, is_value_list, parse_wildcards
from dit.request import Request, RequestError


def rows_of(*fields: dict) -> list[BatchRow]:
    return [BatchRow(number, one) for number, one in enumerate(fields, 1)]


def prompts(*rows: dict, **settings) -> list[str]:
    items = expand_rows(rows_of(*rows), **settings)
    assert not [item.error for item in items if item.error]
    return [item.request.prompt for item in items]


def test_every_field_of_a_request_has_a_known_type():
    assert list(FIELD_TYPES) == [field.name for field in fields(Request)]
    assert all(kind in ("str", "int", "float") or kind.startswith("tuple[") for kind in FIELD_TYPES.values())


ONE_AND_SEVERAL = {
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


@pytest.mark.parametrize("name", ONE_AND_SEVERAL)
def test_a_value_that_is_a_list_is_distinguished_from_a_list_of_values(name):
    one, several = ONE_AND_SEVERAL[name]
    assert not is_value_list(name, one) and is_value_list(name, several) and is_value_list(name, [*several, None])


def test_a_size_as_text_is_one_value_and_a_list_of_them_several():
    sizes = lambda size: [item.request.size for item in expand_rows(rows_of({"prompt": "x", "size": size}))]
    assert sizes("64x64") == sizes([64, 64]) == sizes(["64x64"]) == [(64, 64)]
    assert sizes(["64x64", [80, 48], None]) == [(64, 64), (80, 48), None]
    assert [bool(item.error) for item in expand_rows(rows_of({"size": ["64x64", "big", 5]}))] == [False, True, True]


def test_a_product_is_every_combination_in_a_fixed_order_whatever_the_order_of_fields():
    row = {"seed": [1, 2], "size": ["64x64", "80x48"], "prompt": ["a", "b"]}
    for names in (("seed", "size", "prompt"), ("prompt", "seed", "size")):
        items = expand_rows(rows_of({name: row[name] for name in names}))
        found = [(item.request.prompt, item.request.size, item.request.seed) for item in items]
        assert found == [(p, s, n) for p in "ab" for s in ((64, 64), (80, 48)) for n in (1, 2)]
        assert [(item.row, item.part) for item in items] == [(1, part) for part in range(1, 9)]


def test_a_zip_combines_in_step_and_repeats_single_values():
    rows = rows_of({"prompt": ["a", "b"], "seed": [1, 2], "steps": [4], "guidance": 2.0}, {"prompt": "c"})
    items = expand_rows(rows, mode="zip")
    assert [(item.request.prompt, item.request.seed, item.request.steps) for item in items] == [
        ("a", 1, 4),
        ("b", 2, 4),
        ("c", 0, None),
    ]
    (item,) = expand_rows(rows_of({"prompt": "{a|b|c}", "seed": [1, 2]}), mode="zip")
    assert "3 of prompt, 2 of seed" in item.error
    assert prompts({"prompt": "{a|b} {c|d}", "seed": [1, 2, 3, 4]}, mode="zip") == ["a c", "a d", "b c", "b d"]


def test_shared_settings_fill_in_what_a_row_leaves_out():
    rows = rows_of({"prompt": "a", "seed": 9, "steps": 2}, {"prompt": "b"})
    items = expand_rows(rows, {"seed": [1, 2], "size": [(64, 64)]}, defaults={"steps": 8, "guidance": None, "seed": 5})
    assert [(item.request.prompt, item.request.seed, item.request.steps) for item in items] == [
        ("a", 9, 2),
        ("b", 1, 8),
        ("b", 2, 8),
    ]
    assert {item.request.size for item in items} == {(64, 64)}


@pytest.mark.parametrize(
    "row, message",
    [
        ({"seed": []}, "a list of seed must have a member"),
        ({"seed": [[1, 2]]}, "seed must be int"),
        ({"seed": True}, "seed must be int"),
        ({"prompt": 5}, "prompt must be str"),
        ({"prompt": {"a": 1}}, "prompt must be str"),
        ({"seconds": 10**400}, "seconds must be a finite number"),
        ({"mode": "text-to-vide"}, "perhaps text-to-video was meant"),
        ({"strength": 2}, "strength must lie between 0 and 1"),
        ({"size": [64, 64, 64]}, "two whole numbers"),
        ({"image": "gone.png"}, "image must be a file that can be read; 'gone.png' does not exist"),
        ({"image": "/dev/null"}, "'/dev/null' is none"),
        ({"clip": "a\0b"}, "does not exist"),
        ({"keyframes": [[0, "gone.png"]]}, "a keyframe must be a file"),
        ({"promt": "x"}, "perhaps prompt was meant"),
    ],
)
def test_an_invalid_request_does_not_stop_the_others(row, message):
    one, two, three = expand_rows(rows_of({"prompt": "a"}, row, {"prompt": "b"}))
    assert one.request and three.request and not two.request and message in two.error
    assert (two.row, two.part, two.name) == (2, 1, "")


def test_only_the_invalid_clips_of_a_sweep_are_invalid():
    items = expand_rows(rows_of({"prompt": "x", "strength": [0.5, 2, 0.7]}))
    assert [(item.part, bool(item.error)) for item in items] == [(1, False), (2, True), (3, False)]


def test_too_many_clips_are_counted_and_refused_before_any_is_expanded():
    rows = rows_of({"prompt": "{a|b}" * 30, "seed": list(range(1000))}, {"prompt": "x"})
    with pytest.raises(RequestError, match=f"may make 1,000,000 clips; these rows would make {1000 * 2**30 + 1:,}"):
        expand_rows(rows)
    for mode in ("product", "zip"):
        with pytest.raises(RequestError, match="more than 1,000,000,000,000,000,000"):
            expand_rows(rows_of({"prompt": "{a|b}" * 20_000}), mode=mode)
    assert (
        "many of prompt, 2 of seed"
        in expand_rows(rows_of({"prompt": "{a|b}" * 20_000, "seed": [1, 2]}), mode="zip")[0].error
    )
    assert len(expand_rows(rows_of({"seed": list(range(9))}), max_clips=9)) == 9
    with pytest.raises(RequestError, match="10"):
        expand_rows(rows_of({"seed": list(range(10))}), max_clips=9)


def test_shared_settings_that_no_row_can_use_are_refused_at_once():
    for settings in (
        {"mode": "both"},
        {"sweeps": {"sede": [1]}},
        {"defaults": {"output": "a.mp4"}},
        {"suffix": ".avi"},
    ):
        with pytest.raises(RequestError):
            expand_rows(rows_of({"prompt": "x"}), **settings)


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
    wildcard = parse_wildcards(text)
    assert list(wildcard.texts()) == texts and wildcard.count == len(texts)


@pytest.mark.parametrize("text", ["{", "}", "{a|b", "a}", "{a}}", "{{a}", r"{a\}", "{" * 50 + "}" * 50])
def test_unbalanced_braces_make_a_row_invalid(text):
    one, two = expand_rows(rows_of({"prompt": text}, {"prompt": "x"}))
    assert one.error and "\n" not in one.error and two.request


def test_wildcards_multiply_with_the_other_lists_in_all_prompts():
    row = {"prompt": ["{a|b}", "c"], "upsampled_prompt": "{d|e}", "negative_prompt": "{f|g}", "seed": [1, 2]}
    items = expand_rows(rows_of(row))
    assert (
        len({(r.prompt, r.upsampled_prompt, r.negative_prompt, r.seed) for r in (item.request for item in items)})
        == len(items)
        == 24
    )
    assert prompts({"prompt": "x", "model": "{a|b}"}) == ["x"]


def test_a_draw_is_a_function_of_seed_and_position_alone():
    text, seeds = "{a|b|c} {d|{e|f}} {g|h}", list(range(200))
    drawn = prompts({"prompt": text, "seed": seeds}, draw=True)
    assert drawn == [prompts({"seed": seed, "prompt": text, "steps": 4}, draw=True)[0] for seed in seeds]
    assert set(drawn) == set(parse_wildcards(text).texts())  # all of 18, in 200 draws
    assert drawn[0] == prompts({"prompt": text}, draw=True)[0]  # the default seed is 0
    # The text around a wildcard, its neighbours and its field do not matter, only its position.
    assert [one[0] for one in drawn] == [one[2] for one in prompts({"prompt": "x {a|b|c}", "seed": seeds}, draw=True)]
    other = expand_rows(rows_of({"prompt": "x", "negative_prompt": text, "seed": seeds}), draw=True)
    assert [item.request.negative_prompt for item in other] == drawn
