"""Search spaces: files, built-in ones, sampling, and the steps from one subnet to the next."""

import itertools
import json
import random
from dataclasses import replace

import pytest
import torch

from effv2_kernels.errors import ModelError
from effv2_kernels.families.efficientformer_v2 import VARIANTS, Architecture, EfficientFormerV2
from effv2_kernels.search.space import SearchSpace, StageChoices, space_file

TINY = SearchSpace(
    (
        StageChoices((8, 16), (0, 1), (1, 2.5)),
        StageChoices((8,), (1,), (2,)),
        StageChoices((16, 24), (1, 3), (1, 2), (0, 1, 2)),
        StageChoices((8, 16), (1, 2), (2,), (1,)),
    ),
    img_size=(33, 47),
    in_channels=2,
)
SPACES = {name: SearchSpace.read(name) for name in space_file.built_in()} | {"tiny": TINY}
DATA = json.loads(TINY.to_json())


def every(space):
    """All subnets of a small space, counted out without the space's own methods."""
    per_stage = [
        [
            (width, depth, ratios, attention)
            for width in stage.widths
            for depth in stage.depths
            for attention in stage.attention_blocks
            if attention <= depth
            for ratios in itertools.product(stage.ratios, repeat=depth)
        ]
        for stage in space.stages
    ]
    for stages in itertools.product(*per_stage):
        widths, depths, ratios, attention = zip(*stages, strict=True)
        yield Architecture(widths, depths, ratios, attention[2:]).canonical()


def test_built_in_names():
    assert space_file.built_in() == ["efficientformerv2", "fashion"]
    assert SearchSpace.read() == SPACES["efficientformerv2"]


@pytest.mark.parametrize("name", VARIANTS)
def test_published_networks_lie_in_the_default_space(name):
    assert SearchSpace.read().why_not(VARIANTS[name]) is None
    assert VARIANTS[name] in SearchSpace.read()


def test_fashion_is_small():
    from torch.utils.flop_counter import FlopCounterMode

    space = SPACES["fashion"]
    assert (space.img_size, space.in_channels) == ((36, 36), 1)
    assert space.stages[2].attention_blocks[-1] > 0
    assert space.stages[3].attention_blocks[-1] > 0
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = EfficientFormerV2(space.largest(), img_size=space.img_size, in_channels=1, num_classes=10)
        model.eval()(torch.empty(1, 1, *space.img_size))
    assert counter.get_total_flops() / 2 <= 50e6


@pytest.mark.parametrize("name", SPACES)
def test_there_and_back(name, tmp_path):
    space = SPACES[name]
    path = tmp_path / "space.json"
    path.write_text(space.to_json())
    assert SearchSpace.read(path) == SearchSpace.read(str(path)) == space
    assert space.to_json().count("\n") == 10


def test_ranges():
    data = json.loads(TINY.to_json())
    data["stages"][3]["widths"] = {"from": 8, "to": 32, "step": 8}
    data["stages"][2]["depths"] = {"from": 2, "to": 4}
    space = SearchSpace.from_json(json.dumps(data))
    assert space.stages[3].widths == (8, 16, 24, 32)
    assert space.stages[2].depths == (2, 3, 4)


def test_count():
    assert TINY.subnets() == len(set(every(TINY))) > 500
    assert 10 ** TINY.log10_subnets() == pytest.approx(TINY.subnets())
    assert 20 < SPACES["efficientformerv2"].log10_subnets() < 40


def test_every_subnet_is_one_and_no_other():
    assert all(subnet in TINY for subnet in every(TINY))
    assert TINY.largest() in TINY
    assert TINY.smallest() in TINY
    assert TINY.largest() == Architecture(
        (16, 8, 24, 16), (1, 1, 3, 2), ((2.5,), (2.0,), (2.0,) * 3, (2.0,) * 2), (2, 1)
    )
    assert TINY.smallest() == Architecture((8, 8, 16, 8), (0, 1, 1, 1), ((), (2.0,), (1.0,), (2.0,)), (0, 1))
    assert "s0" not in TINY


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"widths": (12, 8, 16, 8)}, "widths of stage 1 are 8, 16, and not 12"),
        ({"depths": (1, 1, 2, 1)}, "depths of stage 3 are 1, 3, and not 2"),
        ({"ratios": 2}, "ratios of stage 1 are 1, 2.5, and not 2"),
        ({"attention_blocks": (0, 0)}, "attention_blocks of stage 4 are 1, and not 0"),
    ],
)
def test_why_not(changes, reason):
    sizes = {
        "widths": (8, 8, 16, 8),
        "depths": (1, 1, 1, 1),
        "ratios": (1, 2, 2, 2),
        "attention_blocks": (0, 1),
    }
    assert TINY.why_not(Architecture(**sizes)) is None
    architecture = Architecture(**(sizes | changes))
    said = TINY.why_not(architecture)
    assert said is not None
    assert said.startswith(reason)
    for ask in (TINY.frontier, TINY.neighbours, TINY.check):
        with pytest.raises(ModelError, match="the search space has no such subnet: "):
            ask(architecture)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("kind", [random.Random, lambda seed: torch.Generator().manual_seed(seed)])
