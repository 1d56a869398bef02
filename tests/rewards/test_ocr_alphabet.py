"""Which OCR targets the recogniser can read: told before a GPU is asked for, by its own list of characters."""

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import rapidocr
from onnxruntime import InferenceSession
from PIL import Image, ImageDraw, ImageFont

from marble_core.config.loading import load_config
from marble_core.rewards.ocr import Ocr
from marble_core.rewards.ocr_alphabet import OCR_LANGUAGES, alphabet
from marble_core.storage.downloads import WebFile
from marble_core.training.data_check import checked_data
from marble_core.types import MarbleError, Prompt


def onnx_file(path, *entries):
    """An ONNX model with this metadata and nothing else, as protobuf writes it: its IR version, then one entry each."""

    def field(number, data):
        size, length = len(data), b""
        while size > 127:
            length, size = length + bytes([size % 128 + 128]), size // 128
        return bytes([number * 8 + 2]) + length + bytes([size]) + data

    props = [field(14, field(1, key.encode()) + field(2, value.encode())) for key, value in entries]
    path.write_bytes(b"\x08\x08" + field(7, b"\x0a" * 1000) + b"".join(props))
    return path


def in_cache(uri, data):
    """What the model cache holds for the uri."""
    return WebFile(uri).versions.bring("1", lambda target: target.write_bytes(data))


def wheel_model():
    return Path(rapidocr.__file__).parent / "models" / "PP-OCRv6_rec_small.onnx"


def test_the_alphabet_is_that_of_the_recogniser_that_scores_and_so_is_the_record_of_it():
    session = InferenceSession(str(wheel_model()), providers=["CPUExecutionProvider"])
    written = set(session.get_modelmeta().custom_metadata_map["character"].split("\n"))
    assert alphabet({}).characters == written
    record = json.loads(files("marble_core.rewards").joinpath("ocr_alphabet.json").read_text(encoding="utf-8"))
    assert set(record["characters"]) == written, "another rapidocr: write the characters of its model into ocr_alphabet.json"


