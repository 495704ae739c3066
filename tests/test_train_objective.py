"""What a step minimises: the losses by their formulas, hard distillation, and teachers that are refused."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from checks import one_torch_thread, seeded
from torch import nn

timm = pytest.importorskip("timm")

from training import PLAIN, RECIPE, SIZE, same, tiny_model  # noqa: E402

from effv2_kernels import create_model  # noqa: E402
from effv2_kernels.errors import CheckpointError, InputError, UnavailableError, UnknownNameError  # noqa: E402
from effv2_kernels.shapes import randomise  # noqa: E402
from effv2_kernels.train import Classification, Teacher  # noqa: E402
from effv2_kernels.train.data import mixup  # noqa: E402


class Linear(nn.Module):
    """Logits that are easy to follow: of the mean of each channel."""

    def __init__(self, classes=4, seed=0, pair=False):
        super().__init__()
        torch.manual_seed(seed)
        self.heads = nn.ModuleList(nn.Linear(3, classes) for _ in range(1 + pair))

    def forward(self, x):
        found = tuple(head(x.mean(dim=(2, 3))) for head in self.heads)
        return found if len(found) > 1 else found[0]


def images(count=6):
    return torch.randn(count, 3, SIZE, SIZE, generator=seeded(11))


def classes(count=6):
    return torch.randint(4, (count,), generator=seeded(12))


def backward(objective, model, x, targets, scale=lambda loss: loss):
    model.zero_grad()
    found = objective.backward(model, x, targets, nullcontext, scale)
    return found, [p.grad.clone() for p in model.parameters()]


def expected_gradients(model, loss):
    return list(torch.autograd.grad(loss, list(model.parameters())))


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing):
    model, x, targets = Linear(), images(), classes()
    found, gradients = backward(Classification(replace(PLAIN, smoothing=smoothing)), model, x, targets)
    loss = F.cross_entropy(model(x), targets, label_smoothing=smoothing)
    assert found == {"loss": pytest.approx(float(loss.detach()), rel=1e-5)}
    assert_same(gradients, expected_gradients(model, loss))


def test_mixed_images_have_soft_targets():
    model, targets = Linear(), classes()
    torch.manual_seed(3)
    mixed, soft = mixup(RECIPE, 4)(images(), targets)
    assert soft.shape == (6, 4)
    torch.testing.assert_close(soft.sum(1), torch.ones(6))
    found, gradients = backward(Classification(RECIPE), model, mixed, soft)
    loss = F.cross_entropy(model(mixed), soft)
    assert found["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert_same(gradients, expected_gradients(model, loss))


def test_hard_distillation():
    """(1 - alpha) of the targets for one classifier, alpha of the teacher's decisions for the other."""
    model, x, targets = Linear(pair=True), images(), classes()
    teacher = Teacher(Linear(seed=5), name="linear", classes=4, img_size=SIZE)
    recipe = replace(PLAIN, smoothing=0.0, alpha=0.3)
    found, gradients = backward(Classification(recipe, teacher), model, x, targets, lambda loss: loss / 4)
    plain, distilled = model(x)
    labels = Linear(seed=5)(x).argmax(1)
    parts = F.cross_entropy(plain, targets), F.cross_entropy(distilled, labels)
    assert found["target_loss"] == pytest.approx(float(parts[0].detach()), rel=1e-5)
    assert found["teacher_loss"] == pytest.approx(float(parts[1].detach()), rel=1e-5)
    loss = 0.7 * parts[0] + 0.3 * parts[1]
    assert found["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert_same(gradients, expected_gradients(model, loss / 4))
    assert all(p.grad is None for p in teacher.model.parameters())


def test_one_classifier_learns_from_both():
    model, x, targets = Linear(), images(), classes()
    teacher = Teacher(Linear(seed=5), name="linear", classes=4, img_size=SIZE)
    found, _ = backward(Classification(replace(PLAIN, smoothing=0.0), teacher), model, x, targets)
    logits = model(x).detach()
    expected = (F.cross_entropy(logits, targets) + F.cross_entropy(logits, teacher.labels(x))) / 2
    assert found["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_a_student_with_both_classifiers_learns_with_both():
    """EfficientFormerV2's two: head learns the targets, head_dist the teacher."""
    model = tiny_model().train()
    model.set_distilled_training()
    teacher = Teacher(tiny_model(seed=9), name="tiny", classes=10, img_size=SIZE)
    for alpha, learning, idle in ((0.0, "head", "head_dist"), (1.0, "head_dist", "head")):
        with one_torch_thread():
            backward(Classification(replace(PLAIN, alpha=alpha), teacher), model, images(), classes())
        assert float(getattr(model, learning).weight.grad.abs().max()) > 0
        assert float(getattr(model, idle).weight.grad.abs().max()) == 0


def test_a_teacher_sees_images_as_it_was_trained():
    """One that expects other means and deviations gets the same pixels, normalised anew."""
    pixels = torch.rand(4, 3, SIZE, SIZE, generator=seeded(13))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    seen = []

    class Watching(Linear):
        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    model = Watching()
    model.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    Teacher(model, name="watching", classes=4, img_size=SIZE).labels((pixels - mean) / std)
    torch.testing.assert_close(seen[-1], (pixels - 0.5) / 0.25, rtol=1e-4, atol=1e-5)


def test_a_teacher_of_grey_images_sees_them_as_it_was_trained():
    """By means over the colours, as timm's loader normalises them."""

    class Seen(nn.Module):
        def __init__(self):
            super().__init__()
            self.pretrained_cfg = {"mean": (0.5, 0.4, 0.6), "std": (0.2, 0.3, 0.1)}

        def forward(self, x):
            self.x = x
            return x.flatten(1)[:, :4]

    teacher = Teacher(Seen(), name="seen", classes=4, img_size=SIZE, channels=1)
    pixels = torch.rand(2, 1, SIZE, SIZE)
    teacher.labels((pixels - 0.449) / 0.226)
    torch.testing.assert_close(teacher.model.x, (pixels - 0.5) / 0.2, rtol=1e-3, atol=2e-3)
    with pytest.raises(InputError, match="for images of 3 channels, and these have 1: give --teacher-check"):
        Teacher.named("regnety_160", classes=4, img_size=SIZE, channels=1)


def test_a_teacher_on_a_cpu_is_optimised():
    """And takes the same classes; one that cannot be optimised runs as it is."""
    from effv2_kernels.model import OptimizedModel

    torch.manual_seed(3)
    model = tiny_model(seed=9)
    randomise(model)
    teacher = Teacher(model, name="tiny", classes=10, img_size=SIZE)
    x = torch.randn(16, 3, SIZE, SIZE)
    plain = teacher.labels(x)
    teacher.to(torch.device("cpu"))
    assert isinstance(teacher._run, OptimizedModel)
    assert torch.equal(teacher.labels(x), plain)
    assert len(plain.unique()) > 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("effv2_kernels.optimize", lambda model: (_ for _ in ()).throw(UnavailableError("no")))
        assert teacher.to(torch.device("cpu"))._run is model


def test_a_teacher_of_timm_for_grey_images(tmp_path):
    torch.manual_seed(0)
    made = timm.create_model("mobilenetv3_small_050", num_classes=4, in_chans=1)
    torch.save(made.state_dict(), tmp_path / "t.pth")
    found = Teacher.named(
        "mobilenetv3_small_050", checkpoint=str(tmp_path / "t.pth"), classes=4, img_size=SIZE, channels=1
    )
    assert same(found.model.state_dict(), made.state_dict())
    assert found.labels(torch.zeros(2, 1, SIZE, SIZE)).shape == (2,)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_teacher_of_other_sizes_needs_weights(channels):
    """No weights of it are published, whatever its images."""
    with pytest.raises(CheckpointError, match=r"t\.json is a network of a file, .* --teacher-check"):
        Teacher.named("t.json", classes=4, img_size=SIZE, channels=channels)


@pytest.mark.parametrize("nested", [None, "model", "state_dict_ema"])
@pytest.mark.parametrize("ours", [True, False])
def test_a_teacher_of_a_file(tmp_path, nested, ours):
    """Of this package by the name of its variant, of timm by that of its model."""
    name = "efficientformerv2_s0" if ours else "test_resnet"
    torch.manual_seed(21)
    model = (
        create_model(name, img_size=SIZE, num_classes=4) if ours else timm.create_model(name, num_classes=4)
    ).eval()
    weights = model.state_dict()
    file = tmp_path / "teacher.pth"
    torch.save(weights if nested is None else {nested: weights}, file)
    teacher = Teacher.named(name, checkpoint=str(file), classes=4, img_size=SIZE)
    assert same(teacher.model.state_dict(), weights)
    assert not teacher.model.training
    told = f"the teacher {name} tells 4 classes apart, and the data has 7: take a teacher that was trained on"
    with pytest.raises(InputError, match=told):
        Teacher.named(name, checkpoint=str(file), classes=7, img_size=SIZE)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "efficientformerv2_s0",
            {"img_size": 64},
            "is for images of 17 to 32 pixels a side, and these have 64",
        ),
        (
            "efficientformerv2_s0",
            {"channels": 1},
            "is for images of 3 channels, and these have 1: take another",
        ),
        (
            "efficientformerv2_s1",
            {},
            "the weights are of efficientformerv2_s0: give --teacher efficientformerv2_s0",
        ),
    ],
)
def test_a_teacher_of_other_images_or_another_model(tmp_path, name, options, message):
    """Nobody can change the images of a run to those of its teacher by an option of create_model."""
    torch.save(
        create_model("efficientformerv2_s0", img_size=SIZE, num_classes=4).state_dict(), tmp_path / "t"
    )
    options = {"classes": 4, "img_size": SIZE, **options}
    with pytest.raises((CheckpointError, InputError), match=message) as raised:
        Teacher.named(name, checkpoint=str(tmp_path / "t"), **options)
    assert "pass " not in str(raised.value)


