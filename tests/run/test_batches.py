from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from hnf_offline.errors import InputError
from hnf_offline.run.batches import describe, find_batches, load_rows, passed_over
from hnf_offline.run.manifest import Manifest

TOKENS = (np.arange(24 * 5).reshape(24, 5) * 7 % 251).astype(np.uint8)
LABELS = np.arange(24).astype(np.int32)


def stored(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(arrays, path)
    else:
        (np.savez_compressed if "packed" in path.name else np.savez)(path, **arrays)
    return path


@pytest.mark.parametrize("name", ["batches.safetensors", "batches.npz", "packed_batches.npz"])
def test_rows_come_in_the_order_asked_for(tmp_path: Path, name: str) -> None:
    file = stored(tmp_path / name, {"tokens": TOKENS, "labels": LABELS, "other": np.ones(3)})
    batches = find_batches(tmp_path, last_steps=[12])
    assert batches is not None and (batches.path, batches.rows, batches.length) == (file, 24, 5)
    assert batches.rows_per_step == 2 and list(batches.rows_of_step(12)) == [22, 23]
    tokens, labels = load_rows(batches, [7, 0, 7, 23])
    assert tokens.dtype == torch.int64 and np.array_equal(tokens, TOKENS[[7, 0, 7, 23]])
    assert labels is not None and labels.tolist() == [7, 0, 7, 23]


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_three_dimensions_say_the_rows_of_a_step(tmp_path: Path, suffix: str) -> None:
    folded = {"input_ids": TOKENS.reshape(6, 4, 5), "labels": TOKENS.reshape(6, 4, 5)[..., ::-1].copy()}
    batches = describe(stored(tmp_path / f"b{suffix}", folded))
    assert (batches.rows, batches.rows_per_step) == (24, 4)
    tokens, labels = load_rows(batches, batches.rows_of_step(3))
    assert np.array_equal(tokens, TOKENS[8:12])
    assert labels is not None and np.array_equal(labels, TOKENS[8:12, ::-1])


def test_recorded_steps_win(tmp_path: Path) -> None:
    steps = np.repeat(np.array([100, 200, 300]), 8)
    stored(tmp_path / "batches.safetensors", {"input_ids": TOKENS, "steps": steps})
    batches = find_batches(tmp_path, last_steps=[12])
    assert batches is not None and batches.rows_per_step is None
    assert list(batches.rows_of_step(200)) == list(range(8, 16)) and batches.rows_of_step(150) == ()


def test_rows_of_a_step_are_not_made_up(tmp_path: Path) -> None:
    stored(tmp_path / "batches.npz", {"tokens": TOKENS})
    batches = find_batches(tmp_path, last_steps=[7, 1000])
    assert batches is not None and batches.rows_per_step is None and batches.rows_of_step(1) == ()


def test_a_log_that_counts_from_zero(tmp_path: Path) -> None:
    stored(tmp_path / "batches.npz", {"tokens": TOKENS})
    batches = find_batches(tmp_path, last_steps=[11], first_logged_step=0)
    assert batches is not None and list(batches.rows_of_step(0)) == [0, 1]


def test_flat_tokens_need_a_row_length(tmp_path: Path) -> None:
    file = tmp_path / "train.bin"
    np.arange(23, dtype=np.uint16).tofile(file)
    assert find_batches(tmp_path) is None
    with pytest.raises(InputError, match="row length"):
        find_batches(tmp_path, Manifest(batch_file=file))
    batches = find_batches(tmp_path, Manifest(batch_file=file, length=5, batch_steps=2))
    assert batches is not None and (batches.rows, batches.rows_per_step) == (4, 2)
    assert load_rows(batches, batches.rows_of_step(2))[0].tolist() == [
        list(range(10, 15)),
        list(range(15, 20)),
    ]


def test_labels_in_their_own_place_lose_no_position(tmp_path: Path) -> None:
    targets = TOKENS.astype(np.int64) + 1
    targets[3, 2] = -1  # nanoGPT's mark for a position that does not count
    for name in ("b.npz", "b.safetensors"):
        file = stored(tmp_path / name, {"x": TOKENS, "y": targets})
        batches = describe(file, Manifest(batch_file=file, tokens="x", labels="y", aligned=True))
        tokens, labels = load_rows(batches, [3, 0])
        assert labels is not None and tokens.shape == (2, 5) and labels.shape == (2, 6)
        assert labels[1].tolist() == [-100, *targets[0].tolist()]
        assert labels[0].tolist() == [-100, *targets[3, :2].tolist(), -100, *targets[3, 3:].tolist()]


@pytest.mark.parametrize("arrays", [{"tokens": TOKENS}, {"tokens": TOKENS, "labels": LABELS}])
def test_labels_of_rows_have_no_place(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    file = stored(tmp_path / "b.npz", arrays)
    with pytest.raises(InputError, match="no label for every token"):
        describe(file, Manifest(batch_file=file, aligned=True))


def test_full_batches_are_the_batch_of_every_step(tmp_path: Path) -> None:
    file = stored(tmp_path / "batches.npz", {"tokens": TOKENS, "steps": LABELS})
    plain = stored(tmp_path / "plain" / "batches.npz", {"tokens": TOKENS})
    for batches in (
        describe(plain, full=True),
        find_batches(plain.parent, full=True, last_steps=[12]),
        describe(file, Manifest(batch_file=file, every_step=True)),
    ):
        assert batches is not None and batches.every_step and batches.rows_per_step == 24
        assert list(batches.rows_of_step(1)) == list(batches.rows_of_step(977)) == list(range(24))
    # What the file or the user says of its steps wins over what the run says of its training.
    assert not describe(file, full=True).every_step
    assert not describe(plain, Manifest(batch_file=plain, batch_steps=2), full=True).every_step


def test_weights_are_not_batches(tmp_path: Path) -> None:
    save_file({"weight": np.ones((3, 3), dtype=np.float32)}, tmp_path / "model.safetensors")
    assert find_batches(tmp_path) is None


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return Path.touch, (str(canary),)

    np.savez(tmp_path / "batches.npz", tokens=np.array([Trap()], dtype=object))
    assert find_batches(tmp_path) is None
    with pytest.raises(InputError, match="objects"):
        describe(tmp_path / "batches.npz")
    assert not canary.exists()


@pytest.mark.parametrize(
    ("arrays", "hint"),
    [
        ({"x": TOKENS}, "no token array among x"),
        ({"tokens": TOKENS.astype(np.float32)}, "not whole numbers"),
        ({"tokens": TOKENS, "labels": LABELS[:3]}, "labels have shape"),
        ({"tokens": TOKENS, "steps": LABELS[:5]}, "5 steps for 24 rows"),
    ],
)
def test_wrong_arrays_are_named(tmp_path: Path, arrays: dict[str, np.ndarray], hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        describe(stored(tmp_path / "b.npz", arrays))


def test_rows_outside_and_negative_tokens(tmp_path: Path) -> None:
    batches = describe(stored(tmp_path / "b.npz", {"tokens": TOKENS}))
    with pytest.raises(InputError, match="no row 24"):
        load_rows(batches, [24])
    below = describe(stored(tmp_path / "c.npz", {"tokens": -TOKENS.astype(np.int64)}))
    with pytest.raises(InputError, match="negative"):
        load_rows(below, [1])


def test_a_truncated_archive_is_bad_input(tmp_path: Path) -> None:
    file = stored(tmp_path / "b.npz", {"tokens": TOKENS})
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match="numpy archive"):
        describe(file)


def test_labels_of_an_encoder_decoder_have_a_length_of_their_own(tmp_path: Path) -> None:
    written = np.arange(24 * 3).reshape(24, 3).astype(np.int32)
    found = find_batches(stored(tmp_path / "batches.npz", {"input_ids": TOKENS, "labels": written}).parent)
    assert found is not None
    _, labels = load_rows(found, [4, 1])
    assert labels is not None and labels.tolist() == written[[4, 1]].tolist()


def test_why_a_file_named_batches_is_none_is_said(tmp_path: Path) -> None:
    stored(tmp_path / "batches.safetensors", {"features": TOKENS.astype(np.float32), "labels": LABELS})
    assert find_batches(tmp_path) is None
    error = passed_over(tmp_path)
    assert error is not None and "features, labels" in error.reason and error.remedy
    (tmp_path / "batches.safetensors").rename(tmp_path / "model.safetensors")
    assert passed_over(tmp_path) is None


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_images_are_loaded_as_they_are_stored(tmp_path: Path, suffix: str) -> None:
    images = np.random.default_rng(0).standard_normal((24, 3, 4, 5))
    for stored_as, loaded_as in (
        ("float64", torch.float64),
        ("float32", torch.float32),
        ("float16", torch.float32),
    ):
        own = images.astype(stored_as)
        batches = describe(
            stored(tmp_path / f"{stored_as}{suffix}", {"pixel_values": own, "labels": LABELS}),
            last_steps=[12],
        )
        assert (batches.rows, batches.rows_per_step, batches.shape, batches.length) == (24, 2, (3, 4, 5), 0)
        rows, labels = load_rows(batches, [5, 0, 23])
        assert rows.dtype == loaded_as and np.array_equal(rows, own[[5, 0, 23]])
        assert labels is not None and (labels.dtype, labels.tolist()) == (torch.int64, [5, 0, 23])


def test_a_label_of_every_image_tells_films_from_batches(tmp_path: Path) -> None:
    films = np.zeros((6, 4, 1, 2, 2), dtype=np.float32)
    one = describe(stored(tmp_path / "a.npz", {"pixel_values": films, "labels": np.arange(6)}))
    assert (one.rows, one.rows_per_step, one.shape) == (6, None, (4, 1, 2, 2))
    folded = describe(stored(tmp_path / "b.npz", {"pixel_values": films, "labels": LABELS.reshape(6, 4)}))
    assert (folded.rows, folded.rows_per_step, folded.shape) == (24, 4, (1, 2, 2))
    assert load_rows(folded, [7])[0].shape == (1, 1, 2, 2)


def test_other_rows_of_numbers_are_replayed_where_they_are_named(tmp_path: Path) -> None:
    file = stored(tmp_path / "b.npz", {"sound": np.ones((24, 7), dtype=np.float32), "labels": LABELS})
    with pytest.raises(InputError, match="holds no token array"):
        describe(file)
    named = describe(file, Manifest(tokens="sound"))
    assert (named.tokens, named.rows, named.shape) == ("sound", 24, (7,))
    assert load_rows(named, [3])[0].tolist() == [[1.0] * 7]
