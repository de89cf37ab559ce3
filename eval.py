"""Evaluate trained models: `python eval.py zeroshot --help`, `python eval.py retrieval --help`."""

from miniclip.cli.eval import main

if __name__ == "__main__":
    raise SystemExit(main())
