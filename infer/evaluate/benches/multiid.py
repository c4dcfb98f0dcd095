"""MultiID-Bench (Xu et al., ICLR 2026), its cases with one person.

    ID/{ori,ref_1}.jpg, ID/meta.json            the tree that its evaluation reads
    p1.json, p1/untar/NNNN{,_1}.jpg             what its conversion of the dataset writes

`ori` is a photograph of the same person in the scene of the prompt, and is the target. The numbers
of its cases are not published, so none is checked.
"""

from pathlib import Path

from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.benches.source import ENDINGS, Source, file_name, picture, visible
from dsd_jax.infer.evaluate.cases import Case
from dsd_jax.rows import lookup, plain_path
from dsd_jax.structured import read_json

__all__ = ["read_multiid"]

_INDEX, _FOLDER = "p1.json", Path("p1") / "untar"
_WORDS = ("prompt", "caption_en")


def read_multiid(source: Source) -> list[Case]:
    """Reads the cases with one reference.

    Raises:
        UserError: There are none, or one is incomplete or damaged.
    """
    root = source.root
    cases = _of_index(root) if (root / _INDEX).is_file() else _of_tree(root)
    if not cases:
        raise UserError(
            f"{root} has no folder with ori.jpg, ref_1.jpg and meta.json, and no {_INDEX}; give "
            "the folder that hf2bench.py of MultiID-Bench wrote"
        )
    return cases


def _of_index(root: Path) -> list[Case]:
    cases = []
    for number, entry in enumerate(read_json(root / _INDEX, list)):
        where = f"{root / _INDEX} entry {number}"
        prompt, references, original = (
            lookup({"entry": entry}, f"entry.{name}")
            for name in ("prompt", "image_paths", "ori_img_path")
        )
        if not (isinstance(references, list) and len(references) == 1 and original):
            raise UserError(f"{where} has not one reference and one original")
        paths = [root / _FOLDER / plain_path(str(each)) for each in (references[0], original)]
        cases.append(_case(Path(str(original)).stem, prompt, paths[0], paths[1], where))
    return cases


def _of_tree(root: Path) -> list[Case]:
    cases = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        files = {path.stem: path for path in visible(folder, *ENDINGS)}
        if not {"ori", "ref_1"} <= files.keys() or "ref_2" in files:
            continue  # no case, or several people
        meta = read_json(folder / "meta.json", dict)
        prompt = next((meta[name] for name in _WORDS if name in meta), None)
        where = str(folder / "meta.json")
        cases.append(_case(folder.name, prompt, files["ref_1"], files["ori"], where))
    return cases


def _case(entry: str, prompt: object, reference: Path, original: Path, where: str) -> Case:
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{where} has no prompt")
    name = file_name(entry)
    return Case(
        id=name,
        bench="multiid",
        subject=name,
        prompt=prompt,
        references=(picture(reference),),
        targets=(picture(original),),
        category="human",
        subject_text="person",
        tags={"entry": entry},
    )
