"""Train: accelerate launch train.py --config configs/shapes.yaml [--section.key VALUE ...]"""

from miniclip.cli.train import train_main

if __name__ == "__main__":
    raise SystemExit(train_main())
