"""The chain of a study for one seed: supernet, searches, fine-tuning."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bench.search.commands import Command, Done, data_of, recipe_of, run, run_together
from bench.search.scaled import scaled_s0
from bench.search.settings import Setting
from effv2_kernels.families.efficientformer_v2 import Architecture
from effv2_kernels.search import found
from effv2_kernels.search.cost import Costs
from effv2_kernels.search.dataset_images import DatasetImages
from effv2_kernels.search.evaluation import SupernetEvaluator
from effv2_kernels.search.latency import LatencyTable
from effv2_kernels.search.space import SearchSpace
from effv2_kernels.search.supernet import supernet_file
from effv2_kernels.train import processes

# By the names of their folders, in the order of tables.
JOINT, SPEED, RANDOM, SCALED = "joint", "speed", "random", "scaled"
METHODS = (JOINT, SPEED, RANDOM, SCALED)
_TEACHER = "largest"


@dataclass
class Chain:
    """What one seed makes, in ``folder``; a chain that was ended goes on where it was.

    trained: the folder with the supernet, where that is of another chain of the same seed.
    """

    setting: Setting
    seed: int
    folder: Path
    table: Path
    trained: Path | None = None

    def run(self) -> dict[str, Done]:
        """All commands, in this order; what was done already is not done again."""
        done = {"supernet": run(self._supernet())}
        self._cut()
        done |= run_together({f"search, {name}": self._search(name) for name in (JOINT, SPEED)})
        random = self._search(RANDOM, evaluations=self.evaluations(JOINT))
        done |= run_together({f"search, {RANDOM}": random, **self._fine_tunings(SCALED)})
        done |= run_together(self._fine_tunings(JOINT, SPEED))
        return done | run_together(self._fine_tunings(RANDOM))

    def _fine_tunings(self, *methods: str) -> dict[str, Command]:
        return {f"fine-tuning, {name}": self._fine_tune(name) for name in methods}

    @cached_property
    def space(self) -> SearchSpace:
        return SearchSpace.read(self.setting.space)

    @cached_property
    def costs(self) -> Costs:
        """By the latency table, which must have been measured."""
        table = LatencyTable.read(self.table)
        return Costs(self.space, classes=self.setting.classes, tables={"here": table})

    def budgets(self) -> dict[str, float]:
        """What the scaled S0 has, or the setting's share of its parameters: the most of each."""
        metrics = self.costs(self._scaled())
        return metrics | {"parameters": metrics["parameters"] * self.setting.size}

    def _scaled(self) -> Architecture:
        return scaled_s0(self.setting.width, self.setting.depth)

    @property
    def supernet(self) -> Path:
        return (self.trained or self.folder) / "supernet" / "supernet.safetensors"

    def evaluations(self, method: str) -> int:
        """How many subnets a search evaluated."""
        lines = (self.folder / method / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()
        return len(lines) - 1

    def architecture(self, method: str) -> Path:
        return self.folder / method / "architecture.json"

    def weights(self, method: str) -> Path:
        """Those of the last epoch: the best epoch would be chosen by the images that are tested on."""
        return self.folder / method / "fine-tuned" / "last.pt"

    def _supernet(self) -> Command:
        setting, folder = self.setting, self.supernet.parent
        words = ["supernet", *data_of(setting), "--in-channels", str(setting.in_channels), "--workers", "1"]
        words += ["--space", setting.space, "--output", str(folder), "--resume", "--device", "cpu"]
        words += ["--hold-out", str(setting.hold_out), "--layer-scale", str(setting.layer_scale)]
        words += ["--seed", str(self.seed), *recipe_of(setting.supernet)]
        return Command(words, folder.with_suffix(".done"), processes=setting.processes)

    def _cut(self) -> None:
        """The teacher and the scaled S0, with the supernet's weights, as searches write what they find."""
        wanted = {_TEACHER: self.space.largest(), SCALED: self._scaled()}
        if all((self.folder / name / "accuracy.json").exists() for name in wanted):
            return
        supernet = supernet_file.load(self.supernet)
        with processes("cpu") as group:
            images = DatasetImages.of_supernet(
                self.supernet,
                supernet,
                self.setting.data,
                group,
                dataset=self.setting.dataset,
                calibration=self.setting.calibration,
                most=self.setting.held_out,
                workers=1,
            )
            evaluator = SupernetEvaluator(supernet, images)
            for name, architecture in wanted.items():
                self.architecture(name).parent.mkdir(parents=True, exist_ok=True)
                found.write_network(self.folder / name, evaluator.calibrated(architecture))
                accuracy = {"accuracy": evaluator.accuracy(architecture)}
                (self.folder / name / "accuracy.json").write_text(json.dumps(accuracy), encoding="utf-8")

    def _search(self, method: str, evaluations: int | None = None) -> Command:
        """Within the budgets: the scaled S0's time, and but for speed alone the parameters as well."""
        setting, limits = self.setting, self.budgets()
        words = ["search", "--supernet", str(self.supernet), *data_of(setting), "--workers", "1"]
        words += ["--latency", str(self.table), "--table-batch", str(setting.batch), "--threads", "1"]
        words += ["--max-latency", str(limits["latency"]), "--fill", "--device", "cpu", "--resume"]
        words += ["--images", str(setting.held_out), "--calibration", str(setting.calibration)]
        words += ["--output", str(self.folder / method)]
        if method == SPEED:
            words += ["--alpha", "parameters=0"]
        else:
            words += ["--max-parameters", str(limits["parameters"])]
        if method == RANDOM:
            words += ["--method", "random", "--evaluations", str(evaluations), "--seed", str(self.seed)]
        elif setting.least_drop:
            words += ["--least-drop", str(setting.least_drop)]
        return Command(words, self.folder / f"{method}.done")

    def _fine_tune(self, method: str) -> Command:
        setting, teacher = self.setting, self.folder / _TEACHER
        words = ["train", *data_of(setting), "--in-channels", str(setting.in_channels), "--workers", "1"]
        words += ["--architecture", str(self.architecture(method))]
        words += ["--checkpoint", str(self.folder / method / "weights.safetensors")]
        words += ["--teacher", str(self.architecture(_TEACHER))]
        words += ["--teacher-checkpoint", str(teacher / "weights.safetensors")]
        words += ["--img-size", str(self.space.img_size[0]), "--device", "cpu"]
        words += ["--recipe", "finetune", "--seed", str(self.seed), *recipe_of(setting.fine_tuning)]
        folder = self.folder / method / "fine-tuned"
        stamp = self.folder / f"{method}-fine-tuned.done"
        return Command([*words, "--output", str(folder), "--resume"], stamp)

    def networks(self) -> dict[str, Architecture]:
        """What is compared, by the names of methods."""
        return {name: Architecture.read(self.architecture(name)) for name in METHODS}


def latency_table(setting: Setting, table: Path) -> Command:
    words = ["latency", "--space", setting.space, "--batch", str(setting.batch), "--threads", "1"]
    words += ["--classes", str(setting.classes), "--rounds", str(setting.rounds), "--out", str(table)]
    return Command(words, table.with_suffix(".done"))