def test_samples(name, kind):
    space = SPACES[name]
    first, second = kind(3), kind(3)
    drawn = [space.sample(first) for _ in range(50)]
    assert drawn == [space.sample(second) for _ in range(50)]
    assert all(space.why_not(subnet) is None for subnet in drawn)
    assert len(set(drawn)) > 25


def test_samples_reach_every_stage():
    def stages(subnets):
        return {(i, one) for subnet in subnets for i, one in enumerate(zip(*by_stage(subnet), strict=True))}

    def by_stage(subnet):
        return subnet.widths, subnet.ratios, (0, 0, *subnet.late_attention())

    generator = random.Random(0)
    assert stages(TINY.sample(generator) for _ in range(3000)) == stages(every(TINY))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", SPACES)
def test_every_way_down_ends_at_the_smallest(name, seed):
    space, generator = SPACES[name], random.Random(seed)
    subnet, steps = space.largest(), 0
    while actions := space.frontier(subnet):
        assert all(action.architecture in space for action in actions)
        assert len({action.text for action in actions}) == len(actions)
        subnet, steps = generator.choice(actions).architecture, steps + 1
        assert steps < 1000
    assert subnet == space.smallest()


def test_actions_say_what_they_do():
    subnet = Architecture((16, 8, 24, 16), (1, 1, 3, 2), ((2.5,), (2,), (2, 1, 2), (2, 2)), (2, 1))
    actions = {action.text: action for action in TINY.frontier(subnet)}
    assert set(actions) == {
        "stage 1: 1 -> 0 blocks",
        "stage 1: width 16 -> 8",
        "stage 1, block 1: ratio 2.5 -> 1",
        "stage 3: 2 -> 1 blocks with attention",
        "stage 3: width 24 -> 16",
        "stage 3, block 1: ratio 2 -> 1",
        "stage 3, block 3: ratio 2 -> 1",
        "stage 4: 2 -> 1 blocks",
        "stage 4: width 16 -> 8",
    }
    action = actions["stage 3, block 3: ratio 2 -> 1"]
    assert (action.kind, action.stage, action.block, str(action)) == ("ratio", 3, 3, action.text)
    assert action.architecture.block_ratios()[2] == (2, 1, 1)


def test_a_block_less_is_the_last_without_attention():
    space = SearchSpace.read()
    ratios = ((4,) * 2, (4,) * 2, (4, 3, 2, 4, 3, 2), (4,) * 4)
    subnet = Architecture((32, 48, 96, 176), (2, 2, 6, 4), ratios, (2, 2))
    (less,) = [a for a in space.frontier(subnet) if (a.kind, a.stage) == ("depth", 3)]
    assert less.architecture.block_ratios()[2] == (4, 3, 2, 3, 2)
    (more,) = [a for a in space.neighbours(subnet) if a.text == "stage 3: 6 -> 7 blocks"]
    assert more.architecture.block_ratios()[2] == (4, 3, 2, 4, 4, 3, 2)


def test_neighbours_know_each_other():
    """Up and down again, but for a block whose ratio is not kept."""
    for subnet in [TINY.smallest(), TINY.largest(), TINY.sample(random.Random(1))]:
        near = TINY.neighbours(subnet)
        assert len({action.architecture for action in near}) == len(near)
        for action in near:
            back = {a.architecture for a in TINY.neighbours(action.architecture)}
            assert subnet in back or action.kind == "depth"
    assert {a.text for a in TINY.frontier(TINY.smallest())} == set()
    assert {a.kind for a in TINY.neighbours(TINY.smallest())} == {"depth", "attention", "width", "ratio"}


def with_stage(index, **fields):
    data = json.loads(TINY.to_json())
    data["stages"][index].update(fields)
    return json.dumps(data)


