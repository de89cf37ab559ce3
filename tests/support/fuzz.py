"""What the owner of a small random data set means, and how it is laid out; fuzz_write.py puts it on the disk."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

TABLES, SETS = ("jsonl", "csv", "tsv", "json"), ("kaggle", "flickr8k", "flickr30k", "coco")
FAMILIES = {
    "tables": TABLES,
    "folders": ("beside", "beside", "beside", *SETS),
    "shards": ("tar", "tar", "parquet", "parquet_paths"),
    "labelled": ("classes", "classes", "classes", "csv", "jsonl", "parquet"),
}
TOLD = {  # what says the split: folders, names of files, a column, folders within the paths of one table
    **dict.fromkeys(TABLES, ("none", "folders", "files", "column", "paths")),
    **dict.fromkeys(("beside", "classes"), ("none", "folders", "folders")),
    **dict.fromkeys(SETS, ("none",)),
    "flickr8k": ("none", "files"),
    "coco": ("none", "files", "files"),
    "tar": ("none", "folders", "files"),
    "parquet": ("none", "folders", "files", "column"),
    "parquet_paths": ("none", "files", "column", "paths"),
}
FORMS = {  # how several captions of an image are given
    **dict.fromkeys(("jsonl", "json"), ("one", "rows", "list", "mixed", "list_text", "family")),
    **dict.fromkeys(("csv", "tsv"), ("one", "rows", "list_text", "family")),
    **dict.fromkeys(("parquet", "parquet_paths"), ("one", "list", "list_text", "family")),
    **dict.fromkeys(SETS, ("rows",)),
    "beside": ("one", "lines"),
    "tar": ("one", "list", "json", "both"),
    "classes": ("one",),
}
WORDS = {  # what train, validation and test are called
    "plain": ("train", "val", "test"),
    "long": ("training", "validation", "testing"),
    "dev": ("train", "dev", "eval"),
    "upper": ("Train", "Val", "Test"),
    "year": ("train2017", "val2017", "test2017"),
    "before": ("seg_train", "seg_val", "seg_test"),
    "after": ("train_images", "val_images", "test_images"),
}
AFFIXED = ("year", "before", "after")
ROOTS = (
    *("photos", "my photos", "[2024] set", "bilder-äöü", "{set}", "a#b"),
    *("100%25", ".hidden", "UPPER", "a,b", "写真", "train"),
)
STEMS = (
    *("{}", "IMG {}", "a#{}", "[{}] x", "{{{}}}", "%20{}", "UP{}"),
    *("naïve-{}", "v1_{}", "x({})", "-{}", "{}'s", "写真{}"),
)
SUFFIXES = (
    *(".jpg", ".jpg", ".JPG", ".jpeg", ".JPEG", ".jfif", ".png"),
    *(".PNG", ".webp", ".avif", ".tif", ".gif", ".heic", ".HEIC"),
)
FOREIGN = (".svg", ".mp4", ".cr2")  # what no plug-in of Pillow reads
ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-be", "utf-16-le", "cp1252", "cp1252")
LINKS = ("inside", "snapshot", "out", "folder", "root")
EXTRAS = ("unlabeled", "seg_pred")  # folders of images without a class beside the splits
ODD = (
    *("words", "encoding", "root", "wrapped", "link", "order", "paths"),
    *("upper", "classes", "suffix", "stem", "bad", "bad", "deeper"),
    *("extra", "url"),
)
CAPTIONS = (
    *("a dog", "two dogs, running", 'the "best" dog', "[sic] a dog", "[a dog in brackets]", "42", "it's a dog"),
    *("dog; cat | bird", "a café at night", "“smart” quotes — and a dash", "Ein Mädchen für alle Fälle", "price: 5 €"),
    *("#1 dog", "{a} dog", "a\\b"),
)
CLASSES = (
    {"cat": "cat", "dog": "dog", "bird": "bird"},
    {"001.Black_footed_Albatross": "Black footed Albatross", "002.Laysan_Albatross": "Laysan Albatross"},
    {"n02085620-Chihuahua": "Chihuahua", "n02085782-Japanese_spaniel": "Japanese spaniel"},
    {"car": "car", "train": "train", "plane": "plane"},
    {"big cat": "big cat", "Small Dog": "Small Dog", "[x] y": "[x] y"},
    {"été": "été", "hiver": "hiver"},
)
CLASHES = (
    {"cat": "cat", "Cat": "cat", "dog": "dog"},
    {"big cat": "big cat", "big  cat": "big cat"},
    {"a_b": "a b", "a b": "a b"},
)
ROLES = ("train", "validation", "test")


@dataclass
class Photo:
    """state: good, or what is wrong with it. places: what a message may call it, besides its file."""

    number: int
    file: str
    split: str  # its role; empty where the owner has no splits
    captions: list[str]
    label: str
    shard: int
    state: str = "good"
    places: list[str] = field(default_factory=list)

    @property
    def words(self) -> list[str]:
        """One of which has to be said where it is left out."""
        stem, _, suffix = self.file.rpartition(".")
        return [self.file, f"{stem}.txt", *self.places, *([f".{suffix}"] if self.state == "foreign" else [])]


@dataclass
class Plan:
    """told, form: see above. inside: folder in which the images lie. asked: what is given, the folder, its one file or
    a pattern. deeper: a split's folder holds another of its name. extra: a folder of images beside those of the splits.
    stream: read as one. strict: max_bad_fraction is left at its default, else 1. upper: endings of tables and texts in
    capitals.
    """

    seed: int
    family: str
    layout: str
    told: str
    dialect: str
    form: str
    encoding: str
    root: str
    inside: str
    asked: str
    wrapped: bool
    deeper: bool
    extra: str
    link: str
    strict: bool
    stream: bool
    order: str
    style: str
    upper: bool
    classes: dict[str, str]
    photos: list[Photo] = field(default_factory=list)

    def word(self, role: str) -> str:
        return dict(zip(ROLES, WORDS[self.dialect], strict=True)).get(role, "")

    @property
    def splits(self) -> list[str]:
        return [role for role in ROLES if any(photo.split == role for photo in self.photos)]

    def of(self, *roles: str) -> list[Photo]:
        return [photo for photo in self.photos if photo.split in roles]

    @property
    def labelled(self) -> bool:
        return self.family == "labelled"


def draw_plan(family: str, seed: int) -> Plan:
    """The same for the same arguments, on any machine."""
    rng = random.Random(f"{family} {seed}")
    odd = set(rng.sample(ODD, rng.choice((0, 1, 1, 2, 2, 3))))  # what is not as usual: a few things at a time
    layout = rng.choice(FAMILIES[family])
    told = rng.choice(TOLD[layout])
    usual = {"flickr8k": "dev", "coco": "year"}.get(layout) if told == "files" else None
    words = [w for w in WORDS if told in ("folders", "paths") or w not in AFFIXED] if "words" in odd else ["plain"]
    shards, parquet = layout in ("tar", "parquet") and family != "labelled", layout in ("parquet", "parquet_paths")
    encoded = "encoding" in odd and not parquet and layout not in ("coco", "classes")
    one_file = told in ("none", "column", "paths") and layout not in ("beside", "classes", "coco", "flickr8k")
    asked = rng.choice(("folder", "folder", *(("file",) * one_file), *(("pattern",) * (shards or parquet))))
    inside = rng.choice(("", "images", "my pics"))
    plan = Plan(
        *(
            seed,
            family,
            layout,
            told,
            usual or rng.choice(words),
            rng.choice(FORMS[layout]) if family != "labelled" else "one",
        ),
        encoding=rng.choice(ENCODINGS) if encoded else "utf-8",
        root=rng.choice(ROOTS) if "root" in odd else "photos",
        inside=inside if layout in (*TABLES, "beside", "parquet_paths") else "",
        asked=asked,
        wrapped="wrapped" in odd and asked == "folder",
        deeper="deeper" in odd and told == "folders",
        extra=rng.choice(EXTRAS) if "extra" in odd and told == "folders" and layout in ("beside", "classes") else "",
        link=rng.choice(LINKS) if "link" in odd else "none",
        strict=rng.random() < 0.3,
        stream=(shards and rng.random() < 0.4) or (rng.random() < 0.03 and family != "labelled"),
        order=rng.choice(("image", "text", "folder", *(("apart",) * ("order" in odd)))),
        style="url"
        if "url" in odd and told != "paths"
        else rng.choice(("dot", "absolute"))
        if "paths" in odd
        else "plain",
        upper="upper" in odd,
        classes=rng.choice(CLASHES if rng.random() < 0.3 else CLASSES) if "classes" in odd else CLASSES[0],
    )
    _draw_photos(plan, rng, odd)
    return plan


def _draw_photos(plan: Plan, rng: random.Random, odd: set[str]) -> None:
    roles = rng.choice((ROLES, ("train", "test"), ("train", "validation"))) if plan.told != "none" else ("",)
    names = list(plan.classes)
    count = rng.randint(2 * len(names) * len(roles), 18) if plan.labelled else rng.randint(len(roles) + 5, 12)
    suffixes = rng.choices(SUFFIXES, k=rng.choice((1, 4))) if "suffix" in odd else [rng.choice((".jpg", ".png"))]
    stems = [stem for stem in STEMS if plan.encoding != "cp1252" or not stem.startswith("写")]
    stem = rng.choice(stems) if "stem" in odd else "{}"
    stem = stem.replace("#", "") if plan.layout == "flickr8k" else stem  # its lines are name#number<TAB>caption
    shards = rng.choice((1, 2, 3)) if plan.layout in ("tar", "parquet") and plan.asked != "file" else 1
    lines = plan.layout in (*TABLES, "parquet", "parquet_paths")  # a caption may have several
    for number in range(count):
        split = roles[number if number < len(roles) else 0]
        if plan.labelled:
            split = roles[number // len(names) % len(roles)]
        elif number >= len(roles) + 3:
            split = rng.choice(roles)
        several = 1 if plan.form in ("one", "both") else rng.randint(1, 3)
        captions = [f"{rng.choice(CAPTIONS)} {number}{chr(97 + i)}" for i in range(several)]
        if rng.random() < 0.1:
            captions[0] = rng.choice(("[a dog in brackets]", "42", "['so] it is", "two\nlines"[: 9 if lines else 3]))
        if plan.layout == "flickr30k":  # its lines are name| number| caption
            captions = [caption.replace("|", "/") for caption in captions]
        file = stem.format(number) + rng.choice(suffixes)
        plan.photos.append(Photo(number, file, split, captions, names[number % len(names)], number % shards))
    states = ["truncated", "empty", "text", "foreign"]
    states += [] if plan.labelled else ["uncaptioned"]
    states += [] if plan.layout == "classes" else ["missing", "missing"]
    states += ["dotdot"] if plan.layout in (*TABLES, "parquet_paths") else []
    for photo in rng.sample(plan.photos, rng.choice((1, 2)) if "bad" in odd else 0):
        photo.state = rng.choice(states)
        if photo.state in ("truncated", "foreign"):
            photo.file = photo.file.rpartition(".")[0] + (".png" if photo.state == "truncated" else rng.choice(FOREIGN))
    if plan.link == "out" and plan.layout not in ("tar", "parquet"):
        rng.choice(plan.photos).state = "linked_out"
    if plan.stream and plan.layout == "tar" and plan.encoding == "cp1252":  # one text alone does not tell its encoding
        for photo in plan.photos:
            if photo.state == "good" and not "".join(photo.captions).isascii():
                photo.state = "unread"
