"""The whole chain in miniature, on digits: supernet, table, searches, fine-tuning, comparison."""

import itertools
import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from checks import one_torch_thread

pytest.importorskip("timm")
pytest.importorskip("scipy")

from training import write_digits

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "bench" / "search").is_dir():
    pytest.skip("the study lies in a source checkout alone", allow_module_level=True)
sys.path.insert(0, str(ROOT))

import effv2_kernels  # noqa: E402
from bench.search import imagenet  # noqa: E402
from bench.search import table as tables  # noqa: E402
from bench.search.chain import JOINT, METHODS, RANDOM, SPEED, Chain, latency_table  # noqa: E402
from bench.search.commands import Command, run  # noqa: E402
from bench.search.comparison import compare, packed, unpacked  # noqa: E402
from bench.search.scaled import scaled_s0  # noqa: E402
from bench.search.settings import SETTINGS  # noqa: E402
from effv2_kernels.families.efficientformer_v2 import VARIANTS, Architecture  # noqa: E402
from effv2_kernels.search.cost import Costs  # noqa: E402
from effv2_kernels.search.space import SearchSpace  # noqa: E402
from effv2_kernels.search.step import Step  # noqa: E402
from effv2_kernels.search.supernet import supernet_file  # noqa: E402
from effv2_kernels.search.supernet.calibration import recalibrate  # noqa: E402

SPACE = SearchSpace.read(SETTINGS["digits"].space)


