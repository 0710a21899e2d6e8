"""All tools at the same checkpoints, in turn, with cost and error: the main table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.curvature.model import Size
from benchmarks.curvature.ours import ACCURACIES, Ours, ours
from benchmarks.curvature.peers import eigenthings, eigenthings_by_products, peers
from benchmarks.curvature.problem import Answer, Method, Problem
from benchmarks.curvature.reference import Reference, dominant, reference
from benchmarks.curvature.timing import Cost, Errors, Spread, cost
from benchmarks.curvature.training import EVERY, train

#: What ratios are taken against.
YARDSTICK = "ours, standard, given the previous checkpoint"
#: More products than this are not tried for an equal error.
MOST_PRODUCTS = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """What is compared at one model size.

    Attributes:
        size: the model.
        checkpoints: steps, one a repeat.
        referenced: how many of the checkpoints, from the last one back, get a tight reference; at least one.
        reference_stride: the reference is for every so many-th target.
        strides: by a method's weight, it measures every so many-th target a repeat, another set at each; 1
            measures all, 0 leaves the method out.
    """

    size: Size
    checkpoints: tuple[int, ...]
    referenced: int
    reference_stride: int
    strides: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Line:
    """One method's line.

    Attributes:
        name: of the method.
        forwards: cost; where not all targets were measured, of all as estimated from those that were.
        seconds: processor seconds.
        ratio: cost over the yardstick's at the same checkpoint.
        products: mean number of products a target.
        errors: against the reference, None where there is none.
        targets: how many targets a repeat measured.
    """

    name: str
    forwards: Spread
    seconds: Spread
    ratio: Spread
    products: float
    errors: Errors | None
    targets: int


@dataclass(frozen=True, slots=True)
class Vouched:
    """How far an accuracy's `certified` can be trusted, over largest eigenvalues of all targets and checkpoints.

    Attributes:
        accuracy: the name.
        cases: targets times checkpoints.
        certified: how many were vouched for.
        certified_over_one: of these, how many are more than 1 % off.
        missed_over_five: how many are more than 5 % off and vouched for all the same.
    """

    accuracy: str
    cases: int
    certified: int
    certified_over_one: int
    missed_over_five: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything measured at one model size.

    Attributes:
        size: the model.
        loss: training loss at the end.
        modules: number of layers, the whole model not counted.
        gradient: cost of one ordinary gradient in forward passes.
        lines: by method.
        vouched: by accuracy.
    """

    size: Size
    loss: str
    modules: int
    gradient: Spread
    lines: tuple[Line, ...]
    vouched: tuple[Vouched, ...]


def compare(plan: Plan, cache_folder: Path, tell: Callable[[str], None]) -> Comparison:
    """Measure every method at every checkpoint, in an order that turns from one to the next.

    Returns:
        The comparison.
    """
    folder = train(plan.size, cache_folder)
    references = _references(plan, folder, tell)
    costs: dict[str, list[Cost]] = {}
    answers: dict[str, dict[int, Answer]] = {}
    gradients: list[float] = []
    last = plan.checkpoints[-1]
    methods = [*peers(), *_at_equal_error(plan.size, folder, last, references[last], tell)]
    for turn, step in enumerate(plan.checkpoints):
        problem = Problem.at(plan.size, folder, step)
        everything = _own(_before(plan.size, folder, step)) + [
            method for method in methods if plan.strides[method.weight]
        ]
        gradients.append(
            cost(problem, lambda problem=problem: _repeat(problem.gradient, 10))[0].forwards / 10
        )
        for place in range(len(everything)):
            method = everything[(place + turn) % len(everything)]
            stride = plan.strides[method.weight]
            part = replace(problem, targets=problem.targets[turn % stride :: stride])
            spent, answer = cost(problem, lambda method=method, part=part: method.measure(part))
            share = len(problem.targets) / len(part.targets)
            costs.setdefault(method.name, []).append(Cost(spent.forwards * share, spent.seconds * share))
            answers.setdefault(method.name, {})[step] = answer
            tell(
                f"{plan.size.name}, step {step}, {method.name}: {costs[method.name][-1].forwards:.0f} forwards"
            )
    yardstick = [one.forwards for one in costs[YARDSTICK]]
    lines = tuple(_line(name, spent, yardstick, answers[name], references) for name, spent in costs.items())
    vouched = tuple(_vouched(accuracy, answers[_warm_name(accuracy)], references) for accuracy in ACCURACIES)
    loss = (folder / "loss.txt").read_text(encoding="utf-8").strip()
    return Comparison(plan.size, loss, len(problem.layers), Spread.of(gradients), lines, vouched)


