"""miniclip push: a model, its card and the folders of other libraries -> a repository of the Hub, or a folder."""

from __future__ import annotations

import re
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from miniclip.common.arguments import check_new_folder


def push(
    model: str,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    license: str = "unknown",
    examples: bool = False,
    dry_run: str | None = None,
) -> None:
    """Publish a model on the Hub with a card that its run tells, for transformers and open_clip where they can hold it.

    Args:
        model: run or model directory, open_clip:ARCH:TAG or FILE, hf:FOLDER or NAME
        repo: OWNER/NAME on the Hub; it is made if it is not there
        private: only you see the repository, if this makes it
        revision: branch to put it on, made if it is not there (default: main)
        license: what others may do with the weights, as the Hub abbreviates it: apache-2.0, mit, cc-by-4.0, other, ...
        examples: show pictures and captions of the test data on the card, which publishes them; drawn scenes always are
        dry_run: folder to write what would be uploaded to, instead
    """
    from miniclip.common.console import open_console, plain, show_files
    from miniclip.common.durable import whole_folder
    from miniclip.common.runs import run_of
    from miniclip.evaluation.report.read import Run
    from miniclip.export.publish import check_repo, fill, reach, upload
    from miniclip.models.whole import opened

    check_repo(repo)
    licence = license.lower()
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise ValueError(f"--license {license} is no abbreviation of the Hub's, such as apache-2.0 or unknown")
    if dry_run is None:
        reach()
    else:
        check_new_folder("--dry_run", Path(dry_run))
    loaded, (run_dir, _) = opened(model), run_of(model)
    run = Run(run_dir) if run_dir else None
    place: AbstractContextManager[str | Path] = (
        tempfile.TemporaryDirectory(prefix="miniclip-") if dry_run is None else whole_folder(Path(dry_run))
    )
    console = open_console()
    with place as name:
        folder = Path(name)
        reasons = fill(folder, model, repo, loaded, run, licence, examples)
        show_files(console, f"{repo}: {model}", folder)
        for library, reason in reasons.items():
            if reason is not None:
                console.print(plain(f"not for {library}: {reason}"))
        for line in run.left_out if run else ():
            console.print(plain(f"left out of the card: {line}"))
        if licence == "unknown":
            console.print(plain("its licence is unknown, so others may not use it: name one with --license"))
        address = upload(folder, repo, private, revision) if dry_run is None else None
    console.print(plain(f"published: {address}" if address else f"what would be uploaded is in {dry_run}"))