@pytest.fixture(autouse=True)
def one_thread():
    with one_torch_thread():
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A chain that has run, and what its comparison wrote."""
    folder = tmp_path_factory.mktemp("study")
    setting = replace(SETTINGS["digits"], data=write_digits(folder / "digits", 640, 200))
    chain = Chain(setting, 3, folder / "seed-3", folder / "latency.json")
    with one_torch_thread(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT / "tests" / "site"))
        done = {"latency table": run(latency_table(setting, chain.table)), **chain.run()}
        compare(chain, done, folder / "seed-3.json", rounds=3)
    return chain, json.loads((folder / "seed-3.json").read_text())


def steps_of(chain, method):
    first, *lines = map(json.loads, (chain.folder / method / "steps.jsonl").read_text().splitlines())
    return first, [Step.from_json(line) for line in lines]


def test_every_budget_holds(study):
    chain, written = study
    limits = chain.budgets()
    assert written["budgets"] == limits
    for method in (JOINT, SPEED, RANDOM):
        first, steps = steps_of(chain, method)
        metrics = steps[-1].chosen.metrics
        assert metrics["latency"] <= limits["latency"]
        assert method == SPEED or metrics["parameters"] <= limits["parameters"]
        assert set(first["budgets"]) == ({"latency"} if method == SPEED else {"latency", "parameters"})
        assert set(first["exponents"]) == set(first["budgets"])
        assert written["networks"][method]["metrics"] == metrics
        assert Architecture.read(chain.architecture(method)) == steps[-1].chosen.architecture
    # The space has fewer networks than that within the budgets, and each that random search made is full.
    assert 1 < chain.evaluations(RANDOM) <= chain.evaluations(JOINT)


def test_greedy_steps_are_monotone(study):
    """Down by one action of the frontier each, until every budget holds, and from there up."""
    chain, _ = study
    for method in (JOINT, SPEED):
        _, steps = steps_of(chain, method)
        assert steps[0].chosen.architecture == SPACE.largest()
        filling = False
        for before, after in itertools.pairwise(steps):
            one, two = before.chosen, after.chosen
            filling = filling or after.options[0].gain is None
            near = (SPACE.growth if filling else SPACE.frontier)(one.architecture)
            assert two.architecture in {action.architecture for action in near}
            smaller, larger = (two, one) if not filling else (one, two)
            assert smaller.metrics["macs"] <= larger.metrics["macs"]
            assert smaller.metrics["parameters"] <= larger.metrics["parameters"]


def test_what_was_cut_out_is_the_supernets(study):
    """To 1e-12 in float64, with the statistics that the subnet got of its own."""
    chain, _ = study
    torch.manual_seed(0)
    batches = [torch.randn(8, 1, 36, 36, dtype=torch.float64) for _ in range(2)]
    for method in METHODS:
        architecture = Architecture.read(chain.architecture(method))
        supernet = supernet_file.load(chain.supernet).double()
        model = supernet.subnet(architecture)
        with supernet.selecting(architecture), torch.no_grad():
            torch.testing.assert_close(supernet(batches[0]), model(batches[0]), rtol=0, atol=1e-12)
            for each in (supernet, model):
                recalibrate(each, batches)
            torch.testing.assert_close(supernet(batches[0]), model(batches[0]), rtol=0, atol=1e-12)
        # What was written is those weights.
        weights = chain.folder / method / "weights.safetensors"
        sizes = {"num_classes": 10, "img_size": 36, "in_channels": 1}
        made = effv2_kernels.create_model(architecture=architecture, checkpoint=weights, **sizes)
        shared = supernet.shared(architecture)
        for name, value in made.named_parameters():
            given = shared[name.replace("head_dist", "head")]
            assert torch.equal(value.double(), given), name


def test_a_search_again_and_one_that_goes_on_end_alike(study, tmp_path, monkeypatch):
    chain, _ = study
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "site"))
    files = ("steps.jsonl", "evaluations.jsonl", "architecture.json", "weights.safetensors")
    whole = {name: (chain.folder / JOINT / name).read_bytes() for name in files}
    command = chain._search(JOINT)
    words = [*command.words[: command.words.index("--output")], "--output", str(tmp_path / "again")]
    words += command.words[command.words.index("--output") + 2 :]
    (tmp_path / "again").mkdir()
    for name in files[:2]:
        cut = whole[name][: len(whole[name]) * 2 // 3]
        (tmp_path / "again" / name).write_bytes(cut)
    run(Command(words, tmp_path / "again.done"))
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == whole[name], name


def test_the_comparison_is_of_the_networks(study):
    chain, written = study
    for method in METHODS:
        row = written["networks"][method]
        assert row["images"] == 200
        hits = unpacked(row["correct"], 200)
        assert sum(hits) / 200 == row["top1"]
        assert row["relative_times"]["median"] > 0
        last = (chain.folder / method / "fine-tuned" / "log.csv").read_text().splitlines()
        told = dict(zip(last[0].split(","), last[-1].split(","), strict=True))
        assert float(told["top1"]) == pytest.approx(row["top1"], abs=1e-6)
    assert written["networks"][JOINT]["top1"] > 0.2, "nothing has learnt anything"
    assert set(written["commands"]) >= {
        "latency table",
        "supernet",
        f"search, {JOINT}",
        f"fine-tuning, {RANDOM}",
    }
    assert all(one["starts"] == 1 and one["seconds"] > 0 for one in written["commands"].values())
    assert not any(str(ROOT) in one["command"] for one in written["commands"].values())
    # Once more, nothing is run; and with another setting nothing is mistaken for what was asked.
    assert {name: asdict(one) for name, one in chain.run().items()}.items() <= written["commands"].items()
    other = replace(chain.setting, supernet={**chain.setting.supernet, "epochs": 3})
    with pytest.raises(SystemExit, match="is of another command: move the folder away"):
        replace(chain, setting=other).run()


def test_the_table_and_the_picture(study, tmp_path, monkeypatch):
    _, written = study
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- study:begin -->\n<!-- study:end -->\nafter\n")
    (tmp_path / "one.json").write_text(json.dumps(written))
    (tmp_path / "two.json").write_text(json.dumps(written | {"seed": 4}))
    given = ["table.py", tmp_path / "two.json", tmp_path / "one.json", "--kept", tmp_path / "kept.json"]
    monkeypatch.setattr(
        sys, "argv", [*map(str, given), "--page", str(page), "--svg", str(tmp_path / "a.svg")]
    )
    tables.main()
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    for name in tables.NAMES.values():
        assert f"| {name} |" in text
    assert len(json.loads((tmp_path / "kept.json").read_text())) == 2
    assert "seeds 3, 4" in text
    assert b"joint search: " in (tmp_path / "a.svg").read_bytes()
    # From what was kept, the same.
    monkeypatch.setattr(sys, "argv", [*sys.argv[:1], *sys.argv[3:]])
    page.write_text("before\n<!-- study:begin -->\n<!-- study:end -->\nafter\n")
    tables.main()
    assert page.read_text() == text


def test_other_budgets_have_a_table_of_their_own(study, tmp_path, monkeypatch):
    """Beside what was kept, in whose place comes what is given of the same setting and seed."""
    _, written = study
    page, kept, given = (tmp_path / name for name in ("page.md", "kept.json", "given.json"))
    marks = ("study:begin", "study:end", "other-budgets:begin", "other-budgets:end")
    page.write_text("".join(f"<!-- {mark} -->\n" for mark in marks))
    kept.write_text(json.dumps([written, written | {"setting": "fashion-fast", "seed": 0}]))
    given.write_text(json.dumps(written | {"setting": "fashion-fast", "seed": 0, "again": True}))
    options = ["--kept", kept, "--page", page, "--svg", tmp_path / "a.svg"]
    monkeypatch.setattr(sys, "argv", ["table.py", str(given), *map(str, options)])
    tables.main()
    assert [seed.get("again", False) for seed in json.loads(kept.read_text())] == [False, True]
    rows = [line for line in page.read_text().splitlines() if line.startswith("| `fashion-fast` | 0 | ")]
    accuracy = 100 * written["networks"][JOINT]["top1"]
    assert len(rows) == 1
    assert f"| {accuracy:.2f} | " in rows[0]


def seed_of(number, **hits):
    return {
        "seed": number,
        "networks": {name: {"correct": packed(found), "images": len(found)} for name, found in hits.items()},
    }


def test_differences_are_paired():
    """By hand: of 4 images in 2 seeds."""
    seeds = [
        seed_of(0, joint=[True, True, False, True], speed=[True, False, False, True]),
        seed_of(1, joint=[True, True, True, True], speed=[True, False, True, False]),
    ]
    found = tables.difference(seeds, SPEED)
    assert found.mean == pytest.approx((0.25 + 0.5) / 2)
    of_images = [0, 1, 0, 0.5]
    deviation = math.sqrt(sum((x - 0.375) ** 2 for x in of_images) / 3)
    assert found.of_images == pytest.approx(1.96 * deviation / 2)
    assert found.of_seeds == pytest.approx(12.706 * math.sqrt(0.03125) / math.sqrt(2), rel=1e-4)
    assert tables.difference(seeds[:1], SPEED).of_seeds == math.inf


def test_what_counts_as_equally_fast(study):
    assert tables.equal([1.0, 0.971, 1.029])
    assert not tables.equal([1.0, 1.0, 0.969])
    assert not tables.equal([1.031])
    _, written = study
    assert tables.score(written, "scaled") == pytest.approx(100)
    metrics = {name: written["networks"][name]["metrics"] for name in (JOINT, "scaled")}
    shares = [metrics[JOINT][m] / metrics["scaled"][m] for m in ("parameters", "latency")]
    assert tables.score(written, JOINT) == pytest.approx(100 / (shares[0] ** 0.5 * shares[1]))
    written["networks"][JOINT]["relative_times"]["median"] = 1.2
    (row,) = [line for line in tables.table([written]).splitlines() if line.startswith("| joint search")]
    assert "| 1.200, not equal |" in row


@pytest.mark.parametrize("count", [1, 4, 7, 10])
def test_answers_are_packed_and_unpacked(count):
    hits = [bool((i * i + count) % 3) for i in range(count)]
    assert unpacked(packed(hits), count) == hits
    assert packed([True, False, False, False, True]) == "88"


def test_s0_is_scaled():
    assert scaled_s0(1, 1) == VARIANTS["efficientformerv2_s0"].canonical()
    assert scaled_s0(0.375, 0.5).widths == (16, 24, 40, 64)  # 18 to 24: 16 would be less than nine tenths
    half = scaled_s0(0.5, 0.5)
    assert half.widths == (16, 24, 48, 88)
    assert half.depths == (1, 1, 3, 2)
    assert half.block_ratios()[2] == (4, 3, 4)
    assert half.late_attention() == (1, 1)
    for setting in SETTINGS.values():
        space = SearchSpace.read(setting.space)
        assert scaled_s0(setting.width, setting.depth) in space


def test_other_budgets_are_of_the_same_supernet(study):
    """Whose command they repeat word for word, so that it counts as done; and their own are tighter."""
    chain, _ = study
    own = replace(chain, folder=chain.folder.with_name("other"), trained=chain.folder)
    assert own._supernet() == chain._supernet()
    assert own.budgets() == chain.budgets()
    half = replace(own, setting=replace(chain.setting, size=0.5))
    assert half.budgets() == chain.budgets() | {"parameters": chain.budgets()["parameters"] / 2}
    for name, setting in SETTINGS.items():
        if setting.of:
            base = SETTINGS[setting.of]
            assert name.startswith(f"{setting.of}-")
            shared = ("data", "dataset", "space", "classes", "supernet", "batch", "hold_out", "layer_scale")
            assert all(getattr(setting, field) == getattr(base, field) for field in shared)


def test_the_study_is_small():
    """At most an eighth of S0's multiply-adds."""
    s0 = Costs(SearchSpace.read())(VARIANTS["efficientformerv2_s0"])["macs"]
    for setting in SETTINGS.values():
        space = SearchSpace.read(setting.space)
        assert Costs(space, classes=setting.classes)(space.largest())["macs"] <= s0 / 8


