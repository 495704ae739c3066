"""Supernets: any subnet that is cut out is the supernet in that configuration, in values and gradients."""

import copy
import random

import pytest
import torch
from checks import one_torch_thread, seeded
from models import randomise, relative_error
from supernets import SPACE, images_for, random_supernet, some_subnets

from effv2_kernels import optimize
from effv2_kernels.bounds import NETWORK
from effv2_kernels.errors import CheckpointError, InputError, ModelError, ResolutionError
from effv2_kernels.families.efficientformer_v2 import Architecture, EfficientFormerV2
from effv2_kernels.search.space import SearchSpace, StageChoices
from effv2_kernels.search.supernet import Supernet, kept_blocks, supernet_file


@pytest.fixture(autouse=True)
def one_thread():
    with one_torch_thread():
        yield


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    "options", [{}, {"distillation": False, "layer_scale_init": None}], ids=["whole", "least"]
)
def test_a_cut_out_subnet_is_the_supernet_in_its_configuration(options, training):
    generator = seeded(1)
    supernet = random_supernet(generator, **options)
    x = images_for(SPACE, generator, batch=3)
    seen = set()
    with torch.no_grad():
        for architecture in some_subnets(generator, 8 if training else 15):
            supernet.select(architecture)
            model = supernet.subnet().train(training)
            expected = supernet.train(training)(x)
            assert relative_error(model(x), expected) <= 1e-12
            assert model.architecture == architecture
            seen.add(round(float(expected.abs().sum()), 9))
            if training:  # the same statistics, too
                for name, value in supernet.shared(architecture).items():
                    torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-12, atol=1e-12)
    assert len(seen) > 7, "the configurations make no difference"


def test_both_classifiers_train_apart():
    supernet = random_supernet(seeded(2))
    x = images_for(SPACE, seeded(3))
    supernet.set_distilled_training()
    assert isinstance(supernet.eval()(x), torch.Tensor)
    plain, distilled = supernet.train()(x)
    assert not torch.equal(plain, distilled)
    supernet.set_distilled_training(False)
    torch.testing.assert_close(supernet(x), (plain + distilled) / 2)
    with pytest.raises(ModelError, match="second classifier"):
        random_supernet(seeded(2), distillation=False).set_distilled_training()


def test_gradients_are_those_of_the_cut_out_model_put_back():
    generator = seeded(4)
    supernet = random_supernet(generator).train()
    x = images_for(SPACE, generator, batch=3)
    for architecture in some_subnets(generator, 4):
        supernet.select(architecture)
        model = supernet.subnet().train()
        supernet.zero_grad(set_to_none=True)
        weights = torch.randn(3, 5, generator=generator, dtype=torch.float64)
        for network in (supernet, model):
            (network(x) * weights).sum().backward()
        shared_names = supernet.shared_names(architecture)
        expected = {name: torch.zeros_like(p) for name, p in supernet.named_parameters()}
        used = set()
        for name, parameter in model.named_parameters():
            shared = shared_names[name]
            expected[shared][tuple(slice(size) for size in parameter.shape)] += parameter.grad
            used.add(shared)
        for name, parameter in supernet.named_parameters():
            assert (parameter.grad is not None) == (name in used), name
            if name in used:
                torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-11)


def test_a_cut_out_subnet_is_optimised():
    generator = seeded(5)
    supernet = random_supernet(generator, dtype=torch.float32)
    x = images_for(SPACE, generator, dtype=torch.float32)
    exact = copy.deepcopy(supernet).double()
    for architecture in some_subnets(generator, 3):
        exact.select(architecture)
        with torch.no_grad():
            fast = optimize(supernet.subnet(architecture))(x)
            assert relative_error(fast, exact(x.double())) <= NETWORK


def test_a_cut_out_subnet_has_weights_of_its_own():
    supernet = random_supernet(seeded(6))
    before = {name: t.clone() for name, t in supernet.state_dict().items()}
    selected = supernet.selected
    model = supernet.subnet(SPACE.smallest())
    assert isinstance(model, EfficientFormerV2)
    assert not model.training
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())
    randomise(model, seeded(7))
    assert all(torch.equal(before[name], t) for name, t in supernet.state_dict().items())
    assert supernet.selected == selected == SPACE.largest()