def without(name):
    return json.dumps({key: value for key, value in DATA.items() if key != name})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no JSON object"),
        ("[]", "is no JSON object"),
        ('{"stages": 1, "stages": 2}', "has a name twice"),
        (without("stages"), "lacks 'stages'"),
        (json.dumps({**DATA, "depth": 3}), "has 'depth', and known are stages, img_size, in_channels"),
        (
            json.dumps({**DATA, "stages": DATA["stages"][:3]}),
            "stages of the search space must have 4 entries",
        ),
        (json.dumps({**DATA, "stages": {}}), "must be a list"),
        (
            json.dumps({**DATA, "stages": [1, 2, 3, 4]}),
            "stage 1 of the search space is 1, and no JSON object",
        ),
        (json.dumps({**DATA, "img_size": 224}), "img_size of the search space must be a list"),
        (json.dumps({**DATA, "img_size": [224, 0]}), "img_size must be rows and columns"),
        (
            json.dumps({**DATA, "in_channels": "RGB"}),
            'in_channels of the search space must be an integer, but is "RGB"',
        ),
        (with_stage(1, width=[8]), "stage 2 of the search space has 'width', and known are widths"),
        (with_stage(0, widths=[]), "stage 1: widths is empty"),
        (with_stage(0, widths=[8, 12]), "stage 1: widths must be positive multiples of 8; got (8, 12)"),
        (with_stage(0, widths=[0, 8]), "multiples of 8"),
        (with_stage(0, widths=[16, 8]), "stage 1: widths must ascend"),
        (with_stage(0, widths=[8, 8]), "each value once"),
        (with_stage(0, widths=["8"]), 'must be an integer, but is "8"'),
        (with_stage(0, widths=8), "widths of stage 1 of the search space must be a list, but is 8"),
        (with_stage(2, depths=[]), "stage 3: depths is empty"),
        (with_stage(2, depths=[1.5]), "must be an integer, but is 1.5"),
        (with_stage(0, depths=[-1, 1]), "must not be negative"),
        (with_stage(2, ratios=[]), "stage 3: ratios is empty"),
        (with_stage(2, ratios=["4"]), 'must be a number, but is "4"'),
        (with_stage(2, ratios=[1, 7e300]).replace("7e+300", "1e400"), "a finite number, but is Infinity"),
        (with_stage(2, ratios=[1, 10**400]), "must be a finite number"),
        (with_stage(2, ratios=[1, float("nan")]), "NaN is no JSON"),
        (with_stage(2, ratios=[1, 1e9]), "the ratio 1000000000.0 makes more than 1048576 hidden channels"),
        (with_stage(2, widths=[8, 10**400]), "must be an integer below 2^31"),
        (with_stage(2, widths=[8, 8 * 10**6]), "at most 65536 channels and 1024 blocks are possible"),
        (with_stage(2, depths=[1, 10**6]), "at most 65536 channels and 1024 blocks are possible"),
        (with_stage(2, depths={"from": 0, "to": 2 * 10**9}), "more than 65536 steps lead from 0 to"),
        (json.dumps({**DATA, "img_size": [10**6, 224]}), "img_size and in_channels are at most 65536"),
        (with_stage(2, ratios=[0.01, 1]), "the ratio 0.01 leaves no hidden channel at width 16"),
        (with_stage(2, ratios=[-1, 1]), "leaves no hidden channel"),
        (with_stage(1, attention_blocks=[0, 1]), "stage 2: only stages 3 and 4 have attention"),
        (
            with_stage(2, attention_blocks=[0, 4]),
            "stage 3: the deepest has 3 blocks, so that 4 of them cannot",
        ),
        (
            with_stage(2, attention_blocks=[2]),
            "stage 3: the shallowest has 1 blocks, so that 2 of them cannot",
        ),
        (with_stage(2, attention_blocks=[]), "attention_blocks is empty"),
        (with_stage(2, attention_blocks=[True]), "must be an integer, but is true"),
        (with_stage(0, widths={"from": 8}), "widths of stage 1 of the search space lacks 'to'"),
        (with_stage(0, widths={"from": 8, "to": 16, "by": 8}), "has 'by', and known are from, to, step"),
        (with_stage(0, widths={"from": 8, "to": 20, "step": 8}), "no steps of 8 lead from 8 to 20"),
        (with_stage(0, widths={"from": 16, "to": 8, "step": 8}), "no steps of 8 lead from 16 to 8"),
        (with_stage(0, widths={"from": 8, "to": 16, "step": 0}), "no steps of 0"),
        (
            with_stage(0, widths={"from": 8, "to": "16"}),
            "'to' of widths of stage 1 of the search space must be an",
        ),
    ],
)
def test_what_is_no_space(text, message):
    with pytest.raises(ModelError) as raised:
        SearchSpace.from_json(text)
    assert message in str(raised.value)
    assert "the search space" in str(raised.value)


def test_sources_that_are_none(tmp_path):
    with pytest.raises(ModelError, match=r"'imagenet' is no file, .*: efficientformerv2, fashion"):
        SearchSpace.read("imagenet")
    with pytest.raises(ModelError, match="cannot be read: Is a directory"):
        SearchSpace.read(tmp_path)
    (tmp_path / "space.json").write_text(with_stage(0, widths=[12]))
    with pytest.raises(ModelError, match=r"search space '.*space\.json': stage 1: widths must be"):
        SearchSpace.read(tmp_path / "space.json")
    with pytest.raises(ModelError, match="4 stages, but got 3"):
        SearchSpace(TINY.stages[:3])
    for ratio in (float("nan"), float("inf")):
        with pytest.raises(ModelError, match="stage 1: ratios must be finite numbers"):
            SearchSpace((replace(TINY.stages[0], ratios=(ratio,)), *TINY.stages[1:]))
