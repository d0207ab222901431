from pathlib import Path

import torch

from workers.training.states import STATE_FILE, FileStates


def make_states(folder: Path, key: str = "a", every_seconds: float = 0.0) -> FileStates:
    return FileStates(folder / "kept", key, every_seconds=every_seconds)


def test_what_was_saved_last_is_loaded(tmp_path: Path) -> None:
    states = make_states(tmp_path)
    assert states.load() is None
    states.save({"step": 1, "weights": {"a": torch.ones(2)}})
    states.save({"step": 2, "weights": {"a": torch.tensor([0.1, -0.0])}})
    found = make_states(tmp_path).load()
    assert found is not None
    assert found["step"] == 2
    assert torch.equal(found["weights"]["a"], torch.tensor([0.1, -0.0]))
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [STATE_FILE]


def test_the_state_of_another_training_is_not_taken(tmp_path: Path) -> None:
    make_states(tmp_path).save({"step": 1})
    assert make_states(tmp_path, key="b").load() is None


def test_a_torn_file_is_as_good_as_none(tmp_path: Path) -> None:
    make_states(tmp_path).save({"weights": torch.ones(1000)})
    path = tmp_path / "kept" / STATE_FILE
    path.write_bytes(path.read_bytes()[:1000])
    assert make_states(tmp_path).load() is None
    path.write_bytes(b"")
    assert make_states(tmp_path).load() is None


def test_states_are_due_after_a_while(tmp_path: Path) -> None:
    assert make_states(tmp_path).is_due()
    assert not make_states(tmp_path, every_seconds=60).is_due()
