"""Laws of the names of trial lists."""

import pytest

from sv_sparse.evaluation.trial_sets import expand_aliases


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("voxceleb1-o", ["vox1_O_cleaned"]),
        ("voxceleb1-o,e,h", ["vox1_O_cleaned", "vox1_E_cleaned", "vox1_H_cleaned"]),
        ("voxceleb1-h,vox1_O,e", ["vox1_H_cleaned", "vox1_O", "e"]),
        ("cnceleb", ["cnceleb_average", "cnceleb_concatenated"]),
        ("o,cnceleb_average", ["o", "cnceleb_average"]),
    ],
)
def test_the_usual_lists_have_short_names_and_others_are_called_as_they_are(names, expected):
    assert list(expand_aliases(names)) == expected


def test_a_missing_name_is_an_error():
    with pytest.raises(ValueError, match="expected PREPARED:LIST"):
        list(expand_aliases("cnceleb,"))
