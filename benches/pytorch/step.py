"""PyTorch's side of benches/bilevel.rs: the same bilevel step of the same checkpoint folder, in plain, well-tuned eager
PyTorch: transformers' model with scaled_dot_product_attention, fused AdamW, blocks frozen as the authors of ScaleBiO do it
(requires_grad). Prints one line of JSON. `--make FOLDER` writes a checkpoint with random weights instead.
"""

import argparse
import json
import os
import random
import resource
import time

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

SHAPES = {
    "gpt-256x4": lambda: GPT2Config(
        vocab_size=1024, n_positions=128, n_embd=256, n_layer=4, n_head=4,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    ),
    "gpt-512x16": lambda: GPT2Config(
        vocab_size=512, n_positions=256, n_embd=512, n_layer=16, n_head=8,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    ),
    # SmolLM2-135M.
    "llama-135m": lambda: LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
        rms_norm_eps=1e-5, rope_theta=100000, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    ),
}


def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def source(stride, vocabulary, length):
    return [[(start + i * stride) % vocabulary for i in range(length)] for start in range(64)]


def sample_losses(model, ids):
    """The mean loss over the labels of each sample."""
    logits = model(ids).logits[:, :-1]
    losses = cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return losses.view(ids.shape[0], -1).mean(dim=1)


def blocks(model):
    base = model.base_model
    return base.h if hasattr(base, "h") else base.layers


def run(options):
    torch.set_num_threads(options.threads)
    random.seed(0)
    load = lambda: AutoModelForCausalLM.from_pretrained(
        options.model, dtype=torch.float32, attn_implementation="sdpa"
    ).train()
    w = load()
    w.config.use_cache = False
    loaded = status("VmRSS:")
    u = load()
    u.config.use_cache = False
    vocabulary = w.config.vocab_size
    training = [source(stride, vocabulary, options.length) for stride in (1, 3)]
    validation = source(1, vocabulary, options.length)
    logits = torch.zeros(2, requires_grad=True)
    active = {}
    if options.lisa:
        for name, model in (("w", w), ("u", u)):
            model.requires_grad_(not options.freeze_others)
            drawn = random.sample(range(len(blocks(model))), options.lisa)
            for index, block in enumerate(blocks(model)):
                block.requires_grad_(index in drawn)
            active[name] = drawn
    alpha = 10.0
    trainable = lambda model: [p for p in model.parameters() if p.requires_grad]
    adamw = lambda parameters, rate: torch.optim.AdamW(
        parameters, lr=rate, betas=(0.9, 0.999), weight_decay=0.0, fused=True
    )
    of_u, of_w, of_x = adamw(trainable(u), 1e-4), adamw(trainable(w), 1e-4), adamw([logits], 1e-2)

    seconds, losses = [], []
    for step in range(options.steps + 2):
        if step == 2:
            cpu = cpu_seconds()
        start = time.perf_counter()
        half = options.batch // 2
        rows = [sample for source in training for sample in random.sample(source, half)]
        lower = torch.tensor(rows)
        upper = torch.tensor(random.sample(validation, options.batch))
        p = torch.softmax(logits.detach(), 0)
        coefficients = p.repeat_interleave(half) / half

        l2_u = sample_losses(u, lower)
        (alpha * (coefficients * l2_u).sum()).backward()
        l2_w = sample_losses(w, lower)
        (alpha * (coefficients * l2_w).sum()).backward()
        l1_w = sample_losses(w, upper).mean()
        l1_w.backward()

        gap = alpha * (l2_w.detach() - l2_u.detach()).view(2, half).mean(dim=1)
        logits.grad = p * gap - p * (p * gap).sum()
        for optimizer in (of_u, of_w, of_x):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        loss = (coefficients * l2_w.detach()).sum().item()
        if step >= 2:
            seconds.append(time.perf_counter() - start)
        losses.append(loss)
    print(json.dumps({
        "seconds": seconds,
        "cpu_seconds": (cpu_seconds() - cpu) / options.steps,
        "loaded_mib": loaded,
        "peak_mib": status("VmHWM:"),
        "losses": losses,
    }))


def matmuls(sizes, threads):
    """The time that matmuls take with nothing between them: the median of five times their number."""
    torch.set_num_threads(threads)
    total = 0
    for m, k, n, count in sizes:
        a, b = torch.ones(m, k), torch.ones(k, n)
        times = []
        for _ in range(6):
            start = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - start)
        total += sorted(times[1:])[2] * count
    print(json.dumps({"seconds": total}))


def make(shape, folder):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(SHAPES[shape](), dtype=torch.float32).save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--make", choices=SHAPES)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--lisa", type=int)
    parser.add_argument("--freeze-others", action="store_true", help="under LISA, freeze what lies outside the blocks")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--matmuls", type=json.loads)
    options = parser.parse_args()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if options.make:
        make(options.make, options.model)
    elif options.matmuls:
        matmuls(options.matmuls, options.threads)
    else:
        run(options)
