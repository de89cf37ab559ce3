"""What has to come of a Plan by the rules of docs/train.md alone: nothing here opens a file or calls the product."""

from __future__ import annotations

from typing import NamedTuple

from support.fuzz import CLASHES, ROLES, TABLES, Photo, Plan


class Group(NamedTuple):
    """Photos that some splits share; of several, the ones after the first are set aside.

    pairs: number -> captions, or name of the class. left_out: number -> words, of which one has to be said. causes: of
    which a refusal has to name one; without any, it must be read. refused: it must not be read.
    """

    roles: tuple[str, ...]
    pairs: dict[int, list[str]]
    left_out: dict[int, list[str]]
    causes: list[str]
    refused: bool


def judge(plan: Plan) -> list[Group]:
    if plan.labelled:
        return [_group(plan, (role or "test",), plan.of(role)) for role in plan.splits or [""]]
    own, missing = plan.splits[1:], tuple(role for role in ROLES[1:] if role not in plan.splits)
    pool, others = plan.of("train", ""), [_group(plan, (role,), plan.of(role)) for role in own]
    if not plan.stream or not missing:
        return [_group(plan, ("train", *missing), pool), *others]
    last = max(p.shard for p in pool)
    kept, aside = [p for p in pool if p.shard != last], [p for p in pool if p.shard == last]
    return [_group(plan, ("train",), kept), _group(plan, missing, aside), *others]


def _group(plan: Plan, roles: tuple[str, ...], photos: list[Photo]) -> Group:
    pairs = {p.number: [plan.classes[p.label]] if plan.labelled else p.captions for p in photos if p.state == "good"}
    left_out = {p.number: p.words for p in photos if p.state != "good"}
    web = plan.style == "url" and plan.layout in (*TABLES, "parquet_paths")
    clash = plan.labelled and plan.classes in CLASHES
    aside = len(plan.splits) < 3 and (roles[0] == "train" or roles[0] not in plan.splits)
    one_shard = len({p.shard for p in plan.of("train", "")}) < 2
    unstreamed = plan.stream and (plan.layout not in ("tar", "parquet") or (aside and one_shard))
    reasons = (
        ([plan.extra, *(word for p in plan.photos if p.state == "dotdot" for word in p.words)], True),
        ([word for p in plan.photos if p.state != "good" for word in p.words], plan.strict or not pairs),  # too many
        (["no usable pair"], plan.stream),
        ([plan.root, "0a1b2c"], plan.wrapped),
        (["--sort=name"], plan.order == "apart" and plan.layout == "tar"),
        (["split"], plan.stream and plan.told == "column"),
        ([*plan.classes], clash),
        (["img2dataset"], web),
        (["data.streaming"], unstreamed),
    )
    causes = [word for words, applies in reasons if applies for word in words if word]
    return Group(roles, pairs, left_out, causes, clash or web or unstreamed)
