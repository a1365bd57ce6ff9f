"""Command-line options are the fields of a run: types, defaults, and the comments on them as help."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from training.command import parse_run
from training.options import add_options, field_comments, read_options
from training.presets import PRESETS


@dataclass(frozen=True)
class Base:
    """Fields that others share."""

    seed: int = 0  # seed of everything
    out: Path = Path("runs")  # folder # with a hash


@dataclass(frozen=True)
class Options(Base):
    """One field of each type."""

    lr: float = 1e-3  # 50 % of the peak
    name: str = "tiny"  # first part of the name
    flip: bool = False  # mirror half of the clips
    optimizer: Literal["muon", "adamw"] = "muon"  # which one
    init_from: Path | None = None  # folder to continue from
    limit: int | None = 3  # most of them
    betas: tuple[float, float] = (0.9, 0.99)  # decay rates
    widths: tuple[int, ...] = (8, 16)  # of each stage
    formats: tuple[tuple[int, int, int], ...] = ((64, 64, 17),)  # columns, rows, frames
    # fmt: off
    seed: int = (
        1  # seed of this one
    )
    # fmt: on


def read(*argv: str) -> Options:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_options(parser, Options())
    return read_options(parser.parse_args(argv), Options())


def test_options_that_are_left_out_keep_the_defaults():
    assert read() == Options()


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        (["--seed", "-3"], "seed", -3),
        (["--out", "a b"], "out", Path("a b")),
        (["--lr=2e-4"], "lr", 2e-4),
        (["--name", "none"], "name", "none"),
        (["--flip"], "flip", True),
        (["--no-flip"], "flip", False),
        (["--optimizer", "adamw"], "optimizer", "adamw"),
        (["--init-from", "runs/x"], "init_from", Path("runs/x")),
        (["--init-from", "None"], "init_from", None),
        (["--limit", "none"], "limit", None),
        (["--betas", "0.8", "0.9"], "betas", (0.8, 0.9)),
        (["--widths"], "widths", ()),
        (["--widths", "1", "2", "3"], "widths", (1, 2, 3)),
        (["--formats", "1", "2", "3", "4", "5", "6"], "formats", ((1, 2, 3), (4, 5, 6))),
    ],
)
def test_each_type_is_parsed(argv, field, value):
    found = getattr(read(*argv), field)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--seed", "one"], "argument --seed: invalid int value: 'one'"),
        (["--limit", "one"], "argument --limit: invalid int value: 'one'"),
        (["--optimizer", "sgd"], "argument --optimizer: invalid choice: 'sgd'"),
        (["--betas", "0.8"], "argument --betas: expected 2 arguments"),
        (["--width", "8"], "unrecognized arguments: --width 8"),
    ],
)
def test_what_is_not_of_a_fields_type_is_refused(argv, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        read(*argv)
    assert message in capsys.readouterr().err


def test_a_tuple_of_tuples_must_be_in_groups():
    with pytest.raises(ValueError, match="formats must be in groups of 3; got 1 2"):
        read("--formats", "1", "2")


def test_comments_are_help_also_of_bases_and_within_a_value(capsys):
    comments = field_comments(Options)
    assert comments["out"] == "folder # with a hash" and comments["seed"] == "seed of this one"
    with pytest.raises(SystemExit, match="0"):
        read("--help")
    printed = " ".join(capsys.readouterr().out.split())
    assert "--lr FLOAT 50 % of the peak (default: 0.001)" in printed
    assert "--formats [INT ...] columns, rows, frames (default: 64 64 17)" in printed
    assert "--init-from PATH folder to continue from (default: none)" in printed


@pytest.mark.parametrize("kind", PRESETS)
def test_a_run_is_its_preset_unless_options_change_it(kind):
    for name, preset in PRESETS[kind].items():
        assert parse_run(kind, ["--preset", name]) == preset()
