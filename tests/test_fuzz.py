"""Whatever clients send is accepted or refused with a one-line message, and no file is written where none may be."""

import json
from random import Random

import pytest
import yaml

from app.batch.rows import read_rows
from app.loadtest.feeds import InvariantError, check_message, check_request
from app.loadtest.fuzz import SHARES, run_fuzz
from app.loadtest.mutation import BILLION_LAUGHS, BILLION_MERGES, corrupt, mutate
from dit.request import Request, RequestError
from dit.storyboard import MAX_STORYBOARD_BYTES, read_storyboard


@pytest.mark.slow
def test_hostile_inputs_break_nothing():
    found = run_fuzz(260, seed=5)
    assert {kind: tally.broken for kind, tally in found.items()} == {kind: {} for kind in SHARES}
    assert sum(sum(tally.counts.values()) for tally in found.values()) == 260


def test_the_same_seed_mutates_the_same_way():
    tree, content = {"prompt": "a", "size": [1, 2]}, bytes(range(256))
    for n in range(20):
        assert repr(mutate(tree, Random(n))) == repr(mutate(tree, Random(n)))
        assert corrupt(content, Random(n)) == corrupt(content, Random(n))
    assert tree == {"prompt": "a", "size": [1, 2]}


def test_broken_invariants_are_detected():
    for message in ("", "two\nlines", "x" * 9999, "Traceback (most recent call last)", "see /secret/place"):
        with pytest.raises(InvariantError):
            check_message(message, "/secret")
    for broken in (Request(guidance=float("nan")), Request(prompt="\ud800")):
        with pytest.raises((InvariantError, ValueError)):
            check_request(broken)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "\ud800"}, r"prompt must be text in UTF-8; got half a letter in '\ud800'"),
        ({"guidance": float("nan")}, "guidance must be a finite number; got nan"),
        ({"seconds": 10**400}, "seconds must be a finite number; got 1000"),
        ({"seed": 2**63}, "seed must be a whole number below 2^63"),
        ({"seed": 16**9999}, "seed must be a whole number below 2^63; got one that is too long to write"),
        ({"size": [1, 10**30]}, "each of size must be a whole number below 2^63"),
        ({"window": [0, float("inf")]}, "each of window must be a finite number; got inf"),
        ({"keyframes": [[0, "\udfff"]]}, "each of keyframes must be text in UTF-8"),
        ({"moments": [{"at": 0, "prompt": "\ud800"}]}, "a moment's prompt must be text in UTF-8"),
        ({"prompt": ["x" * 9999] * 99}, "prompt must be str; got "),
        ({"x" * 9999: 1}, "a request has the fields"),
        ({"a\nb": 1}, "a request has the fields"),
    ],
)
def test_values_that_json_cannot_hold_are_refused_in_one_line(fields, message):
    with pytest.raises(RequestError) as raised:
        Request.from_dict(fields)
    assert message in str(raised.value)
    check_message(str(raised.value))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"seed": ' + "9" * 5000 + "}", '{"a":' * 100_000, "NaN", '{"guidance_rescale": NaN}']
)
def test_json_that_is_too_deep_or_has_a_constant_is_refused(text):
    with pytest.raises(RequestError) as raised:
        Request.from_json(text)
    check_message(str(raised.value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"a0: &a0 [lol]\n{BILLION_LAUGHS}\nmoments: [*a11]", "it has an alias"),
        (f"a0: &a0 {{at: 0}}\n{BILLION_MERGES}\nmoments: [*a11]", "it has an alias"),
        ("&a [*a]", "it has an alias"),
        ("[" * 20_000, "nested too deep"),
        ("- " * 20_000, "nested too deep"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("moments: !!timestamp x", "cannot be read as a storyboard"),
        ("moments: [{at: 0, prompt: x}]\n#" + "x" * MAX_STORYBOARD_BYTES, "more than 262,144 bytes"),
    ],
)
def test_a_hostile_storyboard_is_refused_at_once(tmp_path, text, message):
    path = tmp_path / "board.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=message) as raised:
        read_storyboard(str(path))
    check_message(str(raised.value))
    if "bytes" not in message:
        with pytest.raises(RequestError):
            (row,) = read_rows(path)
            raise RequestError(row.error or "")


def test_a_storyboard_that_is_a_device_is_not_read():
    with pytest.raises(RequestError, match="/dev/zero cannot be read as a storyboard: it is not a regular file"):
        read_storyboard("/dev/zero")


def test_a_storyboard_means_the_same_in_json_and_yaml(tmp_path):
    board = {"seconds": 4, "size": "64x64", "moments": [{"at": 0, "prompt": "球", "image": "a.png"}]}
    for name, text in (("board.json", json.dumps(board)), ("board.yaml", yaml.safe_dump(board))):
        (tmp_path / name).write_text(text)
    first, second = (read_storyboard(str(tmp_path / name)) for name in ("board.json", "board.yaml"))
    assert first == second and first["moments"][0]["image"] == str(tmp_path / "a.png")
