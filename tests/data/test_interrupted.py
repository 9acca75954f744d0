"""A preparation that is killed and run again ends like one that was not."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers import trees
from helpers.tiny import ROOT

from sv_sparse.data.corpora import headers, pipeline
from sv_sparse.data.corpora.cnceleb import prepare_cnceleb
from sv_sparse.data.corpora.voxceleb import prepare_voxceleb


def command(what: str, root: Path, out: Path) -> list[str]:
    options = ["--to-flac"] if what == "voxceleb" else []
    return [
        sys.executable,
        "-m",
        "sv_sparse.commands.main",
        "prepare",
        what,
        "--root",
        str(root),
        "--out",
        str(out),
        "--allow-partial",
        *options,
    ]


def contents(folder: Path) -> dict[str, str]:
    """Every file but the lock, by what it holds, without what holds times of files or the order of threads."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in {".lock", "headers.parquet", "manifest.arrow", "made_from.tsv"}
    }


@pytest.mark.parametrize("what", ["voxceleb", "cnceleb"])
def test_killed_again_and_again_it_ends_as_if_it_had_not_been(tmp_path, what):
    root, out = tmp_path / "root", tmp_path / "out"
    if what == "voxceleb":
        trees.released(root)
        trees.write_vox_lists(root / "lists")
    else:
        trees.write_cnceleb(root)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    subprocess.run(command(what, root, out), env=environment, check=True, capture_output=True)
    whole, expected = time.monotonic() - started, contents(out)
    assert any(name.endswith("manifest.parquet") for name in expected)
    out.rename(tmp_path / "uninterrupted")
    for share in (0.6, 0.75, 0.85, 0.95):
        running = subprocess.Popen(
            command(what, root, out), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        time.sleep(share * whole)
        running.send_signal(signal.SIGKILL)
        running.communicate()
    subprocess.run(command(what, root, out), env=environment, check=True, capture_output=True)
    assert contents(out) == expected


def test_shards_killed_again_and_again_end_as_if_they_had_not_been(tmp_path):
    trees.write_cnceleb(tmp_path / "root", ending=".wav")
    prepare_cnceleb([tmp_path / "root"], tmp_path / "prepared", allow_partial=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [
        sys.executable,
        "-m",
        "sv_sparse.commands.main",
        "shard",
        str(tmp_path / "prepared"),
        "--utts-per-shard",
        "5",
        "--out",
    ]
    started = time.monotonic()
    subprocess.run([*words, str(tmp_path / "whole")], env=environment, check=True, capture_output=True)
    seconds = time.monotonic() - started
    out = tmp_path / "out"
    for share in (0.7, 0.8, 0.9, 0.95):
        with subprocess.Popen(
            [*words, str(out)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as running:
            time.sleep(share * seconds)
            running.send_signal(signal.SIGKILL)
            running.communicate()
    subprocess.run([*words, str(out)], env=environment, check=True, capture_output=True)
    names = sorted(path.name for path in out.glob("*.tar"))
    assert names == sorted(path.name for path in (tmp_path / "whole").glob("*.tar"))
    assert len(names) > 8
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    tables = [pq.read_table(folder / "manifest.parquet") for folder in (out, tmp_path / "whole")]
    assert tables[0].equals(tables[1])


class Killed(BaseException):
    """Stands for a kill at a chosen place."""


@pytest.mark.parametrize("after", range(4))
def test_headers_that_were_read_before_a_kill_are_not_read_again(tmp_path, monkeypatch, after):
    trees.merged(tmp_path / "root")
    trees.write_vox_lists(tmp_path / "root")
    opened = []

    def count(path):
        opened.append(path)
        return real(path)

    real = headers.inspect
    monkeypatch.setattr(headers, "inspect", count)
    monkeypatch.setattr(headers, "_PIECE_SIZE", 10)
    write, pieces = headers._write, []

    def kill(path, table):
        write(path, table)
        pieces.append(path)
        if len(pieces) > after:
            raise Killed

    monkeypatch.setattr(headers, "_write", kill)
    with pytest.raises(Killed):
        prepare_voxceleb([tmp_path / "root"], tmp_path / "out", allow_partial=True)
    assert len(opened) == 10 * (after + 1)
    monkeypatch.setattr(headers, "_write", write)
    prepare_voxceleb([tmp_path / "root"], tmp_path / "out", allow_partial=True)
    assert len(opened) == len(set(opened)) == 40
    prepare_voxceleb([tmp_path / "root"], tmp_path / "out", allow_partial=True)
    assert len(opened) == 40
    changed = tmp_path / "root" / "wav" / f"{trees.utterances('vox2_dev')[0]}.wav"
    trees.write(changed, "another", 0.7)
    prepare_voxceleb([tmp_path / "root"], tmp_path / "out", allow_partial=True)
    assert len(opened) == 41


def test_two_at_once_in_one_folder_are_refused(tmp_path):
    trees.merged(tmp_path / "root")
    with (
        pipeline.exclusive(tmp_path / "out"),
        pytest.raises(ValueError, match="another process is preparing into this folder"),
    ):
        prepare_voxceleb([tmp_path / "root"], tmp_path / "out", allow_partial=True)
