"""A folder as it is to lie on the Hub, and the upload of it by huggingface_hub.

README.md curves.png example-1.jpg                     the card
config.json model.safetensors ...                      for transformers, if that can hold the model
open_clip_config.json open_clip_model.safetensors      for open_clip, alike
miniclip/                                              the model as miniclip has it
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils.tqdm import disable_progress_bars

from miniclip.common.console import write_json
from miniclip.common.printing import one_line
from miniclip.evaluation.report.read import Run
from miniclip.export.card import Subject, public, write_card
from miniclip.export.formats import FORMATS, export, why_not
from miniclip.models import DualEncoder
from miniclip.models.preprocess import Preprocess
from miniclip.models.saved import save_model

OWN = "miniclip"
_REPLACED = [f"{OWN}/*", "example-*.jpg"]  # of an earlier upload: what this one lacks goes
_ALONE = "--dry_run FOLDER writes what would be uploaded"
_SAID = {
    401: "the token is not valid; make another at https://huggingface.co/settings/tokens, and set HF_TOKEN to it",
    403: "the token may not write there; name a repository of yours, or a token with the right to write",
    404: "there is no such repository or revision, or the token may not see it",
}


def check_repo(repo: str) -> None:
    """Raise ValueError unless it is a name as the Hub has them."""
    part = r"[A-Za-z0-9](?:[\w-]|\.(?![.]))*(?<![-.])"
    if not re.fullmatch(f"{part}/{part}", repo, re.ASCII) or len(repo) > 96 or "--" in repo or repo.endswith(".git"):
        raise ValueError(f"{repo} is no name of a repository; write OWNER/NAME of letters, digits, -, _ and .")


def reach() -> None:
    """Raise ValueError or ConnectionError where the Hub does not answer, or not to us: before the long work."""
    if get_token() is None:
        get = "get one at https://huggingface.co/settings/tokens, then call `hf auth login` or set HF_TOKEN"
        raise ValueError(f"there is no token of the Hub here; {get}; {_ALONE}")
    with _answered():
        HfApi().whoami()


def fill(
    folder: Path,
    named: str,
    repo: str,
    loaded: tuple[DualEncoder, Preprocess],
    run: Run | None,
    licence: str,
    examples: bool,
) -> dict[str, str | None]:
    """Write all of it into a folder that is there -> library -> why there is no folder for it, or None.

    Each is read again by its library, see `formats`.
    """
    model, preprocess = loaded
    reasons = {name: why_not(name, model, preprocess) for name in FORMATS if name != "onnx"}
    about = Subject(repo, named, model, preprocess, run, reasons, licence, examples)
    write_card(about, folder)
    for name in (name for name, reason in reasons.items() if reason is None):
        export(model, preprocess, name, folder / name)
        shutil.copytree(folder / name, folder, dirs_exist_ok=True, copy_function=shutil.move)
        shutil.rmtree(folder / name)
    _name_tokenizer(folder / "open_clip_config.json", repo)
    began: dict[str, Any] = {
        key: public(name) for key in ("init", "image", "text") if (name := getattr(model.config, key))
    }
    model.config = replace(model.config, **began)
    save_model(folder / OWN, model, preprocess)
    return reasons


def upload(folder: Path, repo: str, private: bool, revision: str | None) -> str:
    """-> address of the commit. Raises ValueError or ConnectionError with one line that says what to do."""
    api = HfApi()
    if not sys.stderr.isatty():
        disable_progress_bars()
    with _answered(repo, revision):
        api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=revision,
            commit_message="Upload of a model by miniclip",
            delete_patterns=_REPLACED,
        )
    return str(done.commit_url)


def _name_tokenizer(file: Path, repo: str) -> None:
    """open_clip looks for a tokenizer that is not CLIP's in the repository that its config names."""
    values: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    text = values.get("model_cfg", {}).get("text_cfg", {})
    if "hf_tokenizer_name" in text:
        text["hf_tokenizer_name"] = repo
        write_json(file, values)


@contextmanager
def _answered(repo: str = "", revision: str | None = None) -> Iterator[None]:
    """The library raises its own errors, httpx's and those of its storage: what they mean, and what to do."""
    of = f"{repo}@{revision}: " if revision else f"{repo}: " * bool(repo)
    try:
        yield
    except Exception as error:
        said = one_line(str(error), 300) or type(error).__name__
        if refused := next((one for one in _causes(error) if isinstance(one, HfHubHTTPError)), None):
            code = refused.response.status_code
            advice = _SAID.get(code, "try again later" if code == 429 or code >= 500 else _ALONE)
            reason = one_line(refused.server_message or str(refused), 200)
            raise ValueError(f"{of}the Hub refused ({code}: {reason}); {advice}") from error
        if isinstance(error, ValueError):  # a card that the Hub does not take, or an answer that is none
            raise ValueError(f"{of}{said}; {_ALONE}") from error
        advice = f"check the connection and call the command again; {_ALONE}"
        raise ConnectionError(f"{of}{constants.ENDPOINT} was not reached ({said}); {advice}") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