def test_views_share_memory():
    supernet = random_supernet(seeded(8))
    views = supernet.shared(SPACE.smallest())
    mine = {t.data_ptr() for t in supernet.state_dict().values()}
    assert {t.data_ptr() for t in views.values()} <= mine


def test_subnets_use_all_of_the_supernet():
    """No parameter is left that no subnet has."""
    supernet, generator = Supernet(SPACE, num_classes=2), random.Random(0)
    names = {n for a in some_subnets(generator, 80) for n in supernet.shared_names(a).values()}
    assert names == set(supernet.state_dict())


def test_which_norms_subnets_share():
    """Those of the stages whose width they have in common, and of the same hidden channels."""
    supernet = Supernet(SPACE, num_classes=2)
    depths, ratios = (1, 1, 2, 2), (1, 2, 3, 1)
    one = Architecture((8, 24, 16, 32), depths, ratios, (1, 1))
    wider = Architecture((8, 24, 24, 32), depths, ratios, (1, 1))
    other_ratio = Architecture((8, 24, 16, 32), depths, (1, 2, 1.3, 1), (1, 1))

    def norms(architecture):
        shared = supernet.shared_names(architecture)
        return {ordinary: name for ordinary, name in shared.items() if name.endswith("running_mean")}

    apart = {name for name, norm in norms(one).items() if norms(wider)[name] != norm}
    step = ("q.proj", "k", "v", "v_local")  # sums over stage 3's channels
    assert apart == {
        *(name for name in norms(one) if name.startswith("stages.2.")),
        *(f"stages.3.downsample.attn.{part}.bn.running_mean" for part in step),
    }
    apart = {name for name, norm in norms(one).items() if norms(other_ratio)[name] != norm}
    assert apart == {f"stages.2.blocks.{i}.mlp.{fc}.bn.running_mean" for i in (0, 1) for fc in ("fc1", "mid")}


def test_which_blocks_are_kept():
    def kept(depths, attention):
        widths, ratios = (8, 8, 8, 16), (1, 2, 1, 1)
        architecture = Architecture(widths, depths, ratios, attention)
        return [kept_blocks(SPACE, architecture, stage) for stage in range(4)]

    assert kept((1, 2, 4, 3), (2, 3)) == [(0,), (0, 1), (0, 1, 2, 3), (0, 1, 2)]
    assert kept((0, 1, 2, 2), (1, 0)) == [(), (0,), (0, 3), (0, 1)]
    assert kept((0, 1, 2, 2), (2, 1)) == [(), (0,), (2, 3), (0, 2)]
    assert kept((0, 1, 4, 3), (0, 1)) == [(), (0,), (0, 1, 2, 3), (0, 1, 2)]


def test_selection():
    supernet = Supernet(SPACE, num_classes=2)
    assert supernet.selected == SPACE.largest()
    with supernet.selecting(SPACE.smallest()):
        assert supernet.selected == SPACE.smallest()
    assert supernet.selected == SPACE.largest()
    with pytest.raises(ModelError, match="no such subnet: widths of stage 1 are 8, 16, and not 32"):
        supernet.select(Architecture((32, 8, 8, 16), (0, 1, 1, 2), (1, 2, 1, 1)))
    with pytest.raises(ModelError, match="no such subnet"):
        supernet.subnet(Architecture((8, 8, 8, 16), (0, 1, 1, 2), 4))
    assert supernet.selected == SPACE.largest()


def test_a_copy_is_a_supernet_of_its_own():
    supernet = random_supernet(seeded(9))
    other = copy.deepcopy(supernet)
    other.select(SPACE.smallest())
    x = images_for(SPACE, seeded(10))
    with torch.no_grad():
        assert relative_error(other(x), supernet(x)) > 1e-3
        assert relative_error(supernet.subnet()(x), supernet(x)) <= 1e-12