def test_without_rapidocr_as_in_the_image_of_prepare_the_record_stands_for_it_and_no_torch_is_imported():
    script = (
        "import sys, importlib.metadata as m\n"
        "sys.modules.update(dict.fromkeys(['torch', 'rapidocr', 'onnxruntime', 'PIL']))\n"
        "real = m.files\n"
        "def files(name):\n"
        "    if name == 'rapidocr': raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.files = files\n"
        "from marble_core.rewards.ocr_prompts import check_readable\n"
        "from marble_core.rewards.ocr_alphabet import alphabet\n"
        "print(len(alphabet({}).characters))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(alphabet({}).characters)


@pytest.mark.parametrize(
    ("target", "best", "missing"),
    [
        ("It’s open…", 1, ""),
        ("20 °C", 1, ""),
        ("東京", 1, ""),
        ("ΤΑΒΕΡΝΑ", 1, ""),
        ("Ταβέρνα", 6 / 7, "έ"),
        ("οδος", 3 / 4, "ς"),
        ("¡Hola!", 5 / 6, "¡"),
        ("Việt Nam", 6 / 7, "ệ"),
        ("„Offen“", 6 / 7, "„"),
        ("Кафе 2026", 4 / 8, "Кафе"),
        ("Привет", 0, "Привет"),
        ("ทดสอบ", 0, "ทดสบ".replace("ส", "สอ")),
    ],
)
def test_the_best_possible_score_is_the_share_of_characters_that_can_be_read(target, best, missing):
    letters = alphabet({})
    assert letters.best(target) == pytest.approx(best) and letters.missing(target) == missing
    read = "".join(c for c in target if c not in missing)
    perfect = Ocr(reader=lambda _: [read], workers=1).score(np.zeros((1, 1, 1, 3)), [Prompt("", "ocr", {"text": target})])
    assert perfect[0, 0] == pytest.approx(best), "a reader that reads all else"


def test_by_the_published_rule_a_character_is_its_code_point():
    letters = alphabet({"published": True})
    assert letters.best("STOP sign") == 1 and letters.best("Wait…") == 1 and letters.best("co\u00adop") == pytest.approx(0.8)


def ocr_run(tmp_path, lines, *overrides):
    (tmp_path / "p.txt").write_text("\n".join(f'a sign "{line}"' for line in lines) + "\n", encoding="utf-8")
    return load_config(
        "demo", overrides=[f"data.train.ocr={tmp_path}/p.txt", "data.train_size=20", "data.evaluation_size=9", *overrides]
    )


def test_a_target_without_a_readable_letter_is_refused_with_its_line_and_what_to_do(tmp_path):
    with pytest.raises(MarbleError) as caught:
        checked_data(ocr_run(tmp_path, ["STOP", "Привет!", "Кафе"]))
    said = str(caught.value)
    assert f"{tmp_path}/p.txt, line 2" in said and "'Привет!'" in said and "eslav" in said and said.endswith(".")


def test_targets_that_can_be_read_in_part_are_named_with_their_lines_and_best_scores(tmp_path):
    data = checked_data(ocr_run(tmp_path, ["STOP", "¡Hola!", "οδος", "Việt Nam", "Кафе 2026"]))
    (said,) = data.warnings
    assert said.startswith("4 OCR targets of train hold characters that the recogniser cannot read")
    assert f"p.txt, line 2 ('¡Hola!' without '¡': 0.83), {tmp_path}/p.txt, line 3 ('οδος' without 'ς': 0.75)" in said
    assert said.endswith(" and 1 more.") and "line 5" not in said


def test_what_nobody_asked_to_be_drawn_is_not_refused(tmp_path):
    (tmp_path / "g.txt").write_text('a "Привет"\na cat\n', encoding="utf-8")
    options = "rewards=[{name: ocr, options: {detection: false, published: true}}]"
    assert checked_data(ocr_run(tmp_path, ["STOP"], f"data.train.general={tmp_path}/g.txt")).warnings == []
    (said,) = checked_data(ocr_run(tmp_path, ["STOP"], f"data.train.general={tmp_path}/g.txt", options)).warnings
    assert "g.txt, line 1 ('Привет' without 'Привет': 0.00)" in said


def test_the_demo_and_the_generated_prompts_give_no_warning():
    assert checked_data(load_config("demo")).warnings == []
    letters = alphabet({})
    from marble_core.prompts.sources import load

    assert all(letters.best(p.prompt.metadata.get("text")) == 1 for p in load("generate://ocr", "ocr", 2000, 0, held_out=False))


def test_another_language_is_checked_by_its_own_alphabet(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    model = onnx_file(tmp_path / "eslav.onnx", ("note", "x"), ("character", "\n".join("!КафеПривтСОП")))
    in_cache(OCR_LANGUAGES["eslav"], model.read_bytes())
    assert alphabet({"language": "eslav"}).characters == set("!КафеПривтСОП")
    eslav = "rewards=[{name: ocr, options: {language: eslav}}]"
    with pytest.raises(MarbleError, match="'STOP'"):
        checked_data(ocr_run(tmp_path, ["Привет", "STOP"], eslav, "data.train={ocr: " + str(tmp_path / "p.txt") + "}"))
    assert [asset.uri for asset in Ocr.card.assets({"language": "eslav"})] == [OCR_LANGUAGES["eslav"]]
    with pytest.raises(MarbleError, match=r"no language 'russian': choose one of cyrillic, .*eslav"):
        checked_data(ocr_run(tmp_path, ["STOP"], "rewards=[{name: ocr, options: {language: russian}}]"))


def test_a_language_whose_recogniser_is_not_to_be_had_is_a_warning_where_no_gpu_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setitem(OCR_LANGUAGES, "th", "http://127.0.0.1:9/th.onnx")
    (said,) = checked_data(ocr_run(tmp_path, ["STOP"], "rewards=[{name: ocr, options: {language: th}}]")).warnings
    assert said.startswith("It was not checked whether the OCR targets can be read: http://127.0.0.1/th.onnx is not in")


@pytest.mark.parametrize("data", [b"", b"\x08", b"\x0b\x00", b"\x72\xff\xff\xff\xff\x0f\x0a"])
def test_a_damaged_recogniser_is_one_sentence(tmp_path, monkeypatch, data):
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    place = in_cache(OCR_LANGUAGES["ta"], data)
    with pytest.raises(MarbleError, match="does not say which characters it can write") as caught:
        alphabet({"language": "ta"})
    assert str(place) in str(caught.value)


def test_the_languages_recogniser_is_the_one_that_reads(tmp_path, monkeypatch):
    """A copy of the wheel's model in the place of another language's, with an alphabet in which A is written as @."""
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    data = wheel_model().read_bytes()
    at = data.rindex(b"character\x12")
    in_cache(OCR_LANGUAGES["cyrillic"], data[:at] + data[at:].replace(b"\nA\nB\nC", b"\n@\nB\nC", 1))
    picture = Image.new("RGB", (256, 96), "white")
    ImageDraw.Draw(picture).text((24, 24), "CAB", "black", ImageFont.load_default(48))
    image = np.asarray(picture)[None]
    for detection in (True, False):
        scorer = Ocr(language="cyrillic", detection=detection)
        assert scorer.score(image, [Prompt("", "ocr", {"text": "C@B"})])[0].tolist() == [1, 1]
