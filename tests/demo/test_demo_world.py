"""The synthetic world: its prompts, drawings, detector, counterexamples and assets."""

import subprocess
import sys
from random import Random

import numpy as np
import pytest

from marble_core.demo.counterexamples import alter, misdescribe, spoil
from marble_core.demo.draw import draw
from marble_core.demo.prompts import BLOB, catalogue, entries, generate
from marble_core.demo.scenes import SIZE, Shapes, Thing
from marble_core.demo.shapes import ShapesDetector
from marble_core.storage.uri import WEIGHTS, resolve
from marble_core.types import SOURCES, MarbleError


def pictures_of(chosen, seed=0):
    rng = Random(seed)
    return np.stack([np.asarray(draw(rng.choice(entry.scenes), rng)) for entry in chosen])


@pytest.mark.parametrize("source", SOURCES)
def test_prompts_are_a_function_of_their_arguments(source):
    assert generate(source, 50, 3, False) == generate(source, 50, 3, False)
    assert generate(source, 50, 3, False) != generate(source, 50, 4, False)


@pytest.mark.parametrize("source", SOURCES)
def test_training_and_held_out_prompts_share_no_text_whatever_the_seeds(source):
    train = {p.text for seed in (0, 1) for p in generate(source, 2000, seed, False)}
    held_out = {p.text for seed in (0, 2) for p in generate(source, 300, seed, True)}
    assert not train & held_out


@pytest.mark.parametrize("source", SOURCES)
def test_a_text_is_repeated_only_where_its_kind_has_too_few(source):
    chosen = [p.text for p in generate(source, 2000, 0, False)]
    for kind in catalogue(source).values():
        counts = [chosen.count(entry.prompt.text) for entry in kind if entry.prompt.text in chosen]
        assert max(counts) - min(counts) <= 1


def test_a_held_out_set_of_96_repeats_hardly_any_text():
    for source in SOURCES:
        assert len({p.text for p in generate(source, 96, 0, True)}) >= 90


def test_every_prompt_is_of_its_source_and_fits_the_tokenizer():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve("demo://sd3") / "tokenizer")
    for source in SOURCES:
        for entry in (entry for kind in catalogue(source).values() for entry in kind):
            prompt = entry.prompt
            assert prompt.source == source
            assert (prompt.metadata.get("text") is not None) == (source == "ocr")
            assert bool(prompt.metadata.get("include")) == (source == "geneval")
        texts = [entry.prompt.text for kind in catalogue(source).values() for entry in kind]
        ids = tokenizer(texts).input_ids
        assert max(map(len, ids)) <= 16
        assert all(tokenizer.unk_token_id not in row for row in ids)


def test_prompt_files_and_the_demo_speak_the_same_language(tmp_path):
    import json

    from marble_core.prompts import read_prompts

    file = tmp_path / "prompts.jsonl"
    prompts = [p for source in SOURCES for p in generate(source, 40, 0, False)]
    names = {"text": "prompt", "target": "text"}
    rows = [{names.get(key, key): value for key, value in vars(p).items()} for p in prompts]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    assert read_prompts(file) == json.loads(json.dumps([vars(p) for p in prompts]), object_hook=_as_prompt)


def _as_prompt(row):
    from marble_core.types import Prompt

    if "source" not in row:
        return row
    return Prompt(**row)


def test_drawing_is_deterministic_and_of_the_models_size():
    entry = entries("general", 1, 0, False)[0]
    first, again = (draw(entry.scenes[0], Random(5)) for _ in range(2))
    assert first.size == (SIZE, SIZE) and first.mode == "RGB"
    assert first.tobytes() == again.tobytes()


def test_the_detector_reads_ground_truth():
    chosen = entries("geneval", 200, 1, False)
    detector, right = ShapesDetector(), 0
    for entry, image in zip(chosen, pictures_of(chosen), strict=True):
        detections = detector.detect(image)
        read = sorted(zip(detector.colors(image, detections), [d.label for d in detections], strict=True))
        right += read == sorted((thing.color, thing.shape) for thing in entry.scenes[0].things)
    assert right >= 198


def test_what_is_no_clear_shape_is_a_blob():
    image = np.full((SIZE, SIZE, 3), 250, np.uint8)
    image[30:34, 5:60] = (222, 34, 34)
    assert [d.label for d in ShapesDetector().detect(image)] == [BLOB]
    assert ShapesDetector().detect(np.full((SIZE, SIZE, 3), 99, np.uint8)) == []


def test_a_box_spans_the_shape():
    image = np.asarray(draw(Shapes((Thing("red", "square"),), "white"), Random(0)))
    (detection,) = ShapesDetector().detect(image)
    rows, columns = np.nonzero(detection.mask)
    assert detection.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_counterexamples_differ_from_what_they_counter():
    rng = Random(0)
    for source in SOURCES:
        for entry in entries(source, 60, 0, False):
            text = entry.prompt.text
            assert misdescribe(text, rng) != text
            scene = entry.scenes[0]
            picture = draw(scene, Random(1))
            assert spoil(picture, rng).tobytes() != picture.tobytes()
            assert alter(scene, rng) != scene


def test_assets_resolve_in_one_place(tmp_path):
    assert (resolve("demo://sd3") / "model_index.json").is_file()
    assert resolve(str(tmp_path)) == tmp_path
    with pytest.raises(MarbleError, match=r"no 'demo://nothing'; the demo has .*demo://sd3"):
        resolve("demo://nothing")
    with pytest.raises(MarbleError, match="does not exist"):
        resolve("/no/such/directory")
    with pytest.raises(MarbleError, match="does not exist"):
        resolve("./no/such")


def test_the_reward_weights_stay_below_eight_megabytes():
    assert sum(file.stat().st_size for file in (WEIGHTS / "rewards").rglob("*") if file.is_file()) < 8e6


def test_prompts_and_assets_import_neither_torch_nor_scipy_nor_pil():
    modules = "marble_core.storage.uri, marble_core.demo.prompts, marble_core.rewards.registry"
    code = f"import sys, {modules}; print({{'torch', 'scipy', 'transformers', 'PIL'}} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
