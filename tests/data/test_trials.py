import re

import numpy as np
import pytest

from sv_sparse.data.trials import Trials, read_trials, write_trials

TWO = "1 a/s/1.wav a/s/2.wav\n0 a/s/1.wav b/s/1.wav\n"


def test_a_list_reads_as_labels_and_indices_into_its_distinct_utterances(tmp_path):
    path = tmp_path / "veri_test.txt"
    path.write_text(TWO)
    trials = read_trials(path)
    assert trials.name == "veri_test"
    assert len(trials) == 2
    assert trials.is_target.tolist() == [True, False]
    assert trials.utterances == ["a/s/1.wav", "a/s/2.wav", "b/s/1.wav"]
    assert trials.enrollment.tolist() == [0, 0]
    assert trials.test.tolist() == [1, 2]


def test_line_ends_tabs_blank_lines_and_a_byte_order_mark_do_not_matter(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbf\r\n" + TWO.replace(" ", "\t").replace("\n", "\r\n\r\n").encode())
    assert read_trials(path).utterances == ["a/s/1.wav", "a/s/2.wav", "b/s/1.wav"]


def test_between_tabs_names_may_have_spaces_and_are_written_so(tmp_path):
    path = tmp_path / "list.txt"
    write_trials(path, [True, False], ["a a/1.wav", "a a/1.wav"], ["b\u2028b.wav", "c.wav"])
    trials = read_trials(path)
    assert trials.utterances == ["a a/1.wav", "b\u2028b.wav", "c.wav"]
    assert trials.test.tolist() == [1, 2]


@pytest.mark.parametrize("space", [" ", "\u3000", "\u00a0", "\u2028", "\u0085", "\x1c", "\x0b"])
def test_names_with_any_space_of_unicode_are_written_so_that_they_are_read_back(tmp_path, space):
    path = tmp_path / "list.txt"
    write_trials(path, [True, False], [f"a{space}a/1.wav", "b.wav"], ["b.wav", "c.wav"])
    assert read_trials(path).utterances == [f"a{space}a/1.wav", "b.wav", "c.wav"]


@pytest.mark.parametrize("name", ["a\tb.wav", "a\nb.wav", "a\rb.wav", " a.wav", "a.wav\u3000", ""])
def test_a_name_that_could_not_be_read_back_is_refused_and_nothing_is_written(tmp_path, name):
    with pytest.raises(ValueError, match=f"^{re.escape(repr(name))}: expected a name without tabs and ends of lines"):
        write_trials(tmp_path / "list.txt", [True, False], ["b.wav", "b.wav"], ["b.wav", name])
    assert not list(tmp_path.iterdir())


def test_what_is_written_reads_back(tmp_path):
    path = tmp_path / "list.txt"
    write_trials(path, [True, False], ["a/s/1.wav", "a/s/1.wav"], ["a/s/2.wav", "b/s/1.wav"])
    assert path.read_text() == TWO
    assert read_trials(path).is_target.tolist() == [True, False]


def test_writing_sides_of_different_lengths_is_refused(tmp_path):
    with pytest.raises(ValueError, match="shorter"):
        write_trials(tmp_path / "list.txt", [True, False], ["a", "b"], ["c"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", ["2 a b", "1 a", "1 a b c", "a/s/1.wav a/s/2.wav 1", "True a b"])
def test_a_line_in_another_format_is_named_with_file_number_and_text(tmp_path, line):
    path = tmp_path / "list.txt"
    path.write_text(f"{TWO}\n{line}\n")
    with pytest.raises(ValueError, match=f"list.txt, line 4: .*label of 0 or 1.*got '{line}'"):
        read_trials(path)


@pytest.mark.parametrize(
    ("text", "found"),
    [("", "0 targets and 0"), ("1 a b\n", "1 targets and 0"), ("0 a b\n0 a c\n", "0 targets and 2")],
)
def test_a_list_without_targets_or_nontargets_is_refused(tmp_path, text, found):
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"list.txt: .*found {found} nontargets"):
        read_trials(path)


def test_a_file_that_is_no_text_is_refused_by_name(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ValueError, match=r"list.txt: expected a text file"):
        read_trials(path)


def test_a_long_list_is_read_in_its_order(tmp_path):
    path = tmp_path / "list_test_all.txt"
    rng = np.random.default_rng(0)
    names = [f"id{speaker:05d}/abcdefghijk/{number:05d}.wav" for speaker in range(251) for number in range(100)]
    left, right = rng.integers(len(names), size=(2, 58_000))
    write_trials(path, (np.arange(58_000) % 2).tolist(), [names[i] for i in left], [names[i] for i in right])
    trials = read_trials(path)
    assert len(trials) == 58_000
    assert trials.utterances[trials.test[-1]] == names[right[-1]]


def test_a_list_without_some_utterances_is_as_if_their_trials_had_never_been_in_it(tmp_path):
    lines = ["1 a/1 a/2", "0 a/1 b/1", "1 b/2 b/1", "0 c/1 b/1", "0 a/2 c/1"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    rest, rows = read_trials(tmp_path / "list.txt").without([1])  # a/2
    (tmp_path / "rest" / "list.txt").parent.mkdir()
    (tmp_path / "rest" / "list.txt").write_text("\n".join(lines[1:4]))
    expected = read_trials(tmp_path / "rest" / "list.txt")
    assert [(rest.sides[e], rest.sides[t]) for e, t in zip(rest.enrollment, rest.test, strict=True)] == [
        ("a/1", "b/1"),
        ("b/2", "b/1"),
        ("c/1", "b/1"),
    ]
    assert rest.is_target.tolist() == expected.is_target.tolist()
    assert (rest.name, sorted(rest.utterances)) == ("list", sorted(expected.utterances))
    assert [["a/1", "a/2", "b/1", "b/2", "c/1"][row] for row in rows] == rest.utterances


def test_enrollments_keep_the_utterances_that_can_be_used_and_lose_their_trials_with_the_last():
    models = {"m0": [0, 1], "m1": [2, 3], "m2": [4]}
    is_target = np.array([True, False, True, False])
    complete = Trials("list", is_target, np.array([6, 7, 8, 0]), np.array([5, 5, 5, 5]), list("abcdef"), models)
    rest, rows = complete.without([1, 2, 3])
    assert rows.tolist() == [0, 4, 5]
    assert rest.utterances == ["a", "e", "f"]
    assert rest.models == {"m0": [0], "m2": [1]}
    assert [(rest.sides[e], rest.sides[t]) for e, t in zip(rest.enrollment, rest.test, strict=True)] == [
        ("m0", "f"),
        ("m2", "f"),
        ("a", "f"),
    ]
    assert rest.is_target.tolist() == [True, True, False]
    fewer, _ = complete.without([1])
    assert len(fewer) == len(complete)
    assert fewer.checksum != complete.checksum  # an average of other utterances is another enrollment
