"""Files of weights that are damaged, or of another network than the chosen one."""

import io
import random
from types import SimpleNamespace

import pytest
import torch
from helpers.tiny import TINY

from sv_sparse.training.init_from import load_init_source

STATE = {f"layer{i}.weight": torch.zeros(4, 3) for i in range(6)}


def saved(*, old_format: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(STATE, buffer, _use_new_zipfile_serialization=not old_format)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("old_format", [False, True])
def test_a_file_that_was_cut_off_or_changed_is_refused_by_name(old_format, tmp_path):
    whole, path, chance = saved(old_format=old_format), tmp_path / "weights.pt", random.Random(0)
    damaged = [whole[: chance.randrange(len(whole))] for _ in range(150)]
    for _ in range(300):
        changed = bytearray(whole)
        for place in chance.choices(range(600), k=3):
            changed[place] = chance.randrange(256)
        damaged.append(bytes(changed))
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"^init_from={path}: "):
            load_init_source(SimpleNamespace(init_from=str(path), model_settings={}))


def test_a_network_of_another_class_is_refused_with_what_the_file_holds(train, finished, tones):
    done = train("model=resnet34", *TINY[6:], *tones.settings(), f"init_from={finished}")
    assert done.status == 2
    assert f"init_from={finished}: its network is ecapa with model.channels=16, " in done.err