def _repeat(work: Callable[[], object], times: int) -> None:
    for _ in range(times):
        work()


def _before(size: Size, folder: Path, step: int) -> dict[str, Ours]:
    """What each accuracy remembers of the checkpoint before."""
    earlier = Problem.at(size, folder, step - EVERY)
    return {accuracy: ours(earlier, accuracy) for accuracy in ACCURACIES}


def _warm_name(accuracy: str) -> str:
    return f"ours, {accuracy}, given the previous checkpoint"


def _own(before: Mapping[str, Ours]) -> list[Method]:
    cold = [
        Method(
            f"ours, {accuracy}, cold",
            lambda problem, accuracy=accuracy: ours(problem, accuracy).answer,  # type: ignore[misc]
        )
        for accuracy in ACCURACIES
    ]
    warm = [
        Method(
            _warm_name(accuracy),
            lambda problem, accuracy=accuracy: ours(problem, accuracy, before[accuracy]).answer,  # type: ignore[misc]
        )
        for accuracy in ACCURACIES
    ]
    return [method for pair in zip(cold, warm, strict=True) for method in pair]


def _references(plan: Plan, folder: Path, tell: Callable[[str], None]) -> dict[int, Reference]:
    found: dict[int, Reference] = {}
    for step in plan.checkpoints[len(plan.checkpoints) - plan.referenced :]:
        tell(f"{plan.size.name}, step {step}: reference in float64")
        name = f"reference-{step:06d}-rows-{plan.size.rows}-every-{plan.reference_stride}.json"
        problem = Problem.at(plan.size, folder, step)
        wanted = replace(problem, targets=problem.targets[:: plan.reference_stride])
        found[step] = reference(wanted, folder / name)
    return found


def _at_equal_error(
    size: Size, folder: Path, step: int, truth: Reference, tell: Callable[[str], None]
) -> list[Method]:
    """hessian-eigenthings with the fewest products, the same for all targets, whose p90 is not above ours."""
    problem = Problem.at(size, folder, step)
    known = ours(Problem.at(size, folder, step - EVERY), "standard")
    allowed = Errors.of(_errors(ours(problem, "standard", known).answer, truth)).tenth
    tried = eigenthings_by_products(replace(problem, targets=tuple(truth)), MOST_PRODUCTS)
    enough = (count for count, answer in tried.items() if Errors.of(_errors(answer, truth)).tenth <= allowed)
    products = next(enough, MOST_PRODUCTS)
    tell(f"hessian-eigenthings needs {products} products for a p90 error of {allowed:.1e}")
    name = f"hessian-eigenthings 1.0.0a5, {{}}, {products} products (equal error)"
    return [
        Method(name.format(word), partial(eigenthings, method=method, products=products), weight=1)
        for word, method in (("exact", "autograd"), ("differences", "finite_difference"))
    ]


def _errors(answer: Answer, truth: Reference) -> list[float]:
    return [
        abs(found.dominant / dominant(truth[target]) - 1)
        for target, found in answer.items()
        if target in truth
    ]


def _line(
    name: str,
    spent: Sequence[Cost],
    yardstick: Sequence[float],
    answers: dict[int, Answer],
    references: dict[int, Reference],
) -> Line:
    errors = [
        error
        for step, truth in references.items()
        if step in answers
        for error in _errors(answers[step], truth)
    ]
    products = [found.products for answer in answers.values() for found in answer.values()]
    return Line(
        name,
        Spread.of([one.forwards for one in spent]),
        Spread.of([one.seconds for one in spent]),
        Spread.of([one.forwards / own for one, own in zip(spent, yardstick, strict=True)]),
        sum(products) / len(products),
        Errors.of(errors) if errors else None,
        len(next(iter(answers.values()))),
    )


def _vouched(accuracy: str, answers: dict[int, Answer], references: dict[int, Reference]) -> Vouched:
    cases = [
        (bool(found.certified), abs(found.largest / references[step][target][0] - 1))
        for step, answer in answers.items()
        if step in references
        for target, found in answer.items()
        if found.largest is not None and target in references[step]
    ]
    return Vouched(
        accuracy,
        len(cases),
        sum(certified for certified, _ in cases),
        sum(certified and error > 0.01 for certified, error in cases),
        sum(certified and error > 0.05 for certified, error in cases),
    )
