"""The evidence: every sweep is one that the settings allow, and the tables say what the runs say."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from evidence import corpus, tables
from helpers.tiny import ROOT, Tones

from sv_sparse.config.overrides import check_command_line
from sv_sparse.config.schema import register_schema
from sv_sparse.data.noise import build_noise_store

PATHS = ["--root", "/wav", "--trials", "a.txt b.txt", "--train-utterances", "/train.txt"]
PATHS += ["--foreign-utterances", "/foreign.txt", "--noise", "/musan /rirs", "--weights", "/weights.pt"]


def run_script(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["sh", str(ROOT / "recipes" / "evidence" / "run.sh"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd="/")


def test_every_sweep_is_one_that_the_settings_allow():
    finished = run_script("--dry-run", *PATHS, "trainer.precision=bf16")
    assert finished.returncode == 0, finished.stderr
    commands = [shlex.split(line) for line in finished.stdout.splitlines()]
    runs = [command[2:] for command in commands if command[1] == "train.py"]
    sweeps = [settings[1:] for settings in runs if settings[0] == "-m"]
    single_runs = [settings for settings in runs if settings[0] != "-m"]
    assert len(sweeps) > 25
    assert len(single_runs) > 20
    register_schema()
    for settings in sweeps + single_runs:
        check_command_line(settings)
    scripts = {command[1] for command in commands if command[0] == "python"} - {"train.py"}
    assert scripts == {f"recipes/evidence/{name}.py" for name in ("corpus", "tables")} | {
        "scripts/benchmark/runtime.py"
    }
    assert all((ROOT / script).is_file() for script in scripts)


def test_the_tables_read_every_run_name_of_the_script(finished, tmp_path):
    """Here every run is a copy of the same one."""
    printed = run_script("--dry-run", *PATHS).stdout
    for template in re.findall(r"run_dir=runs/evidence/runs/([^']+)'", printed):
        name = re.sub(r"\$\{(target_sparsity|optim\.[\w.]+)\}", "0.9", template).replace("${seed}", "0")
        if not (tmp_path / name).exists():
            shutil.copytree(finished, tmp_path / name)
    groups = tables.load_groups(tmp_path)
    trial_lists = tables.trial_lists_of(groups)
    for question, make_table in tables.TABLES.items():
        table = make_table(groups, trial_lists)
        assert bool(table.rows) == (question != "noise"), question  # on which this run was not evaluated
        assert {len(row) for row in table.rows} <= {len(table.headers)}, question
    runtime = tmp_path / "runtime.json"
    rows = [{"run": f"{name}_s0", "ms": {"ours": 1.0}, "fp32_bytes": 1000} for name in ("dense", "narrow_64")]
    runtime.write_text(json.dumps({"latency": rows, "files": rows}))
    structure = tables.structure_table(groups, trial_lists, runtime)
    assert [row[0] for row in structure.rows] == ["dense, Adam", "dense, 64 channels"]
    out = tmp_path / "tables"
    command = [sys.executable, str(ROOT / "recipes" / "evidence" / "tables.py"), str(tmp_path), "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, cwd="/")
    pages = {path.stem for path in out.glob("*.md")}
    assert pages == set(tables.TABLES) - {"noise"}
    assert str(tmp_path) not in "".join(path.read_text() for path in out.glob("*.md"))
    assert "dense_s0,1," in (out / "epochs.csv").read_text()


def test_groups_are_averaged_and_compared_on_the_same_trials(finished, tmp_path):
    for name, seed, shift in (("dense_s0", 0, 0.0), ("dense_s1", 1, 0.1), ("feedback_0.9_s0", 0, 0.04)):
        shutil.copytree(finished, tmp_path / name)
        path = tmp_path / name / "results.json"
        results = json.loads(path.read_text())
        results["seed"] = seed
        for evaluation in results["evaluations"].values():
            evaluation["eer"] = 0.2 + shift
        path.write_text(json.dumps(results))
    groups = tables.load_groups(tmp_path)
    dense, feedback = groups["dense"], groups["feedback_0.9"]
    (trial_list,) = tables.trial_lists_of(groups)
    assert dense.eer(trial_list) == pytest.approx(0.25)
    assert feedback.difference(dense, trial_list).startswith("+4.00")  # to seed 0, which both have
    assert dense.difference(dense, trial_list) == tables.DASH
    assert dense.with_seeds([1]).difference(feedback, trial_list) == tables.DASH
    feedback.runs[0].evaluations[trial_list]["checksum"] = "another"
    with pytest.raises(ValueError, match="different trials"):
        feedback.difference(dense, trial_list)
    config = tmp_path / "dense_s1" / "config.yaml"
    config.write_text(config.read_text().replace("target_sparsity: 0.8", "target_sparsity: 0.7"))
    with pytest.raises(ValueError, match="differ in target_sparsity, not in the seed alone"):
        tables.load_groups(tmp_path)


def test_without_finished_runs_the_tables_say_so(tmp_path):
    command = [sys.executable, str(ROOT / "recipes" / "evidence" / "tables.py"), str(tmp_path), "--out", str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no finished run" in done.stderr


def test_the_step_from_which_a_run_is_in_its_band_counts_every_later_step():
    errors = [0.1, 0.004, 0.006, -0.004, 0.0]
    rows = [{"loss": 1.0, "step": 10 * k, "sparsity/regularized": 0.9 + error} for k, error in enumerate(errors)]
    run = tables.Run(Path("run"), {"target_sparsity": 0.9}, {})
    vars(run)["rows"] = rows
    assert run.steps_in_band() == "10, stays from 30"
    vars(run)["rows"] = rows[:1]
    assert run.steps_in_band() == tables.DASH


def test_noise_has_its_level_and_is_the_same_every_time(tones: Tones, tmp_path):
    generator = np.random.default_rng(0)
    for kind in ("noise", "music", "speech", "simulated_rirs"):
        (tmp_path / "noise" / kind).mkdir(parents=True)
        fade = np.exp(-np.arange(8000) / 500) if kind == "simulated_rirs" else 1.0
        soundfile.write(tmp_path / "noise" / kind / "0.wav", 0.1 * generator.normal(size=8000) * fade, 16000)
    build_noise_store([tmp_path / "noise"], tmp_path / "store")
    for out in ("first", "second"):
        corpus.write_noisy_trials(tones.root, [tones.trials], tmp_path / "store", tmp_path / out)
    name = tones.trials.read_text().split()[1]
    clean, _ = soundfile.read(tones.root / name)
    for kind, snr in corpus.CONDITIONS:
        condition = kind if snr is None else f"{kind}_{snr}dB"
        assert condition in tables.NOISE_CONDITIONS
        noisy, _ = soundfile.read(tmp_path / "first" / condition / "wav" / name)
        assert (noisy == soundfile.read(tmp_path / "second" / condition / "wav" / name)[0]).all()
        if snr is not None:
            ratio = 10 * np.log10(np.sum(clean**2) / np.sum((noisy - clean) ** 2))
            assert ratio == pytest.approx(snr, abs=0.1)
        assert (tmp_path / "first" / condition / f"{tones.trials.stem}_{condition}.txt").is_file()


def test_a_subset_has_as_many_lines_as_the_other_list_and_complete_speakers_first(tmp_path):
    (tmp_path / "train.txt").write_text("".join(f"s{k % 4} s{k % 4}/{k}.wav\n" for k in range(40)))
    (tmp_path / "other.txt").write_text("x x.wav\n" * 25)
    corpus.write_subset(tmp_path / "train.txt", tmp_path / "other.txt", tmp_path / "out.txt")
    speakers = [line.split()[0] for line in (tmp_path / "out.txt").read_text().splitlines()]
    assert len(speakers) == 25
    assert sorted(map(speakers.count, set(speakers))) == [5, 10, 10]