@pytest.mark.parametrize(
    "options", [{"num_classes": 0}, {"drop_path_rate": 1.0}, {"drop_path_rate": -0.1}], ids=str
)
def test_options_that_are_none(options):
    with pytest.raises(ModelError, match="a supernet needs"):
        Supernet(SPACE, **options)


def test_images_that_do_not_fit():
    supernet = random_supernet(seeded(11))
    with pytest.raises(InputError, match=r"takes images \(N, 2, H, W\), but got \(1, 3, 39, 53\)"):
        supernet(torch.zeros(1, 3, 39, 53))
    with pytest.raises(ResolutionError):
        supernet(torch.zeros(1, 2, 64, 64, dtype=torch.float64))


def test_the_engine_takes_subnets_alone():
    with pytest.raises(ModelError):
        optimize(random_supernet(seeded(12), dtype=torch.float32))


def test_drop_path_is_for_training_alone_and_rises():
    supernet = random_supernet(seeded(13), drop_path_rate=0.9)
    x = images_for(SPACE, seeded(14))
    with torch.no_grad():
        assert relative_error(supernet.subnet()(x), supernet(x)) <= 1e-12
    rates = []

    def watched(branch, rate):
        rates.append(rate)
        return branch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("effv2_kernels.search.supernet.supernet.dropped", watched)
        supernet.train()(x)
        assert len(rates) == 14  # 10 blocks, 5 with attention, and the first has a rate of 0
        supernet.eval()(x)
    assert len(rates) == 14
    assert rates == sorted(rates)
    assert rates[0] > 0
    assert rates[-1] == pytest.approx(0.9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saved_and_loaded(dtype, tmp_path):
    pytest.importorskip("safetensors")
    supernet = random_supernet(seeded(15), dtype=dtype, drop_path_rate=0.1, layer_scale_init=None)
    path = tmp_path / "supernet.safetensors"
    for _ in range(2):  # over the old one as well
        supernet_file.save(supernet, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    loaded = supernet_file.load(path, SPACE)
    assert loaded.space == SPACE
    assert (loaded.num_classes, loaded.drop_path_rate, loaded.layer_scale_init) == (5, 0.1, None)
    expected, state = supernet.state_dict(), loaded.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[n], t) and state[n].dtype == t.dtype for n, t in expected.items())


def test_files_that_are_refused(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    supernet = random_supernet(seeded(16), dtype=torch.float32)
    path = tmp_path / "supernet.safetensors"
    supernet_file.save(supernet, path)
    other = SearchSpace((*SPACE.stages[:3], StageChoices((16,), (2, 3), (1, 2), (0, 1, 3))), (39, 53), 2)
    with pytest.raises(CheckpointError, match=r"widths of stage 4 are \(16, 32\) in the file, and \(16,\)"):
        supernet_file.load(path, other)
    with pytest.raises(CheckpointError, match="2x39x53 in the file, and 3x39x53 are asked for"):
        supernet_file.load(path, SearchSpace(SPACE.stages, (39, 53), 3))
    with pytest.raises(CheckpointError, match="is not a file"):
        supernet_file.load(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="cannot write"):
        supernet_file.save(supernet, tmp_path / "absent" / "supernet")

    torch.save(supernet.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="is no supernet of version 1"):
        supernet_file.load(tmp_path / "weights.pth")
    safetensors.save_file({"a": torch.zeros(1)}, tmp_path / "a")
    with pytest.raises(CheckpointError, match="is no supernet"):
        supernet_file.load(tmp_path / "a")
    content = path.read_bytes()
    (tmp_path / "cut").write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        supernet_file.load(tmp_path / "cut")
    (tmp_path / "changed").write_bytes(content.replace(b'num_classes\\": 5', b'num_classes\\": 6'))
    with pytest.raises(CheckpointError, match="of another shape: head"):
        supernet_file.load(tmp_path / "changed")
    (tmp_path / "no_space").write_bytes(content.replace(b'widths\\": [8', b'widths\\": [9'))
    with pytest.raises(CheckpointError, match="is damaged: its search space: stage 1: widths must be"):
        supernet_file.load(tmp_path / "no_space")
