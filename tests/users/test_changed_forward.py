"""People change what a model computes and keep its structure: they derive a class, replace a forward, or edit
a copy of the file. Run as the standard network it would give wrong numbers without a word.

Fresh models have layer scales of 1e-5, biases of 0 and norms at the identity, which hide such a change from a
run of the model as it is.
"""

import types
from functools import partial

import edited_copies
import pytest
import torch
from checks import one_torch_thread
from edited_copies import (
    BIAS,
    TIMM_SIZES,
    assert_refused,
    assert_same,
    official_copy,
    official_model,
    own_model,
    timm_class,
    timm_copy,
)
from models import randomise, relative_error
from torch import nn

from effv2_kernels import optimize
from effv2_kernels.errors import ModelError
from effv2_kernels.reference import EfficientFormerV2

weights = edited_copies.weights  # a fixture


@pytest.fixture(autouse=True)
def one_thread():
    with one_torch_thread():
        yield


@pytest.mark.situation(
    "derive a class from the model and override its `forward`",
    "refused: put the change into a module around it",
)
@pytest.mark.parametrize("origin", ["timm", "own"])
def test_a_derived_class_that_ends_in_a_softmax(weights, origin):
    base = timm_class() if origin == "timm" else EfficientFormerV2

    class Probabilities(base):
        def forward(self, x):
            return super().forward(x).softmax(-1)

    model = weights(Probabilities(**TIMM_SIZES) if origin == "timm" else own_model(Probabilities))
    assert_refused(model, r"overrides the forward of EfficientFormerV2.*Probabilities.*module around it")
    with pytest.raises(ModelError, match="overrides the forward"):
        optimize(model, verify=False)


def test_the_advice_works(generator):
    """The change in a module around it."""
    model = nn.Sequential(timm_class()(**TIMM_SIZES), nn.Softmax(-1))
    randomise(model, generator)
    fast = optimize(model)
    x = torch.randn(1, 3, 64, 64, generator=generator)
    with torch.no_grad():
        assert relative_error(fast(x), model(x)) < 1e-5


@pytest.mark.parametrize("method", ["forward_features", "forward_head"])
def test_a_derived_class_that_overrides_a_step(weights, method):
    base = timm_class()
    changed = {method: lambda self, x, **options: getattr(base, method)(self, x, **options) * 2}
    model = weights(type("Doubled", (base,), changed)(**TIMM_SIZES))
    assert_refused(model, rf"overrides the {method} of EfficientFormerV2")


@pytest.mark.situation(
    "derive a class from the model and add methods or attributes", "works: the result has the attributes"
)
@pytest.mark.parametrize("origin", ["timm", "own"])
def test_a_derived_class_that_changes_nothing(weights, origin, generator):
    base = timm_class() if origin == "timm" else EfficientFormerV2

    class Named(base):
        label = "mine"

        def describe(self):
            return self.label

    size = 64 if origin == "timm" else 32
    model = weights(Named(**TIMM_SIZES) if origin == "timm" else own_model(Named))
    assert_same(model, torch.randn(1, 3, size, size, generator=generator))


@pytest.mark.situation(
    "replace `forward` of a model or of a module in it", "refused: put the change into a module around it"
)
@pytest.mark.parametrize(
    "path", ["", "stages.2.blocks.1", "stages.0.blocks.0.mlp", "stages.1.downsample.conv"]
)
def test_a_forward_on_the_instance(weights, path):
    model = weights(timm_class()(**TIMM_SIZES))
    module = model.get_submodule(path)
    forward = module.forward
    module.forward = lambda x: forward(x) * 2
    where = "the model" if not path else f"'{path}'"
    assert_refused(
        model, rf"{where} .*has a forward of its own on the instance.*what it computes is not known"
    )
    model = weights(official_model())
    model.network[0][0].mlp.forward = types.MethodType(lambda self, x: x, model.network[0][0].mlp)
    assert_refused(model, r"'network.0.0.mlp' \(Perceptron\) has a forward of its own")
    model = weights(own_model())
    model.stages[0].blocks[0].forward = partial(torch.mul, other=2)
    assert_refused(model, r"'stages.0.blocks.0' \(BlockLayer\) has a forward of its own")


