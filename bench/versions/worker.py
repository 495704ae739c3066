"""One version of the package, at the folder given, which answers what compare.py asks, a JSON line each."""

import hashlib
import inspect
import json
import resource
import sys
import time

sys.path.insert(0, sys.argv[1])

import torch


def seconds(call):
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def optimised(name):
    import effv2_kernels

    torch.manual_seed(20221216)
    model = effv2_kernels.create_model(f"efficientformerv2_{name}").eval()
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point() and value.ndim <= 1:
                value.uniform_(0.2, 0.8)
    # Versions before 0.2.0 verify nothing.
    options = {"verify": False} if "verify" in inspect.signature(effv2_kernels.optimize).parameters else {}
    return effv2_kernels.optimize(model, **options)


class Worker:
    def prepare(self, network, batch, threads):
        torch.set_num_threads(threads)
        fast = optimised(network)
        images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1))
        self._call = torch.inference_mode()(lambda: fast(images))
        digest = hashlib.sha256(self._call().numpy().tobytes()).hexdigest()
        self._call()
        return {"seconds": seconds(self._call)[0], "digest": digest}

    def time(self, calls):
        self._call()  # wakes the threads
        found = [seconds(self._call)[0] for _ in range(calls)]
        time.sleep(0.002)  # they wait busily for a moment, and the next worker shall have the cores
        return found

    def start(self, network):
        imported, package = seconds(lambda: __import__("effv2_kernels"))
        assert package.__file__.startswith(sys.argv[1]), package.__file__
        made, fast = seconds(lambda: optimised(network))
        with torch.inference_mode():
            first, _ = seconds(lambda: fast(torch.zeros(1, 3, 224, 224)))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {
            "seconds of import": imported,
            "seconds of building and optimize": made,
            "seconds of the first call": first,
            "most memory, MB": peak,
        }


def main():
    answers, sys.stdout = sys.stdout, sys.stderr
    worker = Worker()
    for line in sys.stdin:
        question = json.loads(line)
        answer = getattr(worker, question.pop("ask"))(**question)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
