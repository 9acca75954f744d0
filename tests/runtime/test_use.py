"""The commands that use a network, as a person uses them."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import deployed
from helpers.tiny import RATE, ROOT, Outcome, tone

from sv_sparse.commands import main as cli
from sv_sparse.commands.common import describe_decision, describe_probability
from sv_sparse.export.package import write_package
from sv_sparse.runtime.decision import SYNTHETIC_WARNING, Verification
from sv_sparse.runtime.decision import Outcome as Decision
from sv_sparse.runtime.verifier import Verifier
from sv_sparse.scoring.backend import Backend

WORDS = "logistic regression of scores on 1,000 trials of 10 held-out speakers, one utterance a side"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A calibrated model, another one without calibration, and two recordings of three voices."""
    folder = tmp_path_factory.mktemp("used")
    own = deployed.backend().calibration
    for name, seed, calibration, card in (
        ("model", 0, own, {}),
        ("plain", 1, None, {}),
        ("demo", 0, own, {"synthetic_voices_only": True}),
    ):
        network = deployed.trained(deployed.ECAPA, seed=seed)
        mean = np.zeros(16, np.float32)
        write_package(
            folder / f"{name}.safetensors",
            network,
            deployed.ECAPA,
            Backend(mean, calibration=calibration),
            card,
            features=deployed.FEATURES,
        )
    soundfile.write(folder / "short.wav", tone(0, 0, 0.1), RATE)
    for speaker in range(3):
        for session in range(2):
            soundfile.write(folder / f"{speaker}_{session}.flac", tone(speaker, session, 1.0), RATE)
    return folder


