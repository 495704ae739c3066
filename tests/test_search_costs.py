"""What subnets cost, how that is scored, and the budgets of a search."""

import random
from dataclasses import replace

import pytest
import torch
from searches import CLASSES, SPACE, TABLES, every, problem

from effv2_kernels.errors import LatencyError, SearchError
from effv2_kernels.families.efficientformer_v2 import VARIANTS, EfficientFormerV2
from effv2_kernels.search.budgets import Budgets
from effv2_kernels.search.cost import Costs
from effv2_kernels.search.mes import MES, over_devices
from effv2_kernels.search.space import SearchSpace


def test_scores_by_hand():
    # 100 * (12 / 3) ** -0.5 * (2 / 1) ** -1
    assert MES()({"parameters": 12.0, "latency": 2.0, "macs": 9.0}) == pytest.approx(25)
    other = MES({"parameters": 1.0, "latency": 2.0, "energy": 0.5}, {"parameters": 6.0, "energy": 4.0})
    assert other({"parameters": 12.0, "latency": 3.0, "energy": 1.0}) == pytest.approx(100 * 0.5 / 9 * 2)


def test_scores_of_the_published_networks():
    """Those of shared facts: MobileNetV2 102.9, S1 63.8, S2 30.5, L 12.6."""
    known = {102.9: (3.5, 0.9), 63.8: (6.1, 1.1), 30.5: (12.6, 1.6), 12.6: (26.1, 2.7)}
    for score, (parameters, latency) in known.items():
        assert MES()({"parameters": parameters, "latency": latency}) == pytest.approx(score, abs=0.06)


def test_references_scale_all_scores_alike():
    generator = random.Random(0)
    plain, scaled = MES(references={}), MES(references={"parameters": 7.0, "latency": 0.3})
    ratios = [
        plain(metrics) / scaled(metrics)
        for metrics in (
            {"parameters": generator.uniform(1, 9), "latency": generator.uniform(1, 9)} for _ in range(20)
        )
    ]
    assert max(ratios) == pytest.approx(min(ratios))
    assert ratios[0] != pytest.approx(1)


def test_several_devices_count_as_one():
    names = ["latency on a", "latency on b"]
    score = over_devices(MES(), names)
    metrics = {"parameters": 3.0, "latency on a": 2.0, "latency on b": 8.0}
    assert score(metrics) == pytest.approx(MES()({"parameters": 3.0, "latency": 4.0})) == pytest.approx(25)
    kept = over_devices(MES({"latency": 1.0, "latency on a": 3.0}), names)
    assert kept.exponents == {"latency on a": 3.0, "latency on b": 0.5}


def test_a_part_of_a_score():
    part = MES().of(["latency", "macs"])
    assert part({"latency": 4.0}) == pytest.approx(25)
    assert MES().of(["macs"]) is None
    assert MES({"latency": 0.0, "macs": 1.0}).of(["latency"]) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MES({"parameters": -1.0}), "exponent of parameters must be at least 0.*got -1"),
        (lambda: MES({"parameters": float("nan")}), "exponent of parameters"),
        (lambda: MES({"parameters": 0.0}), "needs a metric that counts"),
        (lambda: MES({}), "needs a metric that counts"),
        (lambda: MES(references={"latency": 0.0}), "reference of latency must be positive; got 0"),
        (lambda: MES()({"parameters": 3.0}), "counts latency, but what is known of a network is parameters"),
        (lambda: MES()({"parameters": 3.0, "latency": 0.0}), "positive metrics, but latency is 0"),
        (lambda: Budgets({}), "needs a budget"),
        (lambda: Budgets({"latency": 0.0}), "budget of latency must be a positive number; got 0"),
        (lambda: Budgets({"latency": float("nan")}), "budget of latency"),
        (lambda: MES()({"parameters": 3.0, "latency": float("nan")}), "positive metrics, but latency is nan"),
    ],
)
def test_what_makes_no_sense(make, message):
    with pytest.raises(SearchError, match=message):
        make()


