"""`python -m miniclip COMMAND …`, and with several processes `accelerate launch -m miniclip COMMAND …`."""

from miniclip.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
