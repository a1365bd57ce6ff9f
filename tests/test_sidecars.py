"""Captions that come with films: every encoding is read or the file is named, and sidecars are found as trainers do."""

import codecs
import json
import tarfile

import pytest

from app.cli import main
from captioning.text_files import TextError, check_encoding, decode_text
from tests.test_prepare import run_of, shot
from training.manifest import PrepareError, read_manifest
from training.prepare.clips import cut_clips, failed_clips
from training.prepare.sources import find_sources, survey_sources
from vae.video.write import write_video

TEXTS = {
    "utf-8": "a red ball — 一个红色的球",
    "utf-8-sig": "a red ball rolls",
    "utf-16": "a red ball rolls",
    "utf-16-le": "a red ball rolls",
    "utf-16-be": "a red ball rolls",
    "utf-32": "a red ball rolls",
    "cp1252": "A red square slides over the “quilt” — it’s calm, à côté du café.",
    "gb18030": "一个红色的方块滑动",
    "big5": "一個紅色的方塊滑動",
    "shift_jis": "赤い四角が滑る",
    "euc_jp": "猫が草の上を走っている",
    "euc_kr": "빨간 사각형이 미끄러진다",
    "cp1251": "красный квадрат скользит",
    "cp1253": "ένα κόκκινο τετράγωνο γλιστρά",
    "cp1254": "kırmızı kare yavaşça kayıyor",
}


@pytest.mark.parametrize("encoding", TEXTS)
def test_a_caption_is_read_in_the_encoding_in_which_it_was_saved(encoding):
    assert decode_text(TEXTS[encoding].encode(encoding), "caption.txt") == TEXTS[encoding]


@pytest.mark.parametrize(
    "content",
    [
        "貓".encode("big5"),  # too short to tell
        "雪山".encode("gbk"),  # also UTF-8, as letters of two scripts
        "a café in Paris".encode("mac_roman"),  # as cp1252: "cafŽ"
        "it’s a “quilt”".encode("mac_roman"),
        "a café in Paris".encode("cp850"),
        "it’s naïve".encode("cp1252"),  # also Baltic, as "naļve"
        "a \ufffd ball".encode(),
        b"a\0ball",
        b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
        codecs.BOM_UTF16_LE + b"a\0b",
        codecs.BOM_UTF8 + b"\xff\xfe\xfd",
    ],
)
def test_text_that_would_be_rubble_is_refused_and_its_file_named(content):
    with pytest.raises(TextError, match=r"^caption.txt must be .*save it as UTF-8"):
        decode_text(content, "caption.txt")


def test_a_given_encoding_reads_what_cannot_be_told_and_a_wrong_one_is_refused():
    assert decode_text("貓".encode("big5"), "caption.txt", "big5") == "貓"
    assert decode_text("貓".encode(), "caption.txt", "big5") == "貓"
    with pytest.raises(TextError, match="must be text in ascii"):
        decode_text("貓".encode("big5"), "caption.txt", "ascii")
    with pytest.raises(TextError, match="an encoding must be one of Python's"):
        check_encoding("klingon")


