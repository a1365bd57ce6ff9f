"""Files appear whole or not at all."""

import os
import signal
import stat
import subprocess
import sys

import pytest

from vae.files import atomic_write, sync


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_when_the_block_ends(tmp_path):
    target = tmp_path / "report.json"
    with atomic_write(target) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path and not target.exists()
    assert target.read_text() == "new" and names(tmp_path) == ["report.json"]


@pytest.mark.parametrize("durable", [True, False])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, durable):
    target = tmp_path / "report.json"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(target, durable) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old" and names(tmp_path) == ["report.json"]


def test_a_process_killed_between_write_and_rename_leaves_the_old_file(tmp_path):
    target = tmp_path / "report.json"
    target.write_text("old")
    code = (
        "import os, signal, sys\nfrom vae.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('new')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)])
    assert done.returncode == -signal.SIGKILL and target.read_text() == "old"
    (left,) = (name for name in names(tmp_path) if name != "report.json")
    assert left.startswith(".") and left.endswith(".part")
    with atomic_write(target) as temporary:  # what is left is in nobody's way
        temporary.write_text("new")
    assert target.read_text() == "new"


def test_the_content_is_on_the_disk_before_the_rename_and_the_name_after_it(tmp_path, monkeypatch):
    target, calls = tmp_path / "report.json", []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor):
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def record_replace(*paths):
        calls.append("rename")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    with atomic_write(target) as temporary:
        temporary.write_text("new")
    assert calls == ["file", "rename", "folder"]
    calls.clear()
    with atomic_write(target, durable=False) as temporary:
        temporary.write_text("newer")
    assert calls == ["rename"]


def test_a_disk_that_fails_at_the_sync_leaves_the_old_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    target = tmp_path / "report.json"
    target.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), atomic_write(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "old" and names(tmp_path) == ["report.json"]


def test_a_folder_that_cannot_be_synced_is_no_failure_but_a_file_is(tmp_path, monkeypatch):
    def unsupported(descriptor):
        raise OSError(22, "Invalid argument")

    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "fsync", unsupported)
    sync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        sync(tmp_path / "file")


def test_a_new_file_has_the_permissions_of_open_and_a_replaced_one_keeps_its_own(tmp_path):
    target, ordinary = tmp_path / "report.json", tmp_path / "ordinary"
    before = os.umask(0o027)
    try:
        ordinary.touch()
        with atomic_write(target):
            pass
        assert target.stat().st_mode == ordinary.stat().st_mode
        target.chmod(0o600)
        with atomic_write(target):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_a_link_is_replaced_and_what_it_pointed_to_stays(tmp_path):
    kept, link = tmp_path / "kept", tmp_path / "link"
    kept.write_text("old")
    link.symlink_to(kept)
    with atomic_write(link) as temporary:
        temporary.write_text("new")
    assert kept.read_text() == "old" and link.read_text() == "new" and not link.is_symlink()
    assert link.stat().st_mode == kept.stat().st_mode  # not that of a link, which is open to all


def test_a_missing_folder_is_an_error_that_makes_nothing(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "none" / "report.json"):
        pass
    assert names(tmp_path) == []
