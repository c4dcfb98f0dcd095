"""Names of DreamBench++'s methods and subjects, which its files spell in several ways."""

import re

__all__ = ["METHODS", "method_word", "subject_key"]

METHODS = {
    "textual_inversion_sd": "Textual Inversion SD",
    "dreambooth_sd": "DreamBooth SD",
    "dreambooth_lora_sdxl": "DreamBooth LoRA SDXL",
    "blip_diffusion": "BLIP-Diffusion",
    "emu2": "Emu2",
    "ip_adapter_vit_g_sdxl": "IP-Adapter ViT-G SDXL",
    "ip_adapter_plus_vit_h_sdxl": "IP-Adapter-Plus ViT-H SDXL",
}
"""Methods of the released archive, by the word that stands for them in names of files."""

_OTHER_WORDS = {
    # Folders of samples, and files of few-shot examples.
    "ip_adapter_vit_giant_sdxl": "ip_adapter_vit_g_sdxl",
    "ip_adapter_plus_vit_huge_sdxl": "ip_adapter_plus_vit_h_sdxl",
    "ip_adapter_giant": "ip_adapter_vit_g_sdxl",
    "ip_adapter_huge_plus": "ip_adapter_plus_vit_h_sdxl",
    # Table 1 of the DSD paper.
    "textual_inversion": "textual_inversion_sd",
    "dreambooth": "dreambooth_sd",
    "dreambooth_lora": "dreambooth_lora_sdxl",
    "ip_adapter": "ip_adapter_vit_g_sdxl",
    "ip_adapter_plus": "ip_adapter_plus_vit_h_sdxl",
}
_SETTINGS = re.compile(r"(_scale\d[\d_]*)?_gs\d.*")  # that follow the method in a sample folder
_SUBJECT = re.compile(r"(?:live_subject_)?(animal|human|object|style)_(\d+)(?:_.*)?", re.DOTALL)


def method_word(name: str) -> str | None:
    """Finds the method of the archive that a name stands for.

    Args:
        name: Name of a folder, of a file without its ending, or of a method in a table.
    """
    word = _SETTINGS.sub("", name).lower().replace("+", "_plus")
    word = re.sub(r"[^a-z0-9]+", "_", word).strip("_")
    word = _OTHER_WORDS.get(word, word)
    return word if word in METHODS else None


def subject_key(subject: str) -> tuple[str, int] | None:
    """Category and number in the id of a subject, such as `live_subject_animal_00_kitten`.

    They identify the subject; its name does not, since `object_20` is `magic_cube` in some files
    and `rubik's_cube` in others, and several subjects have one name.
    """
    found = _SUBJECT.fullmatch(subject)
    return (found[1], int(found[2])) if found else None
