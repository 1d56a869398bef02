"""marble export: a LoRA for other programs, from the command line."""

from safetensors.torch import load_file

from builders import small_config, small_policy
from commands import one_sentence, run_marble


def test_a_lora_is_written_for_comfyui_and_for_peft_and_a_wrong_one_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    policy = small_policy(small_config(), perturb=0.1)
    policy.save_adapter(tmp_path / "own", policy.parameters_of("default"))
    assert run_marble("export", "own", "--out", "loras/mine.safetensors", monkeypatch=monkeypatch) == 0
    assert "loras/mine.safetensors: 23 layers of rank 4, at strength 1." in capsys.readouterr().out
    found = load_file("loras/mine.safetensors")
    alphas = {name: float(tensor) for name, tensor in found.items() if name.endswith(".alpha")}
    assert alphas["lora_unet_joint_blocks_0_x_block_attn_qkv.alpha"] == 12 and len(alphas) == 3 * 2 + 5
    assert run_marble("export", "own", "--form", "peft", monkeypatch=monkeypatch) == 0
    assert {path.name for path in (tmp_path / "export").iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    capsys.readouterr()
    assert run_marble("export", "loras/mine.safetensors", monkeypatch=monkeypatch) == 2
    one_sentence(capsys.readouterr().err, "loras/mine.safetensors", "only names of diffusers or peft")
    assert run_marble("export", "nowhere", monkeypatch=monkeypatch) == 2
    one_sentence(capsys.readouterr().err, "There is no LoRA at nowhere")
