"""Runs a bilevel step here and in PyTorch in turn, and prints the ratios of time and peak memory.

    python -m venv venv && venv/bin/pip install torch transformers
    venv/bin/python benches/pytorch/compare.py --shape gpt-256x4

Runs alternate, so that what else the machine does falls on both. Seconds are the median over all steps; CPU seconds (user
and system, all threads) are steadier where the machine is shared.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SETTINGS = {
    "gpt-256x4": ["--batch", "8", "--length", "128"],
    "gpt-512x16": ["--batch", "4", "--length", "256", "--lisa", "2"],
    "llama-135m": ["--batch", "4", "--length", "128", "--lisa", "2"],
}


def matmuls(model, batch, length, active):
    """[m, k, n, how many] of the products of a step: three passes, each forward, for x and for the weight that trains."""
    config = json.loads((model / "config.json").read_text())
    get = lambda *names: next(config[name] for name in names if config.get(name))
    width, blocks, heads = get("hidden_size", "n_embd"), get("num_hidden_layers", "n_layer"), get("num_attention_heads", "n_head")
    if config["model_type"] == "gpt2":
        layers = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    else:
        inner, keys = config["intermediate_size"], config["num_key_value_heads"] * width // heads
        layers = [(width, width), (width, keys), (width, keys), (width, width)]
        layers += [(width, inner), (width, inner), (inner, width)]
    rows, head = batch * length, (width, config["vocab_size"])
    products = []
    for ins, outs in [*layers, head]:
        count = 1 if (ins, outs) == head else blocks
        trained = 1 if (ins, outs) == head else min(active or blocks, blocks)
        products += [(rows, ins, outs, 3 * count), (rows, outs, ins, 3 * count), (ins, rows, outs, 3 * trained)]
    return products


def binary():
    """Builds benches/bilevel.rs and returns the path of its program."""
    command = ["cargo", "bench", "--locked", "--bench", "bilevel", "--no-run", "--message-format=json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    built = [json.loads(line) for line in lines]
    return next(m["executable"] for m in built if m.get("target", {}).get("name") == "bilevel" and m.get("executable"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SETTINGS, default="gpt-256x4")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side")
    parser.add_argument("--steps", type=int, default=10, help="measured steps a run")
    parser.add_argument("--freeze-others", action="store_true", help="under LISA, freeze what lies outside the blocks")
    parser.add_argument("--threads", type=int, default=2, help="threads of each side")
    options = parser.parse_args()

    model = ROOT / "target" / "benches" / options.shape
    step = [sys.executable, str(HERE / "step.py"), "--model", str(model)]
    if not model.exists():
        subprocess.run([*step, "--make", options.shape], check=True)
    settings = [*SETTINGS[options.shape], "--steps", str(options.steps)]
    settings += ["--freeze-others"] * options.freeze_others
    sides = {"scalebio": [binary(), "--model", str(model), *settings], "pytorch": [*step, *settings]}
    get = lambda name: int(settings[settings.index(name) + 1]) if name in settings else None
    products = json.dumps(matmuls(model, get("--batch"), get("--length"), get("--lisa")))
    threads = {name: str(options.threads) for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS")}
    sides["pytorch"] += ["--threads", str(options.threads)]

    def run(command):
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **threads})
        return json.loads(out.stdout.splitlines()[-1])

    results, floors = {side: [] for side in sides}, {side: [] for side in sides}
    for _ in range(options.rounds):
        for side, command in sides.items():
            results[side].append(run(command))
            floors[side].append(run([*command, "--matmuls", products])["seconds"])

    def summary(runs):
        return {
            "seconds a step": statistics.median(s for run in runs for s in run["seconds"]),
            "CPU seconds a step": statistics.median(run["cpu_seconds"] for run in runs),
            "peak MiB over loaded": statistics.median(run["peak_mib"] - run["loaded_mib"] for run in runs),
        }

    ours, theirs = (summary(results[side]) for side in sides)
    print(f"{options.shape}, {' '.join(settings)}, {options.rounds} runs each")
    print(f"{'':24}{'scalebio':>10}{'pytorch':>10}{'ratio':>10}")
    for side, summary in (("scalebio", ours), ("pytorch", theirs)):
        summary["its matmuls alone, s"] = statistics.median(floors[side])
    for name in ours:
        print(f"{name:24}{ours[name]:10.3f}{theirs[name]:10.3f}{ours[name] / theirs[name]:10.2f}")


if __name__ == "__main__":
    main()
