"""A diffusion model of your own, here SD3 once more. On PYTHONPATH its import path is ``custom_model:MyModel``."""

from marble_core import Conditioning, DiffusersModel


class MyModel(DiffusersModel):
    pipeline_class = "StableDiffusion3Pipeline"  # any of diffusers whose transformer predicts a rectified flow
    lora_targets = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.2")

    def embed(self, prompts):  # tokens (M, L, D) and a pooled vector (M, P)
        read = {"do_classifier_free_guidance": False, "max_sequence_length": self.config.max_sequence_length}
        tokens, _, pooled, _ = self.pipeline.encode_prompt(prompts, None, None, device=self.device, **read)
        return Conditioning(tokens, pooled)

    def predict(self, x, t, conditioning):  # noise - image, for latents x at times t in (0, 1]
        return self.transformer(x, conditioning.tokens, conditioning.pooled, 1000 * t, return_dict=False)[0]