def captions_in(folder, files):
    """Return the captions of films, by name, where a folder has these films (None) and other files."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"film" if content is None else content.encode())
    survey = survey_sources(str(folder))
    return {one.name: list(one.captions) for one in survey.sources if one.captions}, survey


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.cam1.mp4": None, "a.txt": "by name"}, {"a.cam1.mp4": ["by name"]}),
        ({"a.cam1.mp4": None, "a.txt": "by name", "a.cam1.txt": "longer"}, {"a.cam1.mp4": ["longer"]}),
        ({"a.mp4": None, "a.cam1.mp4": None, "a.txt": "x"}, {"a.mp4": ["x"], "a.cam1.mp4": ["x"]}),
        ({"Track 2.mp4": None, "Track 2.0 (clean).mp4": None, "Track 2.txt": "x"}, {"Track 2.mp4": ["x"]}),
        ({"Track 2.0 (clean).mp4": None, "Track 2.0 (clean).txt": "x"}, {"Track 2.0 (clean).mp4": ["x"]}),
        ({"a.mp4": None, "a.mp4.txt": "x"}, {"a.mp4": ["x"]}),
        ({"A.MP4": None, "a.TXT": "x"}, {"A.MP4": ["x"]}),
        ({"a.mp4": None, "a.caption": "x"}, {"a.mp4": ["x"]}),
        ({"a.mp4": None, "a.json": '{"caption": "words", "fps": 8}'}, {"a.mp4": ["words"]}),
        ({"a.mp4": None, "a.json": '{"text": " words "}'}, {"a.mp4": ["words"]}),
        ({"a.mp4": None, "a.json": '{"prompt": "words", "caption": ""}'}, {"a.mp4": ["words"]}),
        ({"a.mp4": None, "a.json": '{"captions": ["one", "two"]}'}, {"a.mp4": ["one", "two"]}),
        ({"a.mp4": None, "a.json": '{"fps": 8}'}, {}),
        ({"a.mp4": None, "b.mp4": None, "metadata.csv": "file_name,text\na.mp4,one\n"}, {"a.mp4": ["one"]}),
        ({"a.mp4": None, "metadata.csv": '\ufefftext;file_name\r\n"one; two";a.mp4\r\n'}, {"a.mp4": ["one; two"]}),
        ({"a.mp4": None, "metadata.tsv": "video\tcaption\na.mp4\tone\n"}, {"a.mp4": ["one"]}),
        ({"a.mp4": None, "metadata.jsonl": '{"file_name": "a.mp4", "text": "one"}\n'}, {"a.mp4": ["one"]}),
        ({"in/a.mp4": None, "metadata.csv": "file_name,text\nin\\a.mp4,one\n"}, {"in/a.mp4": ["one"]}),
        ({"in/a.mp4": None, "in/metadata.csv": "file_name,text\n./a.mp4,one\n"}, {"in/a.mp4": ["one"]}),
        ({"a.mp4": None, "a.txt": "own", "metadata.csv": "file_name,text\na.mp4,one\n"}, {"a.mp4": ["own"]}),
    ],
)
def test_captions_are_found_beside_films_as_webdataset_and_trainers_find_them(tmp_path, files, expected):
    found, survey = captions_in(tmp_path, files)
    assert found == expected and not survey.errors
    if not any(len(one.captions) > 1 for one in survey.sources):
        with tarfile.open(tmp_path / "all.tar", "w") as tar:
            for name in files:
                tar.add(tmp_path / name, name)
        inside = {one.member: list(one.captions) for one in find_sources(str(tmp_path / "all.tar")) if one.captions}
        assert inside == expected or "in/" in str(expected)  # a tar has no tables of folders above


@pytest.mark.parametrize(
    ("files", "name", "rule"),
    [
        ({"a.mp4": None, "a.json": "{broken"}, "a.json", "a.json must be JSON"),
        ({"a.mp4": None, "a.txt": "x" * 70000}, "a.txt", "a caption must be at most 65536 bytes; a.txt has 70000"),
        (
            {"a.mp4": None, "metadata.csv": "name,words\na.mp4,x\n"},
            "metadata.csv",
            "must have columns such as file_name",
        ),
        ({"a.mp4": None, "metadata.jsonl": "{\n"}, "metadata.jsonl", "must have one JSON object per line; line 1"),
        (
            {"a.mp4": None, "metadata.csv": "file_name,text\na.mp4,x\nlost.mp4,y\n"},
            "metadata.csv",
            "names 1 files that are not there: lost.mp4",
        ),
    ],
)
def test_captions_that_cannot_be_read_are_named(tmp_path, files, name, rule):
    _, survey = captions_in(tmp_path, files)
    ((file, error),) = survey.errors.items()
    assert file.endswith(name) and rule in error


def test_other_files_are_counted_by_suffix_and_used_captions_are_not(tmp_path):
    files = {
        "a.mp4": None,
        "a.txt": "x",
        "b.WMV": "x",
        "c/d.wmv": "x",
        "c/notes.txt": "x",
        ".hidden": "x",
        "README": "x",
    }
    _, survey = captions_in(tmp_path, files)
    assert survey.left_out == {".wmv": 2, ".txt": 1, "without suffix": 1}
    with pytest.raises(PrepareError, match=r"got .*c, which has 1 .txt, 1 .wmv"):
        survey_sources(str(tmp_path / "c"))


def test_the_command_says_what_it_left_out_and_which_caption_it_could_not_read(tmp_path, capsys):
    raw = tmp_path / "raw"
    raw.mkdir()
    for number, name in enumerate(("good", "odd")):
        write_video(raw / f"{name}.mp4", shot(number, 16), 8)
    (raw / "good.txt").write_bytes(TEXTS["utf-8"].encode("utf-16"))
    (raw / "odd.txt").write_bytes("貓".encode("big5"))
    (raw / "tape.wmv").write_bytes(b"x")
    command = ["prepare", "clips", str(raw), str(tmp_path / "done"), "--engine", "serial"]
    assert main(command) == 3
    printed = capsys.readouterr()
    assert "2 clips, 0 shots too short, 1 failed, 1 with captions, 1 .wmv left out" in printed.out
    assert f"longtake: {raw / 'odd.txt'}: odd.txt must be text in UTF-8" in printed.err
    assert main([*command, "--encoding", "big5"]) == 0
    texts = {row.source: [one.text for one in row.captions] for row in read_manifest(tmp_path / "done")}
    assert texts == {"good.mp4": [TEXTS["utf-8"]], "odd.mp4": ["貓"]}
    assert main([*command, "--encoding", "klingon"]) == 2


def test_several_captions_of_a_film_are_kept_and_a_changed_one_is_noticed(tmp_path):
    (tmp_path / "raw").mkdir()
    write_video(tmp_path / "raw" / "a.mp4", shot(0, 16), 8)
    (tmp_path / "raw" / "a.json").write_text(json.dumps({"captions": ["one", "two"]}))
    run = run_of(tmp_path / "raw", tmp_path)
    assert cut_clips(run)["with captions"] == 1 and cut_clips(run)["done before"] == 1
    assert [one.text for row in read_manifest(run.folder) for one in row.captions] == ["one", "two"]
    (tmp_path / "raw" / "a.json").write_text(json.dumps({"captions": ["one"]}))
    assert cut_clips(run)["done before"] == 0 and not failed_clips(run)
    assert [one.text for row in read_manifest(run.folder) for one in row.captions] == ["one"]
