"""Benchmarks of other people, from trees in their official layouts with tiny pictures."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import arro3.io
import numpy as np
import pytest
from arro3 import core
from PIL import Image

from dsd_jax.data.pairs.export import Licence, export_pairs
from dsd_jax.errors import UserError
from dsd_jax.images import open_image
from dsd_jax.infer.evaluate.benches.dreambench import (
    _SUBJECTS,
    read_dreambench,
    read_dreambench_once,
)
from dsd_jax.infer.evaluate.benches.dreambench_plus import read_dreambench_plus
from dsd_jax.infer.evaluate.benches.registry import BenchName, counts, prepare
from dsd_jax.infer.evaluate.benches.source import Source
from dsd_jax.infer.evaluate.cases import Case, read_cases
from tests.tiny_pairs import image_bytes, write_pairs

FOLDERS = {"live_subject/animal": 45, "live_subject/human": 20, "object": 65, "style": 20}
NAMES = {"object/20": "rubik's cube", "object/21": "stuffed animal", "object/22": "T-shirt"}


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def whole_dreambench_plus(tmp_path_factory) -> Path:
    """All 150 subjects, and the files that archives made on a Mac have besides."""
    root = tmp_path_factory.mktemp("official") / "dreambench_plus"
    for place, (folder, count) in enumerate(FOLDERS.items()):
        for number in range(count):
            name = f"{folder}/{number:02d}"
            draw(root / "images" / f"{name}.jpg", 1000 * place + number)
            captions = root / "captions" / f"{name}.txt"
            captions.parent.mkdir(parents=True, exist_ok=True)
            subject = NAMES.get(name, "Kitten")
            lines = [subject, *(f"a {subject} of {name}, prompt {i}" for i in range(9))]
            captions.write_text("\n".join(lines) + "\n\n")
    (root / "images" / "object" / "._00.jpg").write_bytes(b"of a Mac")
    (root / "images" / "object" / ".DS_Store").write_bytes(b"of a Mac")
    (root / "captions" / "object" / "._00.txt").write_bytes(b"of a Mac")
    return root


@pytest.fixture
def dreambench_plus(whole_dreambench_plus, tmp_path) -> Path:
    """A copy whose files may be changed; pictures are links."""
    shutil.copytree(whole_dreambench_plus, tmp_path / "data", copy_function=os.link)
    return tmp_path


@pytest.fixture(scope="module")
def dreambench_plus_cases(whole_dreambench_plus) -> list[Case]:
    return read_dreambench_plus(Source((whole_dreambench_plus,), whole_dreambench_plus))


def prepared(name: BenchName, *roots: Path, released: bool = False) -> list[Case]:
    folder = roots[0] / "prepared"
    source = Source(roots, folder / "pictures", released=released)
    cases = prepare(name, source, folder / "cases.jsonl")
    assert cases == read_cases(folder / "cases.jsonl")
    return cases


def replace(path: Path, content: str | bytes) -> None:
    path.unlink()  # it may be a link
    path.write_bytes(content.encode() if isinstance(content, str) else content)


class TestDreamBenchPlus:
    def test_all_subjects_have_nine_prompts_of_three_classes(self, dreambench_plus_cases):
        cases = dreambench_plus_cases
        rows = counts(cases)[1]
        assert [row[:3] for row in rows] == [
            ["animal", "45", "405"], ["human", "20", "180"], ["object", "65", "585"],
            ["style", "20", "180"], ["all", "150", "1350"],
        ]  # fmt: skip
        first = cases[:9]
        assert [case.id for case in first] == [
            f"live_subject_animal_00_kitten-{i}" for i in range(9)
        ]
        assert first[4].prompt == "a Kitten of live_subject/animal/00, prompt 4"
        assert first[0].subject_text == "Kitten"
        classes = [case.prompt_class for case in first]
        assert classes == ["photorealistic"] * 4 + ["style"] * 3 + ["imaginative"] * 2

    def test_names_do_not_decide_the_category(self, dreambench_plus_cases):
        objects = [
            case
            for case in dreambench_plus_cases
            if case.category == "object" and case.prompt_index == 0
        ]
        assert [case.subject for case in objects[20:23]] == [
            "object_20_rubik's_cube", "object_21_stuffed_animal", "object_22_t-shirt"
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("images/object/03.jpg", b"\xff\xd8\xff", "object/03.jpg is not a picture that can be"),
            (
                "captions/object/03.txt",
                "cup\na cup\n",
                "03.txt has 1 prompts, expected 9; the down",
            ),
            ("captions/object/03.txt", " \n", "03.txt is empty; the download is damaged"),
            ("captions/object/03.txt", b"caf\xe9", "03.txt is not UTF-8; the download is damaged"),
        ],
    )
    def test_a_damaged_file_is_named(self, dreambench_plus, name, content, message):
        replace(dreambench_plus / "data" / name, content)
        with pytest.raises(UserError, match=message):
            prepared("dreambench++", dreambench_plus)
        assert not (dreambench_plus / "prepared").exists()

    def test_what_is_missing_is_counted(self, dreambench_plus):
        data = dreambench_plus / "data"
        (data / "captions" / "style" / "19.txt").unlink()
        with pytest.raises(
            UserError, match="style/19 have a picture or a file of prompts, but not"
        ):
            prepared("dreambench++", dreambench_plus)
        (data / "images" / "style" / "19.jpg").unlink()
        message = r"data has 19 pictures in images/style, expected 20; the download is incomplete"
        with pytest.raises(UserError, match=message):
            prepared("dreambench++", dreambench_plus)
        with pytest.raises(
            UserError, match=r"has no folders images and captions; unpack data.zip of"
        ):
            prepared("dreambench++", data / "images")


@pytest.fixture(scope="module")
def dreambooth(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("dreambooth")
    for number, (name, subject) in enumerate(_SUBJECTS.items()):
        for photograph in range(subject.photographs):
            draw(root / "dataset" / name / f"{photograph:02d}.jpg", 10 * number + photograph)
    templates = [
        f"'a {{0}} {{1}} in place {i}'.format(unique_token, class_token)," for i in range(50)
    ]
    (root / "dataset" / "prompts_and_classes.txt").write_text("\n".join(templates))
    return root


class TestDreamBench:
    def test_one_photograph_is_the_reference_and_the_others_are_targets(self, dreambooth):
        cases = read_dreambench_once(Source((dreambooth,), dreambooth, released=False))
        assert [row[1:6] for row in counts(cases)[1]] == [
            ["21", "525", "525", "21", "90"], ["9", "225", "225", "9", "38"],
            ["30", "750", "750", "30", "128"],
        ]  # fmt: skip
        backpack = cases[0]
        assert (backpack.id, backpack.prompt) == ("backpack-00", "a backpack in place 0")
        assert backpack.reference.path.name == "02.jpg"
        assert [each.path.name for each in backpack.targets] == [
            "00.jpg", "01.jpg", "03.jpg", "04.jpg", "05.jpg"
        ]  # fmt: skip
        (dog,) = (case for case in cases if case.id == "dog-12")
        assert (dog.prompt, dog.category, dog.prompt_class) == (
            "a dog in place 37", "live", "accessory"
        )  # fmt: skip
        assert cases[24].prompt_class == "property"

    def test_the_original_protocol_asks_for_four_images(self, dreambooth):
        cases = read_dreambench(Source((dreambooth,), dreambooth, released=False))
        assert sum(case.samples for case in cases) == 3000
        assert len(cases[0].references) == 6
        assert cases[0].reference.path.name == "02.jpg"
        assert cases[0].reference not in cases[0].targets

    def test_photographs_that_were_not_released_must_be_accepted(self, dreambooth):
        message = r"the pictures of backpack, .* are not those that were released; download them"
        with pytest.raises(UserError, match=message):
            prepared("dreambench-750", dreambooth, released=True)

    def test_a_photograph_or_a_prompt_too_few_is_counted(self, dreambooth, tmp_path):
        shutil.copytree(dreambooth, tmp_path / "clone", copy_function=os.link)
        (tmp_path / "clone" / "dataset" / "can" / "05.jpg").unlink()
        with pytest.raises(UserError, match="can has 5 photographs, expected 6"):
            prepared("dreambench-750", tmp_path / "clone")
        replace(tmp_path / "clone" / "dataset" / "prompts_and_classes.txt", "backpack,backpack\n")
        with pytest.raises(UserError, match=r"prompts_and_classes.txt has 0 prompts, expected 50"):
            prepared("dreambench-750", tmp_path / "clone")
        with pytest.raises(UserError, match=r"give a clone of github.com/google/dreambooth"):
            prepared("dreambench-750", tmp_path)


class TestXVerse:
    @pytest.fixture
    def clone(self, tmp_path) -> Path:
        root = tmp_path / "xverse"
        entries: list[dict[str, Any]] = []
        for category, count in (("object", 33), ("animal", 29), ("human", 20)):
            names = [f"{number:02d}" for number in range(count)]
            names += [f"{number}" for number in range(65, 73)] if category == "object" else []
            for name in names:
                picture = f"assets/XVerseBench/{category}/{name}_a thing.jpg"
                source = {"image_path": picture, "caption": "a thing"}
                entries.append(
                    {"index": len(entries), "prompt": f"a thing, {category} {name}",
                     "modulation": [{"type": "adapter", "src_inputs": [source]}]}
                )  # fmt: skip
                if category == "human":
                    draw(root / picture, 500 + int(name))
        path = root / "eval" / "tools" / "XVerseBench_single.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(entries))
        return root

    def test_objects_and_animals_are_pictures_of_dreambench_plus(self, clone, dreambench_plus):
        cases = {case.id: case for case in prepared("xverse", clone, dreambench_plus)}
        assert len(cases) == 90
        images = dreambench_plus / "data" / "images"
        assert cases["animal_13"].reference.path == images / "live_subject" / "animal" / "13.jpg"
        assert cases["object_07"].reference.path == images / "object" / "07.jpg"
        assert cases["object_71"].reference.path == images / "live_subject" / "human" / "14.jpg"
        assert cases["human_05"].reference.path.is_relative_to(clone)
        assert (cases["human_05"].subject_text, cases["human_05"].category) == ("thing", "human")

    def test_what_is_not_as_released_is_refused(self, clone, dreambench_plus):
        path = clone / "eval" / "tools" / "XVerseBench_single.json"
        with pytest.raises(
            UserError, match="is not the list that was released; restore it, or acc"
        ):
            prepared("xverse", clone, dreambench_plus, released=True)
        entries = json.loads(path.read_text())
        path.write_text(json.dumps(entries[1:]))
        with pytest.raises(UserError, match="has 40 cases of object, expected 41"):
            prepared("xverse", clone, dreambench_plus)
        path.write_text(json.dumps([{"prompt": "a"}]))
        with pytest.raises(UserError, match="entry 0 has no prompt, or not one subject"):
            prepared("xverse", clone, dreambench_plus)
        with pytest.raises(
            UserError, match=r"and the unpacked data.zip of DreamBench.*DIR DIR, got 1"
        ):
            prepared("xverse", clone)


class TestOmniContext:
    def row(self, number: int, task: str, **fields: Any) -> dict[str, Any]:
        picture = {"bytes": None, "path": f"{number}.png"}
        return {"key": f"k {number}", "task_type": task, "instruction": f"a thing {number}",
                "instruction_language": "en", "input_images": [picture], **fields}  # fmt: skip

    def table(self, folder: Path, *rows: dict[str, Any]) -> Path:
        for number in range(4):
            draw(folder / f"{number}.png", number)
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    def test_tasks_with_one_subject_are_taken(self, tmp_path):
        two = [{"path": "0.png"}, {"path": "1.png"}]
        root = self.table(
            tmp_path,
            self.row(0, "single_object"),
            self.row(1, "scene_character", input_images=two),
            self.row(2, "multi_object", input_images=two),
            self.row(3, "single_object", instruction_language="zh"),
        )
        first, second = prepared("omnicontext", root)
        assert (first.id, first.category) == ("single_object-k_0", "single_object")
        assert first.tags == {"task": "single_object", "key": "k 0"}
        assert [each.path.name for each in second.references] == ["0.png", "1.png"]

    def test_pictures_in_the_table_become_files(self, tmp_path):
        files = core.Array(
            [image_bytes(0), image_bytes(1, 32, 32, "GIF")], type=core.DataType.binary()
        )
        fields = [core.Field("bytes", core.DataType.binary())]
        pictures = core.struct_array([files], fields=fields)
        lists = core.list_array(core.Array([0, 1, 2], type=core.DataType.int32()), pictures)
        words = {"key": ["a", "b"], "task_type": ["single_object"] * 2, "instruction": ["x", "y"]}
        columns = {k: core.Array(v, type=core.DataType.string()) for k, v in words.items()}
        table = core.Table.from_pydict({**columns, "input_images": lists})
        (tmp_path / "data").mkdir()
        arro3.io.write_parquet(table, str(tmp_path / "data" / "train-00000-of-00001.parquet"))
        first, second = prepared("omnicontext", tmp_path)
        assert first.reference.path.read_bytes() == image_bytes(0)
        assert second.reference.path.name == "single_object-b-0.png"
        assert open_image(second.reference.path).size == (32, 32)

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            (
                {"task_type": "multi_object"},
                "has no row of a task such as single_object; its tasks",
            ),
            ({"instruction": ""}, "row 1 lacks a key, an instruction or input_images"),
            ({"input_images": []}, "row 1 lacks a key, an instruction or input_images"),
            ({"input_images": [3]}, "row 1: an input image is neither bytes nor a path"),
        ],
    )
    def test_a_row_that_cannot_be_used_is_named(self, tmp_path, row, message):
        root = self.table(tmp_path, self.row(0, "single_object") | row)
        with pytest.raises(UserError, match=message):
            prepared("omnicontext", root)


class TestMultiId:
    def test_the_tree_gives_cases_of_one_person(self, tmp_path):
        for entry, files in (("0001", ("ori", "ref_1")), ("0002", ("ori", "ref_1", "ref_2"))):
            for number, name in enumerate(files):
                draw(tmp_path / entry / f"{name}.jpg", 10 * int(entry) + number)
            (tmp_path / entry / "meta.json").write_text('{"prompt": "a person with a hat"}')
        (case,) = prepared("multiid", tmp_path)
        assert (case.id, case.prompt, case.tags) == (
            "0001",
            "a person with a hat",
            {"entry": "0001"},
        )
        assert (case.reference.path.name, case.targets[0].path.name) == ("ref_1.jpg", "ori.jpg")
        (tmp_path / "0001" / "meta.json").write_text("{}")
        with pytest.raises(UserError, match=r"0001/meta.json has no prompt"):
            prepared("multiid", tmp_path)

    def test_the_converted_dataset_gives_the_same(self, tmp_path):
        draw(tmp_path / "p1" / "untar" / "0001.jpg", 0)
        draw(tmp_path / "p1" / "untar" / "0001_1.jpg", 1)
        entry = {"prompt": "a hat", "image_paths": ["0001_1.jpg"], "ori_img_path": "0001.jpg"}
        (tmp_path / "p1.json").write_text(json.dumps([entry]))
        (case,) = prepared("multiid", tmp_path)
        assert (case.id, case.prompt) == ("0001", "a hat")
        assert (case.reference.path.name, case.targets[0].path.name) == ("0001_1.jpg", "0001.jpg")
        (tmp_path / "p1.json").write_text(json.dumps([entry | {"image_paths": []}]))
        with pytest.raises(UserError, match=r"p1.json entry 0 has not one reference and one orig"):
            prepared("multiid", tmp_path)

    def test_another_folder_is_refused(self, tmp_path):
        with pytest.raises(
            UserError, match=r"give the folder that hf2bench.py of MultiID-Bench wrote"
        ):
            prepared("multiid", tmp_path)


class TestPairs:
    def test_the_target_is_the_other_frame(self, tmp_path):
        store = write_pairs(tmp_path / "pairs", 3)
        export_pairs(store, tmp_path / "out", "folder", Licence())
        cases = prepared("pairs", tmp_path / "out")
        assert [case.id for case in cases] == ["pair-0", "pair-1", "pair-2"]
        assert cases[1].prompt == "a red cat number 1"
        assert (cases[1].subject_text, cases[1].category) == ("cat", "identity")
        assert cases[1].tags == {"pair": "pair-1", "task": "identity"}
        assert cases[1].reference.path.read_bytes() == store[1].reference
        assert cases[1].targets[0].path.read_bytes() == store[1].target

    def test_pairs_of_a_grid_have_one_subject(self, tmp_path):
        draw(tmp_path / "a.png", 0)
        rows = [
            {"reference_file_name": "a.png", "target_file_name": "a.png", "id": f"g7/{i}",
             "instruction": f"move it {i}", "provenance": json.dumps({"grid": {"id": "g7"}})}
            for i in range(2)
        ]  # fmt: skip
        (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        cases = prepared("pairs", tmp_path)
        assert [(case.id, case.subject, case.prompt_index) for case in cases] == [
            ("g7_0", "g7", 0), ("g7_1", "g7", 1)
        ]  # fmt: skip
        assert [case.tags for case in cases] == [{"pair": "g7/0"}, {"pair": "g7/1"}]  # no task

    def test_another_table_is_refused(self, tmp_path):
        (tmp_path / "a.csv").write_text("id,reference\n1,a.png\n")
        with pytest.raises(
            UserError, match="has no column reference_file_name; export the pairs wit"
        ):
            prepared("pairs", tmp_path)
