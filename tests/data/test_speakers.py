"""Laws of what is known of speakers: published tables are read as they are, and follow a corpus through preparation."""

import numpy as np
import pytest
from helpers import trees

from sv_sparse.data.corpora.voxceleb import prepare_voxceleb
from sv_sparse.data.prepared import load_trial_sets
from sv_sparse.data.speakers import format_sexes, read_sexes
from sv_sparse.data.trial_files import trial_sets_from_files
from sv_sparse.data.trial_set import TrialSet
from sv_sparse.data.trials import Trials

VOX1 = "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\nid10001\tX\tm\tIreland\tdev\nid10270\tY\tf\tUSA\ttest\n"
VOX2 = "VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set \nid00012 ,n000012 ,m ,dev \nid00017 ,n000017 ,f ,test \n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (VOX1, {"id10001": "m", "id10270": "f"}),
        (VOX2, {"id00012": "m", "id00017": "f"}),
        ("speaker,gender,age\na,Female,\nb,u,3\nc,male,7\n\n", {"a": "f", "c": "m"}),
        ("sex,speaker\r\nf,x\r\n", {"x": "f"}),
    ],
)
def test_tables_of_speakers_are_read_as_they_are_published(tmp_path, text, expected):
    (tmp_path / "table.csv").write_text(text)
    assert read_sexes(tmp_path / "table.csv") == expected


def test_a_table_that_was_written_is_read_back(tmp_path):
    (tmp_path / "table.csv").write_text(format_sexes({"b": "m", "a": "f"}))
    assert read_sexes(tmp_path / "table.csv") == {"a": "f", "b": "m"}


@pytest.mark.parametrize("text", ["", "name,colour\nx,y\n", "speaker,age\nx,3\n"])
def test_a_table_without_speakers_or_sexes_is_refused(tmp_path, text):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ValueError, match=r"table\.csv: expected columns 'speaker' and 'sex'"):
        read_sexes(tmp_path / "table.csv")


def test_a_prepared_corpus_knows_the_sexes_of_those_it_is_judged_by(tmp_path):
    trees.released(tmp_path / "vox")
    trees.write_vox_lists(tmp_path / "lists")
    (tmp_path / "lists" / "vox1_meta.csv").write_text(VOX1)
    (tmp_path / "vox" / "vox2_meta.csv").write_text(VOX2)
    prepare_voxceleb([tmp_path / "vox"], tmp_path / "out", lists=[tmp_path / "lists"], allow_partial=True)
    assert read_sexes(tmp_path / "out" / "speakers.csv") == {
        "id10001": "m",
        "id10270": "f",
        "id00012": "m",
        "id00017": "f",
    }
    (one,) = load_trial_sets(tmp_path / "out", ["vox1_O_cleaned"])
    known = dict(zip(one.speakers, one.sexes, strict=True))
    assert known["id10270"] == "f"
    assert known["id10309"] == ""


def test_a_table_knows_speakers_whose_names_it_composes_otherwise(tmp_path, record, tabulate):
    """As macOS and a spreadsheet do; other characters that end lines elsewhere belong to a name."""
    speakers = {"Jose\u0301": "m", "Zoe\u0308": "f", "a\u2028b": "f"}
    table = "speaker,sex\nJos\u00e9,m\nZoe\u0308,f\na\u2028b,f\n"
    (tmp_path / "table.csv").write_text(table, encoding="utf-8")
    sexes = read_sexes(tmp_path / "table.csv")
    keys = [f"{speaker}/s/1.wav" for speaker in speakers]
    manifest = tabulate(tmp_path, [record(tmp_path / key) for key in keys])
    trials = Trials("mine", np.array([True, False, False]), np.array([0, 1, 2]), np.array([0, 0, 1]), keys)
    assert TrialSet.from_manifest(trials, manifest, sexes).sexes == list(speakers.values())
    lines = "".join(f"{int(left == right)}\t{left}\t{right}\n" for left in keys for right in keys)
    (tmp_path / "mine.txt").write_text(lines, encoding="utf-8")
    (one,) = trial_sets_from_files(tmp_path, [tmp_path / "mine.txt"], sexes)
    assert one.sexes == list(speakers.values())