def test_a_file_of_another_model_is_not_told_key_by_key(tmp_path):
    weights = {f"layer.{i}.weight": torch.zeros(1) for i in range(2000)}
    torch.save(weights, tmp_path / "t.pth")
    with pytest.raises(CheckpointError, match="give a file of this model and these classes") as raised:
        Teacher.named("test_resnet", checkpoint=str(tmp_path / "t.pth"), classes=4, img_size=SIZE)
    assert len(str(raised.value)) < 700


def test_teachers_that_are_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"the teacher linear tells 4 classes apart, and the data has 10: take"
    ):
        Teacher(Linear(), name="linear", classes=10, img_size=SIZE)
    with pytest.raises(InputError, match="the teacher pair gives tuple"):
        Teacher(Linear(pair=True), name="pair", classes=4, img_size=SIZE)
    with pytest.raises(InputError, match="the teacher tiny does not take images of 3x64x64 \\(the attention"):
        Teacher(tiny_model(), name="tiny", classes=10, img_size=64)
    with pytest.raises(UnknownNameError, match=r"unknown teacher 'regnety_16'\. Did you mean regnety_160"):
        Teacher.named("regnety_16", classes=10, img_size=SIZE)
    with pytest.raises(CheckpointError, match=r"no-such\.pth' is not a file"):
        Teacher.named("test_resnet", checkpoint=str(tmp_path / "no-such.pth"), classes=4, img_size=SIZE)


@pytest.mark.parametrize("name", ["regnety_160", "efficientformerv2_s1"])
def test_weights_that_cannot_be_fetched(monkeypatch, tmp_path, name):
    """Without a network; nothing is asked of the hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    if name.startswith("regnety"):  # 84 million random weights would be made before the download fails
        monkeypatch.setattr(
            timm, "create_model", lambda *_, **__: (_ for _ in ()).throw(OSError("no network"))
        )
    with pytest.raises(CheckpointError, match=rf"the teacher {name}: .*cannot"):
        Teacher.named(name, classes=1000, img_size=224)
