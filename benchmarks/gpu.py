"""Training on one GPU against open_clip's trainer: samples a second, MFU and the wait for data, in one table.

    pip install 'open_clip_torch[training]'
    python benchmarks/gpu.py --data DIR_OR_HUB_NAME [--models ViT-B-32 RN50] [--batch_size 1024]

Both sides train in bf16 on the same JPEG files, in turn; see throughput.py, whose runs these are. MFU is model FLOPs,
counted from the captions' true lengths for both, over what the GPU's best matrix product reaches. Without a GPU it says
so and measures nothing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from machine import machine
from throughput import Case, Step, Trial, compare, write_files, write_json


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="shapes", help="what data.source takes; the built-in scenes if left out")
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "RN50"], help="presets")
    parser.add_argument("--batch_size", type=int, default=1024)
    parser.add_argument("--pictures", type=int, default=6000, help="how many are trained on")
    parser.add_argument("--steps", type=int, default=30, help="of a process")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=8, help="loader processes of each side")
    parser.add_argument("--json", type=Path, help="write every step here")
    options = parser.parse_args(arguments)

    import torch

    if not torch.cuda.is_available():
        print("no GPU here: nothing was measured. benchmarks/throughput.py measures on a CPU")
        return
    print(f"{machine('cuda')}, batch {options.batch_size}, bf16")
    found: dict[str, dict[str, list[Step]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        # open_clip's epochs end with the table, and its workers with them
        write_files(options.data, options.pictures, work, lines=50 * options.batch_size)
        for name in options.models:
            case = Case({"preset": name}, options.batch_size, options.steps, options.rounds)
            trial = Trial(name, case, "bf16", options.steps, options.workers, work, device="cuda")
            found[name] = compare(trial, case.flags("bf16"), options.rounds)
    print_table(found, work_of_a_sample(options.models, options.data))
    if options.json:
        write_json(options.json, found)


def work_of_a_sample(models: Sequence[str], data: str) -> dict[str, float]:
    """FLOPs of a training step for one pair, with the captions of the data."""
    from miniclip.config import DataConfig, ModelConfig
    from miniclip.data.captioned import open_source
    from miniclip.models.tokenizer import Tokenizer, caption_lengths
    from miniclip.training.flops import forward_flops

    source = open_source(DataConfig(source=data), "train", image_size=64)
    captions = [source.captions(index)[0] for index in range(min(1000, len(source)))]
    lengths = caption_lengths(Tokenizer()(captions)).tolist()
    return {name: forward_flops(ModelConfig(preset=name)).step(len(lengths), lengths) / len(lengths) for name in models}


def print_table(found: dict[str, dict[str, list[Step]]], work: dict[str, float]) -> None:
    import torch

    from miniclip.training.flops import matmul_peak

    peak = matmul_peak("cuda", torch.bfloat16, seconds=2)
    print(f"\nbest bf16 matrix product: {peak / 1e12:.0f} TFLOP/s\n{'':44}samples/s    MFU  waiting  miniclip is")
    for model, sides in found.items():
        ours = statistics.median(step.pace for step in sides["miniclip"])
        for side, steps in sides.items():
            pace = statistics.median(step.pace for step in steps)
            waited = statistics.median(step.waited for step in steps)
            figures = f"{pace:9.0f} {pace * work[model] / peak:6.1%} {waited:8.1%}"
            print(f"{model:12}{side:32}{figures} {ours / pace:8.2f} times as fast")


if __name__ == "__main__":
    main()
