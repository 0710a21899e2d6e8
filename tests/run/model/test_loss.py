"""One loss from whatever a module returns, on the positions that are predicted."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hnf_offline.errors import InputError
from hnf_offline.run.model.loss import check_tokens, count_predicted, evaluate, predicted

VOCABULARY = 7
TOKENS = torch.randint(0, VOCABULARY, (4, 5), generator=torch.Generator().manual_seed(0))
LOGITS = torch.randn(4, 5, VOCABULARY, generator=torch.Generator().manual_seed(1))
NEXT_TOKEN = functional.cross_entropy(LOGITS[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())


class Returns(nn.Module):
    """Returns the same thing whatever it is asked, and remembers how it was called."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output
        self.labels: Tensor | None = None

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        self.labels = labels
        return self.output


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        {"logits": LOGITS},
        SimpleNamespace(logits=LOGITS),
        (LOGITS, "cache"),
        (torch.tensor(9.0), LOGITS),
    ],
    ids=["tensor", "mapping", "object", "tuple", "tuple with a number first"],
)
def test_logits_in_any_wrapping_give_the_shifted_cross_entropy(output: Any) -> None:
    outcome = evaluate(Returns(output), TOKENS, None)
    assert outcome.loss.item() == pytest.approx(NEXT_TOKEN.item())
    assert outcome.logits is not None and outcome.logits.shape == (16, VOCABULARY)
    assert outcome.targets is not None and torch.equal(outcome.targets, TOKENS[:, 1:].flatten())


@pytest.mark.parametrize(
    "output",
    [
        {"loss": torch.tensor(1.5), "logits": LOGITS},
        SimpleNamespace(loss=torch.tensor(1.5), logits=LOGITS),
        torch.tensor(1.5),
        {"loss": torch.tensor(1.5)},
    ],
    ids=["mapping", "object", "scalar", "no logits"],
)
def test_a_loss_that_the_module_gives_is_the_loss(output: Any) -> None:
    assert evaluate(Returns(output), TOKENS, None).loss.item() == 1.5


def test_a_module_that_takes_labels_gets_the_tokens_where_there_are_none() -> None:
    module = Returns(LOGITS)
    evaluate(module, TOKENS, None)
    assert torch.equal(module.labels, TOKENS)
    labels = TOKENS.flip(0)
    evaluate(module, TOKENS, labels)
    assert torch.equal(module.labels, labels)


def test_a_module_with_its_own_argument_name_is_called_by_position() -> None:
    class Own(nn.Module):
        def forward(self, idx: Tensor) -> Tensor:
            assert torch.equal(idx, TOKENS)
            return LOGITS

    assert evaluate(Own(), TOKENS, None).loss.item() == pytest.approx(NEXT_TOKEN.item())


def test_one_label_a_row_is_predicted_at_the_last_position() -> None:
    labels = torch.tensor([1, 2, 3, 4])
    outcome = evaluate(Returns(LOGITS), TOKENS, labels)
    assert outcome.loss.item() == pytest.approx(functional.cross_entropy(LOGITS[:, -1], labels).item())
    classes = LOGITS[:, 0]  # a classifier has one prediction a row to begin with
    outcome = evaluate(Returns(classes), TOKENS, labels)
    assert outcome.loss.item() == pytest.approx(functional.cross_entropy(classes, labels).item())


