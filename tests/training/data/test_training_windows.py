"""Windows, their order, and going on in it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from training_texts import chat, data_tokenizer, write_lines

from bitnet_onnx.errors import InputError
from bitnet_onnx.training.data import TokenStream, TrainingData, open_data
from bitnet_onnx.training.settings import IGNORED, DataSettings

TEXT = "".join(f"{index} line\n" for index in range(300))


def opened(tmp_path: Path, *, seed: int = 1, text: str = TEXT, rank: int = 0, size: int = 1) -> TrainingData:
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text("the end of all\n" * 20)
    settings = DataSettings((tmp_path / "a.txt", tmp_path / "b.txt"), holdout=0.2, length=16)
    return open_data(settings, data_tokenizer(), seed=seed, rank=rank, size=size, cache=tmp_path / "cache")


def test_an_epoch_has_every_window_once_and_labels_are_the_next_tokens(tmp_path: Path) -> None:
    stream = opened(tmp_path).train
    count = len(stream.windows)
    windows = stream.windows
    whole = np.concatenate([file.ids(0, file.counts.tokens) for file in windows.files])
    assert count == (len(whole) - 1) // 16
    batch = stream.next(count)
    ordered = windows.batch(np.arange(count))
    assert np.array_equal(ordered.input_ids.ravel(), whole[: count * 16])
    assert np.array_equal(ordered.labels.ravel(), whole[1 : count * 16 + 1])
    assert sorted(row.tobytes() for row in batch.labels) == sorted(row.tobytes() for row in ordered.labels)
    assert not np.array_equal(batch.labels, ordered.labels)
    assert not np.array_equal(stream.next(count).labels, batch.labels)
    assert (batch.input_ids.dtype, batch.labels.dtype, batch.labels.shape) == (np.int64, np.int64, (count, 16))
    assert stream.epoch == 2.0


def test_the_order_is_that_of_the_seed(tmp_path: Path) -> None:
    first, again, other = (opened(tmp_path, seed=seed).train.next(8).input_ids for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_window_across_files_has_the_end_of_the_first_in_it(tmp_path: Path) -> None:
    stream = opened(tmp_path).train
    tokenizer = data_tokenizer()
    ids = stream.windows.batch(np.arange(len(stream.windows))).labels.ravel()
    (place,) = np.flatnonzero(ids == tokenizer.end)
    assert tokenizer.text.decode(ids[place - 5 : place].tolist()) == "line\n"
    assert tokenizer.text.decode(ids[place + 1 : place + 8].tolist()) == "the end"


@pytest.mark.parametrize("steps", [0, 3, 50])
def test_a_restored_stream_goes_on_exactly(tmp_path: Path, steps: int) -> None:
    stream = opened(tmp_path).train
    for _ in range(steps):
        stream.next(6)
    state = json.loads(json.dumps(stream.state()))
    expected = [stream.next(6).input_ids for _ in range(20)]
    other = opened(tmp_path).train
    other.next(2)
    other.restore(state)
    assert other.epoch == steps * 6 / len(stream.windows)
    assert all(np.array_equal(other.next(6).input_ids, one) for one in expected)


def test_workers_together_see_what_one_would(tmp_path: Path) -> None:
    one = opened(tmp_path).train
    two = [opened(tmp_path, rank=rank, size=2).train for rank in range(2)]
    for _ in range(len(one.windows) // 3):  # beyond the end of an epoch
        whole = one.next(6)
        parts = [stream.next(6) for stream in two]
        assert np.array_equal(whole.input_ids, np.concatenate([part.input_ids for part in parts]))
        assert np.array_equal(whole.labels, np.concatenate([part.labels for part in parts]))
    assert one.epoch > 1
    assert two[0].state() == two[1].state() == one.state()
    with pytest.raises(InputError, match="a batch of 5 windows cannot be divided among 2 workers"):
        two[0].next(5)


def test_a_state_of_other_data_is_refused_by_name(tmp_path: Path) -> None:
    state = opened(tmp_path).train.state()
    with pytest.raises(InputError, match=r"a\.txt: not the data of the saved position, which is of 'a\.txt'"):
        opened(tmp_path, text=TEXT.replace("7", "8")).train.restore(state)
    stream = opened(tmp_path).train
    for change, said in [
        ({"seed": 2}, "with seed 2, this run has 1"),
        ({"length": 8}, "with length 8, this run has 16"),
        ({"taken": -1}, "is -1, expected a number of windows"),
        ({"taken": True}, "is True, expected"),
        ({"files": []}, "of 0 files of data, this run has 2"),
        ({"files": 3}, "names no files"),
        ({"more": 3}, "has the fields"),
    ]:
        with pytest.raises(InputError, match=said):
            stream.restore({**state, **change})
    stream.restore(state)


def test_validation_has_nothing_of_what_is_trained_on(tmp_path: Path) -> None:
    data = opened(tmp_path)
    assert data.validation is not None
    tokenizer = data_tokenizer()
    texts = []
    for windows in (data.train.windows, data.validation.windows):
        ids = [tokenizer.text.decode(file.ids(0, file.counts.tokens).tolist()) for file in windows.files]
        texts.append(ids)
    assert texts[0][0] + texts[1][0] == TEXT
    assert texts[0][0].endswith("\n")
    assert 0.7 < len(texts[0][0]) / len(TEXT) < 0.85


def test_validation_windows_are_the_same_stratified_and_shared(tmp_path: Path) -> None:
    data = opened(tmp_path)
    assert data.validation is not None
    count = len(data.validation.windows)
    batches = list(data.validation.batches(4, limit=10))
    assert [len(one.labels) for one in batches] == [4, 4, 2]
    got = np.concatenate([one.labels for one in batches])
    assert np.array_equal(got, data.validation.windows.batch((2 * np.arange(10) + 1) * count // 20).labels)
    workers = [opened(tmp_path, rank=rank, size=3).validation for rank in range(3)]
    shared = [one.labels for worker in workers if worker is not None for one in worker.batches(4, limit=10)]
    assert np.array_equal(np.concatenate(shared), got)
    assert sum(len(one.labels) for one in data.validation.batches(4, limit=10**6)) == count


def test_windows_without_an_answer_are_left_out(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", [chat("long question " * 20, f"answer {index}") for index in range(5)])
    data = open_data(DataSettings((path,), length=32), data_tokenizer(), seed=0, cache=tmp_path / "cache")
    windows = data.train.windows
    assert len(windows) < windows.counts.tokens // 32 // 2
    labels = windows.batch(np.arange(len(windows))).labels
    assert (labels != IGNORED).any(axis=1).all()
    file = windows.files[0]
    assert int((labels != IGNORED).sum()) == int(file.learned(1, (file.counts.tokens - 1) // 32 * 32 + 1).sum()) > 0


def test_windows_begin_as_texts_do(tmp_path: Path) -> None:
    tokenizer = data_tokenizer(add_bos_token=True, bos_token="<|im_start|>")
    path = write_lines(tmp_path / "c.jsonl", [{"text": f"text {index}"} for index in range(30)])
    stream = open_data(DataSettings((path,), length=10), tokenizer, seed=0, cache=tmp_path / "cache").train
    assert isinstance(stream, TokenStream)
    windows = stream.windows
    file = windows.files[0]
    whole = file.ids(0, file.counts.tokens)
    batch = windows.batch(np.arange(len(windows)))
    assert (batch.input_ids[:, 0] == tokenizer.text.bos_id).all()
    learned = np.where(whole == tokenizer.text.bos_id, IGNORED, whole)[: len(windows) * 10]
    assert np.array_equal(batch.labels.ravel(), learned)
    assert np.array_equal(batch.input_ids[:, 1:], whole[: len(windows) * 10].reshape(-1, 10)[:, :-1])


def test_too_little_for_a_window(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("few")
    with pytest.raises(InputError, match=r"a\.txt: 4 tokens, 4 of them learned, give no training window of 256"):
        open_data(DataSettings((tmp_path / "a.txt",)), data_tokenizer(), seed=0, cache=tmp_path)
