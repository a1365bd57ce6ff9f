"""JOBS files are read in every format that people keep prompts in, and a bad row does not stop the others."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.batch.rows import BatchRow, read_rows
from app.batch.sweeps import expand_rows
from dit.request import Moment, Request, RequestError


def read(folder: Path, name: str, content: str | bytes) -> list[BatchRow]:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_rows(path)


def test_rows_sweeps_and_names_import_nothing_heavy():
    heavy = {"torch", "numpy", "av", "pyarrow", "diffusers", "yaml"}
    code = f"import sys, app.batch.rows, app.batch.sweeps, app.batch.names; print(sorted({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_text_file_is_one_prompt_per_line(tmp_path):
    text = '\ufeffa red ball\r\n\r\n# not this\r\n  {red|blue} cube  \r\n一个红色的球\u2028x\n{"prompt": 1}'
    rows = read(tmp_path, "jobs.txt", text)
    assert [(row.number, row.fields["prompt"]) for row in rows] == [
        (1, "a red ball"),
        (4, "{red|blue} cube"),
        (5, "一个红色的球\u2028x"),
        (6, '{"prompt": 1}'),
    ]


def test_a_line_that_is_not_utf_8_does_not_stop_the_others(tmp_path):
    one, two, three = read(tmp_path, "jobs.txt", b"a ball\ncaf\xe9\na cube")
    assert one.fields and three.fields and "UTF-8" in two.error and not two.fields
    one, two = read(tmp_path, "jobs.csv", b"prompt,seed\ncaf\xe9,1\na cube,2\n")
    assert "UTF-8" in one.error and two.fields == {"prompt": "a cube", "seed": 2}
    with pytest.raises(RequestError, match="UTF-16"):
        read(tmp_path, "jobs.csv", "prompt\na ball".encode("utf-16"))


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"prompt": "a ball"', "must be a JSON object on one line"),
        ('["a ball"]', "got a list"),
        ('{"promt": "a ball"}', "perhaps prompt was meant"),
        ('{"colour": "a ball"}', "they are mode, prompt"),
        ('{"seconds": NaN}', "finite"),
        ('{"seconds": 1e999}', "finite"),
        ('{"prompt": "\\ud800"}', "UTF-8"),
        ('{"seed": ' + "9" * 5000 + "}", "must be a JSON object on one line"),
        ('{"window": ' + "[" * 100000 + "}", "nested too deep"),
        ('{"storyboard": "gone.yaml"}', "gone.yaml cannot be read as a storyboard"),
        ('{"storyboard": ["a", "b"]}', "storyboard must be a file's name"),
    ],
)
def test_a_bad_row_has_a_message_and_does_not_stop_the_others(tmp_path, line, message):
    one, two, three = read(tmp_path, "jobs.jsonl", f'{{"prompt": "a ball"}}\n{line}\n\n{{"prompt": "a cube"}}')
    assert (one.number, two.number, three.number) == (1, 2, 4)
    assert message in two.error and "\n" not in two.error
    items = expand_rows([one, two, three])
    assert [bool(item.error) for item in items] == [False, True, False] and items[1].error == two.error


def test_each_line_of_standard_input_is_a_prompt_or_an_object(tmp_path, monkeypatch):
    text = '{"prompt": "a ball", "image": "a.png"}\n{red|blue} cube\n# not this\n\n { "seed": 1}\na cube\n{}'
    found = [(1, {"prompt": "a ball", "image": "a.png"}), (2, {"prompt": "{red|blue} cube"}), (5, {"seed": 1})]
    found += [(6, {"prompt": "a cube"}), (7, {})]
    for stream in (io.StringIO(text), io.BytesIO(text.encode("utf-8-sig"))):
        assert [(row.number, row.fields) for row in read_rows(None, stream)] == found
    # The text is UTF-8 in any locale.
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("红色的球".encode()), encoding="ascii"))
    assert read_rows(Path("-"))[0].fields == {"prompt": "红色的球"}


def test_the_cells_of_a_table_are_parsed_into_their_fields_types(tmp_path):
    cells = {
        "prompt": 'a "red" ball, bouncing\ntwice',
        "seed": "7",
        "steps": "4.0",
        "size": "64x48",
        "guidance": "1e1",
        "window": "[0, 1.5]",
        "box": "[0, 0, 16, 16]",
        "keyframes": '[[0, "a.png"]]',
        "moments": '[{"at": 0, "prompt": "a ball", "image": "b.png"}]',
        "negative_prompt": "[not] a list",
        "strength": " ",
    }
    table = io.StringIO()
    writer = csv.DictWriter(table, cells)
    writer.writeheader()
    writer.writerow(cells)
    (row,) = read(tmp_path, "jobs.csv", table.getvalue())
    request = Request.from_dict(row.fields | {"size": (64, 48)})
    assert request == Request(
        prompt=cells["prompt"],
        seed=7,
        steps=4,
        size=(64, 48),
        guidance=10.0,
        window=(0.0, 1.5),
        box=(0, 0, 16, 16),
        keyframes=((0.0, str(tmp_path / "a.png")),),
        moments=(Moment(0.0, "a ball", image=str(tmp_path / "b.png")),),
        negative_prompt="[not] a list",
    )
    assert row.fields["size"] == "64x48" and row.number == 2  # as a spreadsheet numbers it


@pytest.mark.parametrize(
    "name, text",
    [
        ("jobs.csv", "\ufeffprompt , seed\r\na ball,1\r\n\r\na cube\r\n,\r\n"),
        ("jobs.csv", "prompt;seed;;\na ball;1;;\n;;;\na cube;;;\n"),
        ("jobs.tsv", "prompt\tseed\na ball\t1\n\na cube\t\n"),
    ],
)
def test_tables_are_read_as_editors_write_them(tmp_path, name, text):
    rows = read(tmp_path, name, text)
    assert rows == [BatchRow(2, {"prompt": "a ball", "seed": 1}), BatchRow(4, {"prompt": "a cube"})]


@pytest.mark.parametrize(
    "row, message",
    [
        ("a ball,one", "seed must be a number; got 'one'"),
        ("a ball,1.5", "seed must be a whole number; got 1.5"),
        ("a ball,1e300", "seed must be a whole number"),
        ("a ball,inf", "seed must be a whole number"),
        ("a ball,1,2", "quote what holds a comma"),
        ('"a" ball,1', "quotes closed and doubled"),
        ("a ball,[1", "seed must be JSON where it is a list"),
    ],
)
def test_a_bad_record_does_not_stop_the_others(tmp_path, row, message):
    one, two, three = read(tmp_path, "jobs.csv", f"prompt,seed\na cube,1\n{row}\na cube,2\n")
    assert one.fields and three.fields["seed"] == 2 and message in two.error and two.number == 3


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("jobs.csv", "prompt,seeds\na,1", "got 'seeds': perhaps seed was meant"),
        ("jobs.csv", "prompt,prompt\na,b", "two named prompt"),
        ("jobs.csv", "prompt,,seed\na,,1", "got ''"),
        ("jobs.csv", '"prompt\na', "header"),
        ("jobs.csv", "\n\n", "is empty"),
        ("jobs.yaml", "{a", "must be YAML or JSON"),
        ("jobs.yaml", "- !!timestamp x", "must be YAML or JSON"),
        ("jobs.json", "[" * 100000, "must be YAML or JSON"),
        ("jobs.doc", "a ball", "JOBS must end in .txt"),
        ("jobs.parquet", "PAR1", "cannot"),
    ],
)
def test_an_error_of_the_whole_file_is_refused_in_one_line(tmp_path, name, text, message):
    with pytest.raises(RequestError, match=re.escape(message)) as refused:
        read(tmp_path, name, text)
    assert "\n" not in str(refused.value)


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "folder.parquet").mkdir()
    for name in ("gone.txt", "gone.parquet", "folder.csv", "folder.parquet"):
        with pytest.raises(RequestError, match=name):
            read_rows(tmp_path / name)


def test_a_parquet_table_is_read_as_pandas_writes_it(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    columns = {
        "prompt": ["a ball", "a cube", "", None],
        "seed": [1.0, None, float("nan"), 2.5],  # whole numbers with nulls
        "size": ["64x64", None, "[48, 64]", None],
        "window": [[0.0, 1.0], None, None, None],
        "image": [None, "b.png", None, None],
    }
    write_table(pyarrow.table(columns), tmp_path / "jobs.parquet")
    rows = read_rows(tmp_path / "jobs.parquet")
    assert rows[0] == BatchRow(1, {"prompt": "a ball", "seed": 1, "size": "64x64", "window": [0.0, 1.0]})
    assert isinstance(rows[0].fields["seed"], int)
    assert rows[1] == BatchRow(2, {"prompt": "a cube", "image": str(tmp_path / "b.png")})
    assert rows[2] == BatchRow(3, {"size": [48, 64]}) and "whole number" in rows[3].error
    write_table(pyarrow.table({"promt": ["a"]}), tmp_path / "jobs.parquet")
    with pytest.raises(RequestError, match="perhaps prompt was meant"):
        read_rows(tmp_path / "jobs.parquet")


BOARD = "seconds: 2\nmoments:\n  - {at: 0, prompt: a ball, image: a.png}\n  - {at: 1, prompt: a cube}\n"


def test_a_list_holds_requests_and_a_storyboard_is_one_request(tmp_path):
    rows = read(
        tmp_path, "jobs.yaml", "- a ball\n- {prompt: a cube, seed: [1, 2]}\n- 5\n- {negative_prompt: no, clip: c.mp4}"
    )
    assert [row.fields for row in rows[:2]] == [{"prompt": "a ball"}, {"prompt": "a cube", "seed": [1, 2]}]
    assert "got a int" in rows[2].error and rows[3].fields["clip"] == str(tmp_path / "c.mp4")
    assert "negative_prompt must be str" in expand_rows(rows)[-1].error
    assert read(tmp_path, "jobs.json", '{"prompt": "a ball"}')[0].fields == {"prompt": "a ball"}
    assert read(tmp_path, "jobs.yml", "") == []
    for name, text in (("b.yaml", BOARD), ("b.json", '[{"at": 0, "prompt": "a ball", "image": "a.png"}]')):
        (row,) = read(tmp_path, name, text)
        assert row.fields["moments"][0]["image"] == str(tmp_path / "a.png")


def test_a_storyboard_gives_the_defaults_of_a_row(tmp_path):
    (tmp_path / "boards").mkdir()
    (tmp_path / "boards" / "a.png").write_bytes(b"image")
    (tmp_path / "boards" / "b.yaml").write_text(BOARD)
    (row,) = read(tmp_path, "jobs.csv", "storyboard,seconds,seed\nboards/b.yaml,4,\n")
    assert row.fields["seconds"] == 4
    (item,) = expand_rows([row], defaults={"seed": 5})
    assert item.request.mode == "storyboard" and item.request.seed == 5 and item.name.startswith("a-ball-")
    assert item.request.moments[0].image == str(tmp_path / "boards" / "a.png")
    assert expand_rows([row], defaults={"mode": "long"})[0].request.mode == "long"


def test_paths_are_relative_to_the_folder_of_jobs(tmp_path):
    row = {
        "image": ["a.png", "/b.png"],
        "clip": "sub/c.mp4",
        "mask": "m.png",
        "keyframes": [[[0, "p.png"], [1, "q.png"]], [[0, "r.png"]]],
        "moments": [[{"at": 0, "prompt": "x", "clip": "s.mp4"}]],
        "hashes": [["sub/c.mp4", "00"]],
        "model": "first",
    }
    found = read(tmp_path / "in", "jobs.jsonl", json.dumps(row))[0].fields
    at = tmp_path / "in"
    assert found["image"] == [str(at / "a.png"), "/b.png"] and found["model"] == "first"
    assert found["clip"] == found["hashes"][0][0] == str(at / "sub/c.mp4") and found["mask"] == str(at / "m.png")
    assert found["keyframes"] == [[[0, str(at / "p.png")], [1, str(at / "q.png")]], [[0, str(at / "r.png")]]]
    assert found["moments"][0][0]["clip"] == str(at / "s.mp4")


@pytest.mark.parametrize("name, separator", [("jobs.csv", ";"), ("jobs.tsv", "\t")])
def test_numbers_with_decimal_commas_are_read_where_no_comma_separates_columns(tmp_path, name, separator):
    lines = ["prompt;seed;seconds;guidance", "a ball;1;2,125;1.234,5", "a cube;2,0;2.125;-0,5", "a can;1,5;2;1"]
    one, two, three = read(tmp_path, name, "\ufeff" + "\r\n".join(lines).replace(";", separator))
    assert one.fields == {"prompt": "a ball", "seed": 1, "seconds": 2.125, "guidance": 1234.5}
    assert two.fields == {"prompt": "a cube", "seed": 2, "seconds": 2.125, "guidance": -0.5}
    assert three.error == "seed must be a whole number; got 1.5"
    one, two = read(tmp_path, "jobs.csv", 'prompt,seconds\na ball,"2,125"\na cube,2\n')
    assert "so write 2.125" in one.error and two.fields["seconds"] == 2


def test_paths_may_be_written_as_on_windows(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "start.png").write_bytes(b"image")
    (tmp_path / "odd\\name.png").write_bytes(b"image")  # a name that may be chosen here
    table = "prompt,image,keyframes\na,images\\start.png,\nb,odd\\name.png,\nc,C:\\start.png,\nd,.\\gone.png,\n"
    one, two, three, four = read(tmp_path, "jobs.csv", table)
    assert one.fields["image"] == str(tmp_path / "images" / "start.png")
    assert two.fields["image"] == str(tmp_path / "odd\\name.png")
    assert "of Windows, so write it relative" in three.error
    assert four.fields["image"] == str(tmp_path / "gone.png")  # whose absence is reported where it is read
    text = json.dumps(
        {"keyframes": [[0, "images\\start.png"]], "moments": [{"at": 0, "prompt": "x", "clip": "a\\b.mp4"}]}
    )
    (row,) = read(tmp_path, "jobs.jsonl", text)
    assert row.fields["keyframes"] == [[0, str(tmp_path / "images" / "start.png")]]
    assert row.fields["moments"][0]["clip"] == str(tmp_path / "a" / "b.mp4")
