"""miniclip search: words or an image, and an index -> the nearest images, as a table, JSON or a page."""

from __future__ import annotations

import sys
from pathlib import Path

from miniclip.common.arguments import check_output, check_range

_JSON, _PAGE = '"searched": ', "<title>Search: "  # by which a file of a search is known


def search(
    index: str,
    words: list[str] | None = None,
    *,
    image: str | None = None,
    not_: str | None = None,
    top: int = 20,
    threshold: float | None = None,
    templates: str | None = None,
    duplicates: float | None = None,
    json: str | None = None,
    html: str | None = None,
    device: str = "auto",
) -> None:
    """Find images of an index by words, by an image or by both; or those that are in it twice.

    Args:
        index: folder that miniclip index wrote
        words: what is on the images, e.g. "a dog in the snow"
        image: file of an image; with words, both count alike
        not_: what is not to be on the images
        top: images at most; of --duplicates, groups in the table
        threshold: least cosine, which differs between models: look at a table first
        templates: what the words are put into: simple ("a photo of a {}.", for names of things), simple7, openai80, a
            template or a file of them (default: the words as they are)
        duplicates: instead of a search, groups of images that are alike, by the least cosine, e.g. 0.95
        json: write what was found
        html: write it as a page of thumbnails
        device: auto, cpu, cuda, cuda:1, ...
    """
    check_range("--top", top, 1)
    check_range("--threshold", threshold, -1, 1)
    check_range("--duplicates", duplicates, 0, 1)
    for option, target, mark in (("--json", json, _JSON), ("--html", html, _PAGE)):
        if target is not None:
            check_output(option, target, mark)
    text = " ".join(words or ()).strip()
    if duplicates is not None and (text or image or not_):
        raise ValueError("--duplicates looks for nothing else; leave out the words, --image and --not")
    if duplicates is None and not (text or image):
        raise ValueError('there is nothing to look for; give words, e.g. "a dog in the snow", or --image')
    if image is not None and not Path(image).is_file():
        raise FileNotFoundError(f"--image {image}: no such file")

    from dataclasses import asdict, replace

    from miniclip.cli.devices import device_of
    from miniclip.common.console import open_console, plain, show_table, write_json
    from miniclip.common.printing import first_few
    from miniclip.data.images import decode_image
    from miniclip.evaluation.galleries import cosine_text
    from miniclip.evaluation.prompts import resolve_templates
    from miniclip.search.query import AS_IT_IS, open_searcher
    from miniclip.search.results import COLUMNS, found_groups, found_hits, table_rows, write_page
    from miniclip.search.store import open_index
    from miniclip.search.vectors import near_groups

    asked = None if image is None else decode_image(Path(image), f"--image {image}")
    searched = {"words": text, "image": image, "not": not_, "templates": templates, "duplicates": duplicates}
    if duplicates is not None:
        images = open_index(index)
        found = found_groups(images, near_groups(images.embeddings, duplicates, progress=sys.stderr.isatty()))
    else:
        chosen = AS_IT_IS if templates is None else resolve_templates(templates)
        searcher = open_searcher(index, device_of(device), chosen)
        images = searcher.index
        query = searcher.query(text, not_ or "", [] if asked is None else [searcher.picture(asked)])
        hits = searcher.nearest(query, top, threshold)
        title = ", ".join([text] * bool(text) + [f"like {image}"] * bool(image) + [f"not {not_}"] * bool(not_))
        found = found_hits(images, hits, title)
        if not len(hits.rows):
            best = cosine_text(float(searcher.nearest(query, 1).cosines[0]))
            found = replace(found, about=f"No image has a cosine of {threshold}: the nearest has {best}.")
    lists = [[asdict(hit) for hit in own] for _, own in found.groups]
    if json:
        told = {"groups": lists} if duplicates is not None else {"images": lists[0]}
        write_json(json, {"searched": searched, "index": index, "root": images.about.root, **told})
    lost = write_page(images, found, html, asked) if html else []
    console = open_console()
    rows = [row for _, own in found.groups[:top] for row in [*table_rows(own), ("",) * len(COLUMNS)]]
    show_table(console, found.title, COLUMNS, rows[:-1])
    if len(found.groups) > top:
        console.print(plain(f"and {len(found.groups) - top:,} more groups"))
    console.print(plain(found.about))
    if lost:
        console.print(plain(f"{len(lost)} of them cannot be shown: {first_few(list(dict.fromkeys(lost)))}"))