def test_a_command_that_fails_says_why(tmp_path):
    with pytest.raises(SystemExit, match=r"this command failed \(2\)[\s\S]*python -m effv2_kernels search"):
        run(Command(["search", "--no-such-option"], tmp_path / "failed.done"))
    assert not (tmp_path / "failed.done").exists()
    assert "arguments are required: --supernet" in (tmp_path / "failed.log").read_text()


def test_hours_on_imagenet():
    """Every step, and the sum of its parts: a training step is three inferences of each network."""
    found = {step.name: step for step in imagenet.steps()}
    assert len(found) == 9
    assert all(step.hours > 0 for step in found.values())
    image = 3 / 30_219
    teacher = found["`paper-300`, a network of the size of S0"].hours * 3600 / (310 * 1_281_167) - image
    assert teacher == pytest.approx(1 / 2_180, rel=0.1)
    # The largest, the smallest and two random ones of the default space.
    seconds = imagenet._seconds(Costs(SearchSpace.read()))
    networks = 3 * (seconds(2714) + seconds(81) + 2 * seconds(772)) + teacher
    assert found["supernet"].hours == pytest.approx(110 * 0.95 * 1_281_167 * networks / 3600, rel=0.01)
    page = (ROOT / "docs" / "search.md").read_text()
    assert imagenet.table(list(found.values())) in page, "make it anew: python bench/search/imagenet.py"
