"""Imports of other methods' folders: every layout, and everything that can be wrong with one."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsd_jax import cli
from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.adopt import adopt
from dsd_jax.infer.evaluate.benches.names import method_word
from dsd_jax.infer.evaluate.cases import Case, Picture, read_cases, write_cases
from dsd_jax.infer.evaluate.runs import open_run

PROMPTS = ("a {} on snow", "a {} at night")
SUBJECTS = ("live_subject_animal_00_kitten", "object_20_magic_cube")


def draw(path: Path, seed: int, ending: str = "") -> Path:
    """A picture of soft spots, a different one for each seed."""
    path = path.with_suffix(ending) if ending else path
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8)
    Image.fromarray(pixels).resize((16, 16)).save(path)
    return path


@pytest.fixture
def cases(tmp_path):
    """Two subjects of DreamBench++ with two prompts each."""
    made = []
    for number, subject in enumerate(SUBJECTS):
        reference = Picture(draw(tmp_path / "bench" / f"{subject}.png", 100 + number), "0" * 64)
        name = subject.rpartition("_")[2]
        for index, prompt in enumerate(PROMPTS):
            made.append(
                Case(
                    f"{subject}-{index}",
                    "dreambench++",
                    subject,
                    prompt.format(name),
                    (reference,),
                    prompt_index=index,
                    tags={
                        "task": f"single_{number}",
                        "key": f"k{index}",
                        "entry": f"{number}{index}",
                    },
                )
            )
    write_cases(tmp_path / "cases.jsonl", made)
    return read_cases(tmp_path / "cases.jsonl")


@pytest.fixture
def tree(cases, tmp_path):
    """A complete folder in the layout of DreamBench++; object 20 has its other name."""
    root = tmp_path / "ours_gs7_5_step100_seed42_torch_float16"
    for number, case in enumerate(cases):
        subject = case.subject.replace("magic_cube", "rubik's_cube")
        name = f"{subject}/{case.prompt_index}_0"
        draw(root / "tgt_image" / name, number, ".png")
        (root / "src_image" / subject).mkdir(parents=True, exist_ok=True)
        Image.open(case.reference.path).resize((24, 24)).save(root / "src_image" / f"{name}.jpg")
        (root / "text" / subject).mkdir(parents=True, exist_ok=True)
        (root / "text" / f"{name}.txt").write_text(f"{case.prompt.upper()}\n")
    (root / "tgt_image" / SUBJECTS[0] / "._0_0.jpg").write_bytes(b"of a Mac")
    (root / "tgt_image" / ".DS_Store").write_bytes(b"of a Mac")
    (root / "negative_prompt.txt").write_text("")
    return root


def imported(folder: Path, tmp_path: Path, method: str = "ours", **options):
    return adopt(method, folder, tmp_path / "cases.jsonl", tmp_path / "run", **options)


def kinds(adopted) -> dict[str, list[str]]:
    return {kind: [each.case for each in own] for kind, own in adopted.kinds.items()}


class TestLayouts:
    def test_the_tree_of_dreambench_plus(self, cases, tree, tmp_path):
        adopted = imported(tree, tmp_path)
        assert (adopted.layout, adopted.findings, adopted.written) == ("dreambench++", [], True)
        run = open_run(tmp_path / "run")
        assert [image.case for image in run.images] == [case.id for case in cases]
        assert [image.sample for image in run.images] == [0, 0, 0, 0]
        assert all(image.path.is_relative_to(tree) for image in run.images)
        assert run.settings["seed"] == 42
        assert run.settings["sizes"] == {"16x16": 4}
        assert not list((tmp_path / "run").rglob("*.png"))

    @pytest.mark.parametrize(
        ("layout", "name"),
        [
            ("subject-prompt", "{case.subject}/{case.prompt_index}.png"),
            ("subject-prompt", "{case.subject}/{case.prompt_index}_0.png"),
            ("subject-prompt", "{case.subject}/{case.prompt}.png"),
            ("flat", "{case.id}.png"),
            ("flat", "{case.id}_0.webp"),
            ("omnicontext", "fullset/{case.tags[task]}/{case.tags[key]}.png"),
            ("omnicontext", "{case.tags[task]}/{case.tags[key]}.png"),
            ("multiid", "{case.tags[entry]}/out.jpg"),
            ("multiid", "{case.tags[entry]}/output_0.png"),
        ],
    )
    def test_other_layouts_are_found(self, cases, tmp_path, layout, name):
        for number, case in enumerate(cases):
            draw(tmp_path / "images" / name.format(case=case), number)
        adopted = imported(tmp_path / "images", tmp_path)
        assert (adopted.layout, kinds(adopted)) == (layout, {})
        assert [image.case for image in open_run(tmp_path / "run").images] == [c.id for c in cases]

    def test_a_table_tells_samples_seeds_and_texts(self, cases, tmp_path):
        lines = []
        for number, case in enumerate(cases):
            for sample in range(2):
                draw(tmp_path / "images" / f"{number}{sample}.png", 10 * number + sample)
                lines.append(
                    {"case": case.id, "image": f"{number}{sample}.png", "sample": sample,
                     "seed": 7 + sample, "prompt": case.prompt}
                )  # fmt: skip
        table = tmp_path / "images" / "made.jsonl"
        table.write_text("".join(json.dumps(line) + "\n" for line in lines))
        for place in (table, table.parent):
            adopted = imported(place, tmp_path)
            assert (adopted.layout, kinds(adopted)) == ("jsonl", {})
        images = open_run(tmp_path / "run").images
        assert [(image.sample, image.seed) for image in images] == [(0, 7), (1, 8)] * 4

    def test_xverse_counts_its_images(self, cases, tmp_path):
        made = [
            dataclasses.replace(case, bench="xverse", tags={"index": str(number)})
            for number, case in enumerate(cases)
        ]
        write_cases(tmp_path / "cases.jsonl", made)
        for number, case in enumerate(made):
            draw(tmp_path / "images" / f"{number}_{case.prompt.replace(' ', '_')}.png", number)
        adopted = imported(tmp_path / "images", tmp_path)
        assert ([image.case for image in adopted.images], kinds(adopted)) == (
            [case.id for case in made], {}
        )  # fmt: skip

    def test_several_images_of_an_omnicontext_case_are_not_their_collage(self, cases, tmp_path):
        for number, case in enumerate(cases):
            folder = tmp_path / "images" / case.tags["task"]
            for name in ("", "_0", "_1"):
                draw(
                    folder / f"{case.tags['key']}{name}.png",
                    10 * number + len(name) + int(name.endswith("1")),
                )
        adopted = imported(tmp_path / "images", tmp_path)
        assert (len(adopted.images), kinds(adopted)) == (8, {"extra": ["", "", "", ""]})

    def test_the_inputs_of_multiid_are_no_outputs(self, cases, tmp_path):
        for number, case in enumerate(cases):
            for name in ("ori", "ref_1", "out"):
                draw(tmp_path / "images" / case.tags["entry"] / f"{name}.jpg", number)
        assert kinds(imported(tmp_path / "images", tmp_path)) == {}

    def test_a_layout_that_does_not_fit_is_a_message(self, cases, tmp_path):
        folder = draw(tmp_path / "images" / "other.png", 0).parent
        with pytest.raises(
            UserError, match=r"has no image of any case in the layout flat; case li"
        ):
            imported(folder, tmp_path, layout="flat")
        with pytest.raises(
            UserError, match=r"in the layout auto; .* such as tgt_image/live_subject"
        ):
            imported(folder, tmp_path)
        (folder / "made.csv").write_text("case,path\na,b\n")
        with pytest.raises(UserError, match=r"made.csv has no column 'image'; a table of images"):
            imported(folder, tmp_path, layout="jsonl")
        with pytest.raises(UserError, match=r"there is no folder .*none; give the folder with the"):
            imported(tmp_path / "none", tmp_path)


class TestFaults:
    def test_missing_corrupt_and_duplicate_images_are_holes(self, cases, tree, tmp_path):
        kitten, cube = (tree / "tgt_image" / name for name in sorted(p.name for p in (
            tree / "tgt_image").iterdir() if p.is_dir()))  # fmt: skip
        (kitten / "0_0.png").unlink()
        whole = (kitten / "1_0.png").read_bytes()
        (kitten / "1_0.png").write_bytes(whole[: len(whole) // 2])
        shutil.copy(cube / "0_0.png", cube / "0.png")
        adopted = imported(tree, tmp_path)
        assert kinds(adopted) == {
            "missing": [cases[0].id], "corrupt": [cases[1].id], "duplicate": [cases[2].id],
        }  # fmt: skip
        assert (adopted.holes, adopted.written) == (3, False)
        assert not (tmp_path / "run" / "run.json").exists()
        report = json.loads((tmp_path / "run" / "import.json").read_text())
        assert report["missing"] == [{"case": cases[0].id, "sample": 0, "paths": []}]
        assert "the file is damaged" in report["corrupt"][0]["reason"]
        assert [Path(path).name for path in report["duplicate"][0]["paths"]] == ["0.png", "0_0.png"]
        assert imported(tree, tmp_path, partial=True).written
        run = open_run(tmp_path / "run")
        assert [image.case for image in run.images] == [cases[3].id]
        assert run.missing == [case.id for case in cases[:3]]
        assert run.settings["found"] == {"missing": 1, "corrupt": 1, "duplicate": 1}

    def test_a_subject_under_both_its_names_is_there_twice(self, cases, tree, tmp_path):
        for other in (tree / "tgt_image").glob("*rubik*"):
            shutil.copytree(other, other.with_name("object_20_magic_cube"))
        assert kinds(imported(tree, tmp_path))["duplicate"] == [cases[2].id, cases[3].id]

    def test_every_image_that_the_benchmark_asks_for_must_be_there(self, cases, tree, tmp_path):
        write_cases(
            tmp_path / "cases.jsonl", [dataclasses.replace(case, samples=2) for case in cases]
        )
        adopted = imported(tree, tmp_path)
        assert [(each.case, each.sample) for each in adopted.findings] == [
            (case.id, 1) for case in cases
        ]

    def test_extra_pictures_are_told_but_are_no_holes(self, cases, tree, tmp_path):
        draw(tree / "tgt_image" / "object_21_vase" / "0_0.png", 50)
        draw(tree / "tgt_image" / SUBJECTS[0] / "2_0.png", 51)
        adopted = imported(tree, tmp_path)
        assert (kinds(adopted), adopted.written) == ({"extra": ["", ""]}, True)

    def test_an_image_with_the_text_of_another_case_is_swapped(self, cases, tree, tmp_path):
        first, second = (tree / "text" / SUBJECTS[0] / f"{i}_0.txt" for i in (0, 1))
        first.write_text(second.read_text())
        (finding,) = imported(tree, tmp_path).findings
        assert (finding.kind, finding.case) == ("swapped", cases[0].id)
        assert finding.reason == f"its text is the prompt of {cases[1].id}"

    def test_an_image_with_the_reference_of_another_subject_is_swapped(self, cases, tree, tmp_path):
        source = tree / "src_image" / SUBJECTS[0] / "0_0.jpg"
        Image.open(cases[2].reference.path).resize((40, 40)).save(source, quality=60)
        (finding,) = imported(tree, tmp_path).findings
        assert (finding.kind, finding.case) == ("swapped", cases[0].id)
        assert finding.reason == "its src_image is the reference of object_20_magic_cube"

    def test_a_damaged_copy_of_the_reference_does_not_matter(self, cases, tree, tmp_path):
        (tree / "src_image" / SUBJECTS[0] / "0_0.jpg").write_bytes(b"")
        assert imported(tree, tmp_path).findings == []

    def test_an_image_of_two_cases_is_in_the_wrong_place_once(self, cases, tree, tmp_path):
        kitten, cube = sorted((tree / "tgt_image").glob("*/*_0.png"))[::3]
        shutil.copy(kitten, cube)
        adopted = imported(tree, tmp_path)
        assert kinds(adopted) == {"swapped": [cases[0].id, cases[3].id]}
        assert adopted.findings[0].reason == f"the same file stands for {cases[3].id}"

    def test_a_method_may_repeat_itself_for_a_subject_and_for_a_prompt(self, cases, tree, tmp_path):
        images = sorted((tree / "tgt_image").glob("*/*_0.png"))
        shutil.copy(images[0], images[1])
        adopted = imported(tree, tmp_path)
        assert (kinds(adopted), len(adopted.images)) == ({"repeated": [cases[0].id]}, 4)
        assert adopted.written

    def test_images_of_one_colour_are_told_and_used(self, cases, tree, tmp_path):
        for path in (tree / "tgt_image").glob("*/1_0.png"):
            Image.new("RGB", (16, 16)).save(path)
        adopted = imported(tree, tmp_path)
        assert (kinds(adopted), len(adopted.images)) == ({"blank": [cases[1].id, cases[3].id]}, 4)

    def test_texts_that_were_changed_are_told(self, cases, tree, tmp_path):
        (tree / "text" / SUBJECTS[0] / "0_0.txt").write_text("a fluffy kitten on deep snow")
        (finding,) = imported(tree, tmp_path).findings
        assert (finding.kind, finding.reason) == ("rephrased", "a fluffy kitten on deep snow")


class TestMethods:
    @pytest.mark.parametrize(
        ("name", "word"),
        [
            ("ip_adapter_plus_vit_huge_sdxl_scale0_6_gs7_5_step100_seed42_torch_float16",
             "ip_adapter_plus_vit_h_sdxl"),
            ("ip_adapter_vit_giant_sdxl_scale0_6_gs7_5_step100_seed42_torch_float16",
             "ip_adapter_vit_g_sdxl"),
            ("IP Adapter Huge Plus", "ip_adapter_plus_vit_h_sdxl"),
            ("IP-Adapter+", "ip_adapter_plus_vit_h_sdxl"),
            ("IP-Adapter", "ip_adapter_vit_g_sdxl"),
            ("BLIP Diffusion", "blip_diffusion"),
            ("DreamBooth-LoRA", "dreambooth_lora_sdxl"),
            ("emu2_gs3_step50_seed42_torch_bfloat16", "emu2"),
            ("DSD", None),
        ],
    )  # fmt: skip
    def test_the_archive_has_several_names_for_a_method(self, name, word):
        assert method_word(name) == word

    def test_a_method_is_found_among_the_samples_of_the_archive(self, cases, tree, tmp_path):
        samples = tmp_path / "samples"
        for name in ("ip_adapter_vit_giant_sdxl_gs7_5_seed42", "emu2_gs3_step50_seed42"):
            shutil.copytree(tree, samples / name)
        imported(samples, tmp_path, method="IP-Adapter")
        run = open_run(tmp_path / "run")
        assert run.images[0].path.is_relative_to(samples / "ip_adapter_vit_giant_sdxl_gs7_5_seed42")
        with pytest.raises(
            UserError, match=r"several methods, and none of them is DSD: emu2_gs3_st"
        ):
            imported(samples, tmp_path, method="DSD")


class TestCommand:
    def test_holes_are_shown_and_stop_the_import(self, cases, tree, tmp_path, capsys):
        (tree / "tgt_image" / SUBJECTS[0] / "0_0.png").unlink()
        words = ["evaluate", "import", "ours", str(tree), "--cases", str(tmp_path / "cases.jsonl"),
                 "--output_dir", str(tmp_path / "run")]  # fmt: skip
        with pytest.raises(SystemExit, match="1"):
            cli.main(words)
        out = capsys.readouterr().out
        assert out.startswith("layout   dreambench++\nused     3 images\n")
        assert f"missing  1, such as {cases[0].id}\n" in out
        assert "1 images are missing or cannot be used, so no run was written" in out
        assert f"{tmp_path / 'run' / 'import.json'} has the full lists" in out
        assert cli.main([*words, "--partial"]) == 0
        assert f"wrote {tmp_path / 'run'}" in capsys.readouterr().out
