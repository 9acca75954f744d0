"""Laws of what is drawn while a run trains."""

import time

from sv_sparse.monitor import Monitor


def test_what_a_process_draws_comes_after_what_another_one_drew_in_the_same_second(tmp_path):
    folder = tmp_path / "tensorboard"
    folder.mkdir()
    time.sleep(1 - time.time() % 1)  # into the beginning of a second
    earlier = folder / f"events.out.tfevents.{int(time.time())}.zzz.1.0"
    earlier.touch()
    Monitor(tmp_path, 0, 0).close()
    first, second = sorted(folder.iterdir())
    assert first == earlier
    assert second != earlier