@pytest.fixture
def use(folder, tmp_path, monkeypatch, capsys) -> Callable[..., Outcome]:
    """Run sv-sparse in this process, in the folder of the recordings, with the model named by the environment."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SV_SPARSE_MODEL", "model.safetensors")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))

    def run(*words: str) -> Outcome:
        capsys.readouterr()
        status = 0
        try:
            cli.main(list(words))
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        return Outcome(status, *capsys.readouterr())

    return run


def test_verify_says_what_the_verifier_says(use, folder):
    model = Verifier.from_pretrained(folder / "model.safetensors")
    expected = model.verify(folder / "0_0.flac", folder / "0_1.flac").to_dict()
    found = json.loads(use("verify", "0_0.flac", "0_1.flac", "--json").out)
    assert found | {"seconds": 0} == expected | model.basis | {"seconds": 0}
    assert found["outcome"] == ("accepted" if expected["accepted"] else "not accepted")
    told = use("verify", "0_0.flac", "0_1.flac").out
    relation = "accepted: LLR {:.2f} reaches" if expected["accepted"] else "not accepted: LLR {:.2f} is below"
    for words in (
        f"{relation.format(expected['llr'])} the threshold 2.00 (false-alarm rate 1 %)\n",
        f"score: {expected['score']:.4f} (cosine)\n",
        f"LLR: {expected['llr']:.2f} (natural log-likelihood ratio)\n",
        f"P(same speaker) = {100 * expected['probability']:.1f} % (prior 50 %)\n",
        f"calibration: {WORDS}\n",
        "time: ",
    ):
        assert words in told


def test_verify_decides_as_it_is_asked(use):
    for words, threshold, accepted in (
        (["--threshold=-99"], -99.0, True),
        (["--threshold=99"], 99.0, False),
        (["--target-far", "0.05"], 0.5, None),
    ):
        found = json.loads(use("verify", "0_0.flac", "1_0.flac", "--json", *words).out)
        assert found["threshold"] == threshold
        assert accepted is None or found["accepted"] is accepted
        assert found["outcome"] == ("accepted" if found["accepted"] else "not accepted")
    rare = json.loads(use("verify", "0_0.flac", "0_1.flac", "--json", "--prior", "0.001").out)
    assert rare["prior"] == 0.001


def test_a_model_without_calibration_gives_a_score_and_decides_by_a_given_threshold_alone(use):
    plain = ("--model", "plain.safetensors")
    told = use("verify", "0_0.flac", "0_1.flac", *plain).out
    assert "P(same speaker): none, the model is not calibrated" in told
    assert "no decision: the model has no threshold" in told
    assert " reaches the threshold -1.00\n" in use("verify", "0_0.flac", "0_1.flac", *plain, "--threshold=-1").out
    assert json.loads(use("verify", "0_0.flac", "0_1.flac", *plain, "--json").out)["accepted"] is None


def test_what_is_not_accepted_is_not_said_to_be_of_different_speakers(use):
    told = use("verify", "0_0.flac", "0_1.flac", "--threshold=99").out
    assert ' is below the threshold 99.00\n  this does not mean "different speakers"\n' in told
    use("enroll", "A", "1_0.flac")
    told = use("identify", "0_0.flac", "--threshold=99").out
    assert ' is below the threshold 99.00\n  this does not mean "different speakers"\n' in told
    assert "mean" not in use("verify", "0_0.flac", "0_1.flac", "--threshold=-99").out.partition("limits:")[0]


@pytest.mark.parametrize("model", ["model", "demo"])
def test_every_decision_says_what_it_rests_on_and_is_not_good_for(use, model):
    named = ("--model", f"{model}.safetensors")
    use("enroll", "A", "0_0.flac", *named)
    for command in (("verify", "0_0.flac", "0_1.flac", *named), ("identify", "0_1.flac", *named)):
        told = use(*command).out
        assert f"calibration: {WORDS}\n" in told
        limits, consent = [line for line in told.splitlines() if line.startswith(("limits: ", "consent: "))]
        for word in ("replayed", "spoofing", "deepfakes"):
            assert word in limits
        assert "only with that person's consent" in consent
        assert max(map(len, told.splitlines())) <= 120
        warnings = [line for line in told.splitlines() if line.startswith("warning: ")]
        assert warnings == [f"warning: {SYNTHETIC_WARNING}"] * (model == "demo")
        said = json.loads(use(*command, "--json").out)
        assert (said["calibration"], said["warning"]) == (WORDS, SYNTHETIC_WARNING if model == "demo" else None)


def test_refused_input_has_its_reason_in_json_too(use):
    use("enroll", "A", "0_0.flac")
    for command, recording in (
        (("verify", "0_0.flac", "short.wav"), 2),
        (("verify", "short.wav", "0_0.flac"), 1),
        (("identify", "short.wav"), 1),
    ):
        plain, done = use(*command), use(*command, "--json")
        assert (plain.status, plain.out) == (2, "")
        assert done.status == 2
        assert plain.err == done.err
        said = json.loads(done.out)
        assert (said["outcome"], said["recording"]) == ("refused input", recording)
        assert done.err == f"error: refused input: {said['error']}\n"
        assert said["error"].startswith("short.wav: is too short: 0.10 seconds")
    assert use("verify", "0_0.flac", "0_1.flac", "--prior", "1", "--json").out == ""  # a setting is no input


@pytest.mark.parametrize("command", ["verify", "identify"])
def test_the_help_says_the_outcomes_and_the_exit_status_of_each(use, command):
    told = " ".join(use(command, "--help").out.split())
    for words in (*Decision, "Exit status: 0", "2 with refused input", "replayed", "consent"):
        assert words in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["verify", "0_0.flac", "absent.flac"], "error: refused input: absent.flac: No such file or directory"),
        (["verify", "0_0.flac", "model.safetensors"], "input: model.safetensors: cannot be read as a recording"),
        (["verify", "0_0.flac", "1_0.flac", "--model", "0_0.flac"], "error: 0_0.flac is not a readable package"),
        (["verify", "0_0.flac", "1_0.flac", "--target-far", "0.3"], "the model has thresholds for: 0.01, 0.05"),
        (["verify", "0_0.flac", "1_0.flac", "--prior", "1"], "the prior must be above 0 and below 1"),
        (["verify", "0_0.flac", "1_0.flac", "--threads", "0"], "threads must be 1 to 1024"),
        (["embed", "0_0.flac", "--output", "x.txt"], "expected a name that ends in .npz or .csv"),
        (["embed", "0_0.flac", "--output", "absent/x.csv"], "there is no folder absent"),
        (["identify", "0_0.flac"], "nobody is enrolled; sv-sparse enroll NAME FILE... enrolls a speaker"),
        (["identify", "0_0.flac", "--top", "0"], "--top must be at least 1"),
        (["enroll"], "expected NAME FILE..., or --list, or --remove NAME"),
        (["enroll", "A"], "expected NAME FILE"),
        (["enroll", "Unknown", "absent.flac"], "a speaker cannot be called Unknown"),
        (["enroll", " ", "absent.flac"], "a speaker's name must be one line"),
        (["enroll", "A", "0_0.flac", "--remove"], "expected NAME FILE"),
        (["enroll", "A", "--list"], "expected NAME FILE"),
        (["enroll", "--remove"], "expected NAME FILE"),
        (["enroll", "A", "--remove"], "nobody is enrolled as A"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(use, words, told):
    done = use(*words)
    assert done.status == 2
    assert told in done.err
    assert len(done.err.splitlines()) == 1


def test_without_a_model_it_says_how_to_name_one(use, monkeypatch):
    monkeypatch.delenv("SV_SPARSE_MODEL")
    done = use("verify", "0_0.flac", "0_1.flac")
    assert "name a model with --model FILE, or with the environment variable SV_SPARSE_MODEL" in done.err


def test_who_is_enrolled_is_identified_and_strangers_are_unknown(use):
    assert use("enroll", " Jose\u0301", "0_0.flac").out.startswith("José: 1 recording, 1.0 seconds added to ")
    use("enroll", "李", "1_0.flac", "1_1.flac")
    listed = use("enroll", "--list").out
    assert "José: 1 recording, 1.0 seconds, since 20" in listed
    assert "李: 2 recordings, 2.0 seconds" in listed
    sure, nobody = ("--threshold=-99",), ("--threshold=99",)
    found = use("identify", "0_0.flac", *sure)
    first, second, third, fourth, *_ = found.out.splitlines()
    assert first == "José"
    assert second.endswith(" reaches the threshold -99.00")
    assert third.startswith("  José: score ")
    assert "P(same speaker) " in third
    assert fourth.startswith("  李: score ")
    assert use("identify", "2_0.flac", *nobody).out.startswith("unknown\n")
    said = json.loads(use("identify", "0_0.flac", *nobody, "--top", "1", "--json").out)
    assert (said["answer"], said["known"], [each["name"] for each in said["speakers"]]) == ("unknown", False, ["José"])
    assert said["outcome"] == said["speakers"][0]["outcome"] == "not accepted"
    assert "(false-alarm rate 1 % per speaker, up to 2 % for 2 speakers)" in use("identify", "0_0.flac").out
    use("enroll", "--remove", "José")
    assert use("identify", "0_0.flac", *sure).out.startswith("李\n")


def test_a_store_is_of_one_model(use, tmp_path):
    store = ("--database", str(tmp_path / "own.sqlite"))
    use("enroll", "A", "0_0.flac", *store)
    done = use("identify", "0_0.flac", *store, "--model", "plain.safetensors")
    assert "enrolled by another model" in done.err
    use("enroll", "--remove", "A", *store)
    use("enroll", "A", "0_0.flac", *store, "--model", "plain.safetensors")
    told = use("identify", "0_0.flac", *store, "--model", "plain.safetensors").out
    assert told.startswith("no decision: the model has no threshold")
    assert "  A: score 1.0000\n" in told


def test_embeddings_are_written_for_other_programs(use, folder, tmp_path):
    files = [f"{speaker}_0.flac" for speaker in range(3)]
    expected = [Verifier.from_pretrained(folder / "model.safetensors").embed_file(folder / file) for file in files]
    done = use("embed", *files, "--output", str(tmp_path / "e.npz"))
    assert done.out == f"{tmp_path}/e.npz: 3 recordings, 16 numbers each\n"
    with np.load(tmp_path / "e.npz") as written:
        assert written["files"].tolist() == files
        assert np.array_equal(written["embeddings"], np.stack(expected))
        assert written["seconds"].tolist() == [1.0, 1.0, 1.0]
    use("embed", *files, "--output", str(tmp_path / "e.csv"))
    header, *rows = csv.reader((tmp_path / "e.csv").read_text().splitlines())
    assert header == ["file", "seconds", *(f"e{index}" for index in range(16))]
    assert [row[0] for row in rows] == files
    assert np.array_equal(np.array([row[2:] for row in rows], np.float32), np.stack(expected))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.csv", "e.npz"]


def test_recordings_that_cannot_be_embedded_are_named_and_the_others_written(use, tmp_path):
    done = use("embed", "0_0.flac", "absent.wav", "1_0.flac", "--output", str(tmp_path / "e.npz"))
    assert done.status == 2
    assert done.err.splitlines() == [
        "left out: absent.wav: No such file or directory",
        "error: 1 of 3 recordings could not be embedded",
    ]
    with np.load(tmp_path / "e.npz") as written:
        assert written["files"].tolist() == ["0_0.flac", "1_0.flac"]
    assert use("embed", "absent.wav", "--output", str(tmp_path / "none.npz")).status == 2
    assert not (tmp_path / "none.npz").exists()


def test_stopped_it_goes_on_where_it_was_and_knows_another_model_and_changed_recordings(
    use, folder, tmp_path, monkeypatch
):
    files, heard = ["0_0.flac", "changing.flac", "1_0.flac", "2_0.flac"], []
    shutil.copy(folder / "0_1.flac", folder / "changing.flac")
    whole, stop_at = Verifier.embed_recording, "1_0.flac"

    def hear(self, side, **more):
        if side.name == stop_at:
            signal.raise_signal(signal.SIGTERM)
        heard.append(side.name)
        return whole(self, side, **more)

    monkeypatch.setattr(Verifier, "embed_recording", hear)
    words = ("embed", *files, "--output", str(tmp_path / "e.npz"))
    assert use(*words).status == 128 + signal.SIGTERM
    assert not (tmp_path / "e.npz").exists()
    shutil.copy(folder / "1_1.flac", folder / "changing.flac")
    heard.clear()
    assert use(*words).status == 128 + signal.SIGTERM
    assert heard == ["changing.flac"]
    stop_at = "nothing"
    heard.clear()
    assert use(*words).status == 0
    assert heard == ["1_0.flac", "2_0.flac"]
    assert [path.name for path in tmp_path.iterdir()] == ["e.npz"]
    with np.load(tmp_path / "e.npz") as written:
        assert written["files"].tolist() == files


@pytest.mark.parametrize("ending", ["npz", "csv"])
def test_each_argument_has_a_row_in_its_place_and_each_recording_is_embedded_once(use, tmp_path, monkeypatch, ending):
    asked, embed_recording = [], Verifier.embed_recording
    monkeypatch.setattr(
        Verifier, "embed_recording", lambda self, side: asked.append(side.name) or embed_recording(self, side)
    )
    to = tmp_path / f"e.{ending}"
    files = ["0_0.flac", "absent.wav", "1_0.flac", "0_0.flac", "./1_0.flac", "absent.wav"]
    done = use("embed", *files, "--output", str(to))
    assert done.out == f"{to}: 4 recordings, 16 numbers each\n"
    assert done.err.splitlines() == [
        "left out: absent.wav: No such file or directory",
        "error: 2 of 6 recordings could not be embedded",
    ]
    assert asked == ["0_0.flac", "absent.wav", "1_0.flac"]
    if ending == "npz":
        with np.load(to) as written:
            names, rows = written["files"].tolist(), written["embeddings"].tolist()
    else:
        lines = list(csv.reader(to.read_text().splitlines()))[1:]
        names, rows = [line[0] for line in lines], [line[2:] for line in lines]
    assert names == ["0_0.flac", "1_0.flac", "0_0.flac", "1_0.flac"]
    assert rows[0] == rows[2] != rows[1] == rows[3]


def test_files_whose_names_are_not_utf_8_are_embedded_and_named(use, folder, tmp_path):
    recording, absent = (tmp_path / os.fsdecode(name) for name in (b"b\xffd.flac", b"absent\xff.flac"))
    shutil.copy(folder / "0_0.flac", recording)
    done = use("embed", str(recording), str(absent), "--output", str(tmp_path / "e.npz"))
    assert done.err.startswith(f"left out: {tmp_path}/absent\\xff.flac: No such file or directory\n")
    with np.load(tmp_path / "e.npz") as written:
        assert [Path(name) for name in written["files"].tolist()] == [recording]
    to = tmp_path / os.fsdecode(b"e\xff.csv")
    assert use("embed", str(recording), "--output", str(to)).out.startswith(f"{tmp_path}/e\\xff.csv: 1 recording, ")
    assert to.read_text(encoding="utf-8").splitlines()[1].startswith(f"{tmp_path}/b\\xffd.flac,")
    assert use("verify", str(recording), "1_0.flac").status == 0
    assert "a speaker's name must be one line" in use("enroll", os.fsdecode(b"\xff"), str(recording)).err
    assert use("enroll", "--remove", os.fsdecode(b"\xff")).err.endswith("nobody is enrolled as \\xff\n")


def test_what_an_earlier_attempt_left_is_not_trusted_when_it_is_damaged(use, tmp_path):
    partial = tmp_path / ".e.npz.partial.npz"
    for content in (b"damaged", b"", b"PK\x03\x04 cut off"):
        partial.write_bytes(content)
        assert use("embed", "0_0.flac", "--output", str(tmp_path / "e.npz")).status == 0
        assert not partial.exists()


def test_a_folder_that_cannot_be_written_is_named(use):
    done = use("enroll", "A", "0_0.flac", "--database", "/proc/absent/speakers.sqlite")
    assert done.status == 2
    assert "/proc/absent" in done.err


def test_the_program_itself_verifies(folder):
    words = [
        sys.executable,
        "-m",
        "sv_sparse.commands.main",
        "verify",
        "0_0.flac",
        "0_1.flac",
        "--model",
        "model.safetensors",
    ]
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, check=False, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert "log-likelihood ratio" in done.stdout


def test_a_reader_that_goes_away_ends_no_command_with_a_message(folder):
    reading, writing = os.pipe()
    os.close(reading)
    words = [
        sys.executable,
        "-m",
        "sv_sparse.commands.main",
        "verify",
        "0_0.flac",
        "0_1.flac",
        "--model",
        "model.safetensors",
    ]
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, cwd=folder, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("probability", "told"),
    [(0.98694, "= 98.7 %"), (0.99998, "> 99.9 %"), (0.00002, "< 0.1 %"), (0.999, "= 99.9 %")],
)
def test_a_probability_is_never_printed_as_certainty(probability, told):
    verification = Verification(0.5, 1.0, probability, 0.5, None, None, None, 0.1)
    assert describe_probability(verification) == f"P(same speaker) {told} (prior 50 %)"


def test_evidence_that_is_below_the_threshold_is_not_printed_as_the_same_number():
    def first_line(evidence: float, threshold: float) -> str:
        verification = Verification(evidence, None, None, 0.5, threshold, None, evidence >= threshold, 0.1)
        return describe_decision(verification).splitlines()[0]

    assert first_line(3.0891, 3.0912) == "not accepted: score 3.089 is below the threshold 3.091"
    assert first_line(3.05, 3.09) == "not accepted: score 3.05 is below the threshold 3.09"
    assert first_line(3.0912, 3.0891) == "accepted: score 3.09 reaches the threshold 3.09"


def test_a_folder_is_embedded_with_its_subfolders_and_what_is_no_recording_is_left_out(use, folder, tmp_path):
    corpus = tmp_path / "corpus"
    (corpus / "deep" / "er").mkdir(parents=True)
    for source, target in (("0_0.flac", "b.flac"), ("1_0.flac", "a.flac"), ("2_0.flac", "deep/er/c")):
        shutil.copy(folder / source, corpus / target)
    (corpus / "notes.txt").write_text("no recording")
    (corpus / "._a.wav").write_bytes(b"of another program")
    done = use("embed", str(corpus), "1_1.flac", "--output", str(tmp_path / "e.npz"))
    assert (done.status, done.err) == (0, "")
    with np.load(tmp_path / "e.npz") as written:
        names = [*(f"{corpus}/{name}" for name in ("a.flac", "b.flac", "deep/er/c")), "1_1.flac"]
        assert written["files"].tolist() == names
    (corpus / "talk it.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    (corpus / "broken.wav").write_bytes(b"RIFF")
    done = use("embed", str(corpus), "--output", str(tmp_path / "e.npz"))
    assert done.status == 2
    broken, m4a, error = done.err.splitlines()
    assert broken.startswith(f"left out: {corpus}/broken.wav: cannot be read as a recording")
    remedy = f"convert it: ffmpeg -i '{corpus}/talk it.m4a' '{corpus}/talk it.flac'"
    assert m4a == f"left out: {corpus}/talk it.m4a: is of a format that is not read here; {remedy}"
    assert error == "error: 2 of 5 recordings could not be embedded"
    with np.load(tmp_path / "e.npz") as written:
        assert written["files"].tolist() == names[:3]


def test_a_search_of_a_folder_follows_links_and_leaves_out_what_is_hidden(use, folder, tmp_path, caplog):
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    for target in (corpus / "a.flac", corpus / ".git" / "x.flac", corpus / "made" / "y.flac", elsewhere / "b.flac"):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "0_0.flac", target)
    (corpus / "made" / "made_from.tsv").touch()
    (corpus / "linked").symlink_to(elsewhere)
    done = use("embed", str(corpus), "--output", str(tmp_path / "e.npz"))
    assert done.status == 0
    with np.load(tmp_path / "e.npz") as written:
        assert written["files"].tolist() == [f"{corpus}/a.flac", f"{corpus}/linked/b.flac"]
    assert f"left out, made by sv-sparse prepare: {corpus}/made" in caplog.text


def test_a_folder_without_recordings_is_named(use, tmp_path):
    (tmp_path / "notes.txt").write_text("no recording")
    done = use("embed", str(tmp_path), "--output", str(tmp_path / "e.npz"))
    assert (done.status, done.err) == (2, f"error: {tmp_path}: there are no recordings in this folder\n")


def test_autotune_prints_one_line_and_the_layers_only_if_asked(use):
    (line,) = use("autotune", "--threads", "1").out.splitlines()
    assert re.fullmatch(
        r"[\d.]+ ms before, [\d.]+ ms after, for 3 s of speech by 1 thread: \d+ layers sparse, \d+ dense", line
    )
    *layers, plan, last = use("autotune", "--threads", "1", "--verbose").out.splitlines()
    counts = re.search(r"(\d+) layers sparse, (\d+) dense$", last)
    assert counts is not None
    assert len(layers) == sum(map(int, counts.groups()))
    assert plan.startswith("plan: ")