@pytest.mark.parametrize("distillation", [True, False])
@pytest.mark.parametrize("space", [SPACE, SearchSpace.read("fashion")], ids=["tiny", "fashion"])
def test_counts_are_those_of_built_models(space, distillation):
    from torch.utils.flop_counter import FlopCounterMode

    generator = random.Random(1)
    costs = Costs(space, classes=CLASSES, distillation=distillation)
    subnets = [space.largest(), space.smallest(), *(space.sample(generator) for _ in range(15))]
    seen = set()
    for subnet in subnets:
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            model = EfficientFormerV2(
                subnet,
                img_size=space.img_size,
                in_channels=space.in_channels,
                num_classes=CLASSES,
                distillation=distillation,
            ).eval()
            model(torch.empty(1, space.in_channels, *space.img_size))
        parameters, macs = costs.count(subnet)
        assert parameters == sum(p.numel() for p in model.parameters())
        classifier = subnet.widths[3] * CLASSES if distillation else 0  # folded into the first
        assert macs == counter.get_total_flops() // 2 - classifier
        assert costs(subnet) == {"parameters": parameters / 1e6, "macs": macs / 1e6}
        seen.add(parameters)
    assert len(seen) > 10


def test_counts_of_the_published_networks():
    costs = Costs(SearchSpace.read())
    counted = {name[-2:].strip("_"): costs(architecture) for name, architecture in VARIANTS.items()}
    for name, parameters, gmacs in (("s0", 3.60, 0.396), ("s1", 6.19, 0.652), ("l", 26.32, 2.553)):
        assert counted[name]["parameters"] == pytest.approx(parameters, abs=0.005)
        assert counted[name]["macs"] == pytest.approx(1000 * gmacs, abs=1)


def test_latency_is_the_tables():
    subnet = SPACE.sample(random.Random(2))
    one = Costs(SPACE, classes=CLASSES, tables={"here": TABLES["here"]})
    two = Costs(SPACE, classes=CLASSES, tables=TABLES)
    assert one(subnet)["latency"] == TABLES["here"].predict(subnet)
    assert list(two(subnet)) == ["parameters", "macs", "latency on here", "latency on phone"]
    assert two(subnet)["latency on phone"] == TABLES["phone"].predict(subnet) != one(subnet)["latency"]
    assert one.describe({"parameters": 1.234567, "latency": 3.0}) == "1.235 M parameters, latency 3 ms"
    assert one.identity != two.identity
    changed = replace(TABLES["here"], call=0.06)
    assert one.identity != Costs(SPACE, classes=CLASSES, tables={"here": changed}).identity


def test_tables_that_do_not_fit():
    asked = "is of 32x48 images of 2 channels and 7 classes, and .* 32x48 .* 8 classes: .* --classes 8"
    with pytest.raises(LatencyError, match=asked):
        Costs(SPACE, classes=8, tables=TABLES)
    with pytest.raises(LatencyError, match=f"the table of energy {asked}"):
        Costs(SPACE, classes=8, others={"energy": TABLES["here"]})
    with pytest.raises(SearchError, match="macs is a metric already"):
        Costs(SPACE, classes=CLASSES, others={"macs": TABLES["here"]})
    lacking = replace(TABLES["here"], blocks={})
    with pytest.raises(LatencyError, match="has no time for"):
        Costs(SPACE, classes=CLASSES, tables={"here": lacking})(SPACE.largest())


def test_a_budget_below_the_smallest():
    costs = problem().costs
    smallest = costs(SPACE.smallest())
    Budgets(smallest).check(costs)  # exactly its own is enough
    for name in ("parameters", "latency"):
        limits = smallest | {name: 0.99 * smallest[name]}
        with pytest.raises(SearchError, match="no subnet of this space can be within") as raised:
            Budgets(limits).check(costs)
        assert f"the smallest has {costs.describe(smallest)}" in str(raised.value)
    with pytest.raises(
        SearchError, match=r"budget of energy, but what is known .* parameters, macs, latency"
    ):
        Budgets({"energy": 1.0}).check(costs)


def test_which_budgets_are_exceeded():
    budgets = Budgets({"parameters": 3.0, "latency": 1.0})
    assert budgets.exceeded({"parameters": 3.0, "latency": 1.0}) == []
    assert budgets.exceeded({"parameters": 2.0, "latency": 1.01, "macs": 9e9}) == ["latency"]
    # Of NaN nobody knows that it is within.
    assert budgets.exceeded({"parameters": 2.0, "latency": float("nan")}) == ["latency"]


def test_the_small_space_is_small():
    assert len(every()) == SPACE.subnets()