def test_a_method_that_a_class_chose_for_its_instance(weights, generator):
    """A copy may set ``self.forward`` to one of its own methods; a run tells whether it is right."""
    edits = [
        (
            "    def forward(self, x):\n        x = self.patch_embed(x)",
            "    def usual(self, x):\n        x = self.patch_embed(x)",
        ),
        (
            "        self.fork_feat = fork_feat\n",
            "        self.fork_feat = fork_feat\n        self.forward = self.usual\n",
        ),
    ]
    assert_same(
        weights(official_model(official_copy(*edits))), torch.randn(1, 3, 64, 64, generator=generator)
    )
    edits += [("return (self.head(pooled) + self.dist_head(pooled)) / 2 if", "return self.head(pooled) if")]
    assert_refused(weights(official_model(official_copy(*edits))), "does not compute what its structure says")


@pytest.mark.situation(
    "replace `forward` in the class of a model", "refused: undo it, put it into a module around"
)
def test_a_forward_in_the_class(weights, monkeypatch):
    cls = timm_class()
    model, usual = weights(cls(**TIMM_SIZES)), cls.forward
    monkeypatch.setattr(cls, "forward", lambda self, x: usual(self, x).softmax(-1))
    assert_refused(
        model, r"class whose forward was replaced by test_changed_forward.*Undo the change of timm"
    )
    monkeypatch.undo()
    norm = nn.modules.batchnorm._BatchNorm
    monkeypatch.setattr(norm, "forward", lambda self, x: x)
    assert_refused(weights(official_model()), r"class whose forward was replaced.*torch.nn.*_BatchNorm")