def test_positions_labelled_minus_100_do_not_count() -> None:
    labels = TOKENS.clone()
    labels[0] = -100
    labels[1, 3:] = -100
    logits, targets = predicted(LOGITS, labels)
    assert len(targets) == count_predicted(TOKENS, labels) == 2 + 4 + 4
    reference = functional.cross_entropy(
        LOGITS[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    outcome = evaluate(Returns(LOGITS), TOKENS, labels)
    assert outcome.loss.item() == pytest.approx(reference.item())
    assert logits.shape == (10, VOCABULARY)
    assert count_predicted(TOKENS, torch.tensor([3, -100, 1, -100])) == 2
    assert count_predicted(TOKENS, None) == 16


@pytest.mark.parametrize("output", ["text", (), None, SimpleNamespace(hidden=LOGITS)])
def test_a_module_without_loss_or_logits_is_refused_with_a_remedy(output: Any) -> None:
    with pytest.raises(InputError, match="neither a loss nor logits") as error:
        evaluate(Returns(output), TOKENS, None)
    assert error.value.remedy


def test_labels_that_do_not_fit_are_named_with_both_shapes() -> None:
    with pytest.raises(InputError, match=r"\(4, 5, 7\).*\(4, 7\)"):
        evaluate(Returns(LOGITS), TOKENS, torch.zeros(4, 7, dtype=torch.int64))


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_the_loss_of_a_hugging_face_decoder_is_its_own(
    hugging_face: Callable[[str], nn.Module], model_type: str
) -> None:
    module = hugging_face(model_type)
    outcome = evaluate(module, TOKENS, None)
    own = module(input_ids=TOKENS, labels=TOKENS)
    assert outcome.loss.item() == pytest.approx(own.loss.item())
    # The logits that are measured beside it give the same loss: shift and targets fit.
    assert outcome.logits is not None and outcome.targets is not None
    assert functional.cross_entropy(outcome.logits, outcome.targets).item() == pytest.approx(
        own.loss.item(), rel=1e-5
    )


def test_a_masked_model_predicts_its_labels_in_their_own_place(
    hugging_face: Callable[[str], nn.Module],
) -> None:
    module = hugging_face("bert")
    labels = torch.full_like(TOKENS, -100)
    labels[:, 2] = TOKENS[:, 2]
    labels[0, 4] = 6
    with torch.no_grad():
        outcome = evaluate(module, TOKENS, labels)
    assert outcome.logits is not None and outcome.targets is not None
    assert torch.equal(outcome.targets, labels[labels != -100])
    assert functional.cross_entropy(outcome.logits, outcome.targets).item() == pytest.approx(
        outcome.loss.item(), rel=1e-5
    )


class InPlace(nn.Module):
    """Predicts each label in its own place; something may be added to its loss."""

    extra = 0.0

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        loss = functional.cross_entropy(LOGITS.flatten(0, 1), labels.flatten()) + self.extra
        return {"loss": loss, "logits": LOGITS}


def test_how_labels_are_read_is_not_settled_by_a_loss_that_fits_neither_reading() -> None:
    module = InPlace()
    in_place = functional.cross_entropy(LOGITS.flatten(0, 1), TOKENS.flatten())
    counted = []
    # More than half of the way to the other reading's loss; then its own, twice.
    for module.extra in (0.6 * float(NEXT_TOKEN - in_place), 0.0, 0.0):
        with torch.no_grad():
            outcome = evaluate(module, TOKENS, None)
        assert outcome.targets is not None
        counted.append(outcome.targets.numel())
    assert counted == [TOKENS[:, 1:].numel(), TOKENS.numel(), TOKENS.numel()]


def test_tokens_outside_of_the_vocabulary_are_refused_before_the_gpu_asserts() -> None:
    check_tokens(torch.tensor([[0, 6]]), 7)
    check_tokens(torch.tensor([[0, 600]]), None)
    check_tokens(torch.empty(0, 3, dtype=torch.int64), 7)
    with pytest.raises(InputError, match=r"token 7 in the batches, but the model knows 0\.\.6") as error:
        check_tokens(torch.tensor([[0, 7]]), 7)
    assert "--replay" in str(error.value.remedy)
    with pytest.raises(InputError, match="token -1 "):
        check_tokens(torch.tensor([[-1, 3]]), 7)


def test_one_label_more_than_tokens_predicts_every_position() -> None:
    following = torch.randint(0, VOCABULARY, (4, 1), generator=torch.Generator().manual_seed(3))
    labels = torch.cat([TOKENS, following], dim=1)
    wanted = functional.cross_entropy(LOGITS.flatten(0, 1), labels[:, 1:].flatten())
    for output in (LOGITS, {"logits": LOGITS}, {"loss": torch.tensor(9.0), "logits": LOGITS}):
        module = Returns(output)
        outcome = evaluate(module, TOKENS, labels)
        # No module takes such labels; a loss that it gives without them is not this one.
        assert module.labels is None
        assert outcome.loss.item() == pytest.approx(wanted.item())
        assert outcome.logits is not None and outcome.logits.shape == (20, VOCABULARY)
        assert outcome.targets is not None and torch.equal(outcome.targets, labels[:, 1:].flatten())
    assert count_predicted(TOKENS, labels) == 20


def test_one_label_more_with_positions_that_do_not_count() -> None:
    labels = torch.cat([torch.full((4, 1), -100), TOKENS], dim=1)
    labels[1, 2:] = -100
    outcome = evaluate(Returns(LOGITS), TOKENS, labels)
    counted = labels[:, 1:] != -100
    wanted = functional.cross_entropy(LOGITS[counted], TOKENS[counted])
    assert outcome.loss.item() == pytest.approx(wanted.item())
    assert count_predicted(TOKENS, labels) == int(counted.sum()) == len(outcome.targets)


def test_one_label_more_needs_logits() -> None:
    labels = torch.cat([TOKENS, TOKENS[:, :1]], dim=1)
    for output in (torch.tensor(1.5), {"loss": torch.tensor(1.5)}):
        with pytest.raises(InputError, match="need them"):
            evaluate(Returns(output), TOKENS, labels)
    with pytest.raises(InputError, match="do not fit"):
        evaluate(Returns(LOGITS[:, -1:]), TOKENS, labels)


@pytest.mark.parametrize("length", [3, 6])  # one more than tokens means something else elsewhere
@pytest.mark.parametrize("graph", [False, True])
def test_an_encoder_decoder_predicts_its_labels_in_their_own_place(
    hugging_face: Callable[[str], nn.Module], length: int, graph: bool
) -> None:
    module = hugging_face("t5")
    labels = torch.randint(0, VOCABULARY, (4, length), generator=torch.Generator().manual_seed(2))
    labels[0, -1] = -100
    with torch.set_grad_enabled(graph):
        told = evaluate(module, TOKENS, labels)
        own = module(input_ids=TOKENS, labels=labels)
    assert torch.equal(told.loss, own.loss)
    assert told.targets is not None and told.targets.tolist() == labels[labels != -100].tolist()
    assert told.logits is not None
    torch.testing.assert_close(functional.cross_entropy(told.logits, told.targets), own.loss)


def test_an_encoder_decoder_without_labels_is_refused(hugging_face: Callable[[str], nn.Module]) -> None:
    with pytest.raises(InputError, match="encoder-decoder"):
        evaluate(hugging_face("t5"), TOKENS, None)


class Sees(nn.Module):
    """Remembers what it was given, and by which name."""

    main_input_name = "spectrum"

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3).double()
        self.given: dict[str, Tensor] = {}

    def forward(self, **given: Tensor) -> Tensor:
        self.given = given
        (rows,) = (one for name, one in given.items() if name != "labels")
        logits: Tensor = self.head(rows)
        return logits


def test_rows_of_numbers_go_by_the_name_and_in_the_precision_of_the_module() -> None:
    module, rows, labels = Sees(), torch.randn(4, 6), torch.tensor([0, 2, 1, 1])
    outcome = evaluate(module, rows, labels)
    assert set(module.given) == {"spectrum", "labels"}
    assert torch.equal(module.given["spectrum"], rows.double())
    assert outcome.loss.item() == pytest.approx(
        functional.cross_entropy(module.head(rows.double()), labels).item()
    )
    module.main_input_name = None  # type: ignore[assignment]
    evaluate(module, rows, labels)
    assert set(module.given) == {"pixel_values", "labels"}


def test_images_look_nothing_up() -> None:
    check_tokens(torch.tensor([[9.5, -3.0]]), VOCABULARY)
    with pytest.raises(InputError):
        check_tokens(torch.tensor([[9, 1]]), VOCABULARY)
