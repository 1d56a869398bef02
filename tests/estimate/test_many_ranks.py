"""64 rewards on 64 ranks: docs/performance.md has what the estimate says of a rank."""

from marble_core.config.loading import load_config
from marble_core.estimate import GIB, sizes_of
from marble_core.estimate.memory import rows_of
from paths import ROOT
from with_cards import check_fits, memory_of, resolve_batch_sizes

PRESET = ["pickscore", "hpsv2", "clipscore", "ocr", "geneval"]
OWN = 'name: r{i}, scorer: "marble_core.rewards.compressibility:Compressibility"'


def rank(K: int):
    """Of 64 on which 192 prompts train: the preset's five rewards, and others without a network."""
    rewards = [f"name: {name}" for name in PRESET] + [OWN.format(i=i) for i in range(K - len(PRESET))]
    listed = ", ".join(f"{{{reward}}}" for reward in rewards)
    config = load_config("sd35-medium-8gpu", overrides=[f"rewards=[{listed}]", "hardware.gpus=64", "rollout.prompts=192"])
    config = resolve_batch_sizes(config)
    check_fits(config)
    sizes = sizes_of(config.model)
    return config, memory_of(config, sizes), 4 * rows_of(config) * sizes.lora(config.lora.rank)


def test_what_a_rank_of_64_holds_and_sends_is_in_the_documents():
    few, many = rank(5), rank(64)
    assert (rows_of(few[0]), rows_of(many[0])) == (11, 129), "each reward over both halves, and the KL"
    cells = {
        "accumulators": [memory.phases["training"]["accumulators"] for _, memory, _ in (few, many)],
        "activations of a micro-batch": [memory.phases["training"]["activations"] for _, memory, _ in (few, many)],
        "peak of 80": [memory.peak for _, memory, _ in (few, many)],
        "sums sent per step": [sent for _, _, sent in (few, many)],
        "sums kept afterwards, of its own layers": [sent / 64 for _, _, sent in (few, many)],
    }
    table = [f"| {label} | {one / GIB:.2f} | {other / GIB:.2f} |" for label, (one, other) in cells.items()]
    table.append(f"| micro-batch, images | {few[0].loss.micro_batch} | {many[0].loss.micro_batch} |")
    print("\n".join(table))
    said = (ROOT / "docs/performance.md").read_text(encoding="utf-8").splitlines()
    assert [row for row in table if row not in said] == []