class DoubledNorm(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class DistributedNorm(nn.BatchNorm2d):
    """Like those of detection libraries: another one in training, BatchNorm otherwise."""

    def forward(self, x):
        assert not self.training
        return super().forward(x)


def with_norm(model, cls):
    for module in [*model.modules()]:
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                new = cls(child.num_features)
                new.load_state_dict(child.state_dict())
                setattr(module, name, new)
    model.eval()
    return model


def test_a_norm_that_computes_something_else(weights):
    model = with_norm(weights(official_model()), DoubledNorm)
    assert_refused(
        model, r"'patch_embed.1' \(DoubledNorm\).*overrides the forward of nn.BatchNorm2d.*something else"
    )


@pytest.mark.situation("use norms of another class that equal BatchNorm in eval mode", "works")
def test_a_norm_that_computes_the_same(weights, generator):
    model = with_norm(weights(official_model()), DistributedNorm)
    assert_same(model, torch.randn(1, 3, 64, 64, generator=generator))


@pytest.mark.situation(
    "call `nn.SyncBatchNorm.convert_sync_batchnorm` on timm's model",
    "refused: use `timm.layers.convert_sync_batchnorm`",
)
def test_norms_converted_for_distributed_training(weights, generator):
    layers = pytest.importorskip("timm.layers")
    convert = nn.SyncBatchNorm.convert_sync_batchnorm
    assert_refused(
        convert(weights(timm_class()(**TIMM_SIZES))),
        r"'stem.conv1.bn' \(SyncBatchNorm\) holds an activation.*timm.layers.convert_sync_batchnorm",
    )
    images = torch.randn(1, 3, 64, 64, generator=generator)
    assert_same(layers.convert_sync_batchnorm(weights(timm_class()(**TIMM_SIZES))), images)
    assert_same(convert(weights(official_model())), images)  # its activations are modules of their own


SECOND_BIAS = ("p = (logits + self.bias_for(logits)).softmax(-1)", "p = logits.softmax(-1)")
HEAD = ("self.talking_head2(self.talking_head1(logits + self.bias_for(logits)).softmax(-1))",)
TALKING = (*HEAD, "self.talking_head1(logits + self.bias_for(logits)).softmax(-1)")
RETURN = "            return features\n"

OFFICIAL_EDITS = {
    "no attention bias": (BIAS, False, r"'network.4.1' \(Unit\): the relative error"),
    "no bias between stages": (SECOND_BIAS, False, r"'network.5' \(Step\): the relative error"),
    "no second talking head": (TALKING, False, r"'network.4.1' \(Unit\)"),
    "a tanh in the MLP": (
        ("return self.norm2(self.fc2(", "return self.norm2(torch.tanh(self.fc2("),
        False,
        None,
    ),
    "another residual": (
        ("return x + self.drop_path(self.layer_scale_2", "return x - self.drop_path(self.layer_scale_2"),
        False,
        r"'network.0.0'",
    ),
    "the sum of two heads": (
        ("self.dist_head(pooled)) / 2", "self.dist_head(pooled))"),
        False,
        "what is done with",
    ),
    "three maps": (
        (RETURN, "            return features[1:]\n"),
        True,
        "returns 3 feature maps where 4 were",
    ),
    "a tuple": (
        (RETURN, "            return tuple(features)\n"),
        True,
        "returns a tuple of 4 where a list of 4",
    ),
    "a dict": (
        (RETURN, "            return dict(enumerate(features))\n"),
        True,
        "returns a dict of 4 where a list",
    ),
    "maps in another order": ((RETURN, "            return features[::-1]\n"), True, "where .* was expected"),
    "half precision": (
        (RETURN, "            return [y.half() for y in features]\n"),
        True,
        "returns torch.float16",
    ),
}
OFFICIAL_EDITS["a tanh in the MLP"] = (
    (
        "return self.norm2(self.fc2(self.act(self.mid_norm(self.mid(x)))))",
        "return self.norm2(self.fc2(torch.tanh(self.mid_norm(self.mid(x)))))",
    ),
    False,
    r"'network.0.0' \(Unit\)",
)


@pytest.mark.situation("edit a copy of the official file", "refused: give the model as its authors wrote it")
@pytest.mark.parametrize("case", OFFICIAL_EDITS)
def test_an_edited_copy_of_the_official_file(weights, case):
    edit, features, message = OFFICIAL_EDITS[case]
    model = weights(official_model(official_copy(edit), fork_feat=features))
    assert_refused(model, rf"Official does not compute what its structure says(.|\n)*{message}")
    assert optimize(model, verify=False)._verified is None


TIMM_EDITS = {
    "no attention bias": (
        "self.get_attention_biases(x.device)\n        attn = self.talking_head1(attn)\n",
        "0\n        attn = self.talking_head1(attn)\n",
    ),
    "no second talking head": ("        attn = self.talking_head2(attn)\n", ""),
    "a softmax": (
        "        x = self.forward_head(x)\n        return x",
        "        return self.forward_head(x).softmax(-1)",
    ),
    "no norm": (
        "        x = self.norm(x)\n        return x\n\n    def forward_head",
        "        return x\n\n    def forward_head",
    ),
}


@pytest.mark.situation("edit a copy of timm's file", "refused: give the model as its authors wrote it")
@pytest.mark.parametrize("case", TIMM_EDITS)
def test_an_edited_copy_of_timms_file(weights, case):
    model = weights(timm_copy(TIMM_EDITS[case]).EfficientFormerV2(**TIMM_SIZES))
    assert_refused(model, "EfficientFormerV2 does not compute what its structure says")
    assert optimize(model, verify=False)._verified is None


@pytest.mark.situation("copy timm's or the official file into a project", "works")
def test_copies_that_change_nothing(weights, generator):
    images = torch.randn(1, 3, 64, 64, generator=generator)
    assert_same(weights(timm_copy().EfficientFormerV2(**TIMM_SIZES)), images)
    assert_same(weights(official_model(official_copy())), images)
    assert_same(weights(official_model(official_copy(), fork_feat=True, norms=True)), images)
    assert_same(weights(official_model(official_copy(), fork_feat=True, dense=True)), images)


def test_weights_that_hide_everything(generator):
    """Convolutions so small that nothing of the attention is left, in a copy that leaves out its bias."""
    for copied, right in ((official_copy(BIAS), False), (official_copy(), True)):
        model = official_model(copied)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(model.head.weight)
        nn.init.zeros_(model.dist_head.weight)
        model.eval()
        if right:
            optimize(model)
        else:
            assert_refused(model, r"'network.4.1' \(Unit\)")


def test_a_model_that_cannot_run_at_all(generator):
    edit = ("        x = self.patch_embed(x)\n", "        x = self.patch_embed(x).missing\n")
    model = randomise(official_model(official_copy(edit)), generator)
    assert_refused(
        model, r"Official cannot run on a random image of \(1, 3, 64, 64\).*AttributeError.*verify=False"
    )


def test_a_copy_that_takes_one_size_of_those_that_fit(generator):
    """Biases of a backbone fit any size; this one wants squares, which is the second size that is tried."""
    edit = (
        "        x = self.patch_embed(x)\n",
        "        assert x.shape[2] == x.shape[3]\n        x = self.patch_embed(x)\n",
    )
    model = randomise(official_model(official_copy(edit), fork_feat=True, dense=True), generator)
    assert_same(model, torch.randn(1, 3, 64, 64, generator=generator))
