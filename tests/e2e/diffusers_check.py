"""Opens an exported pipeline directory in diffusers and compares its pictures with atelier-generate's from the same latents.

    diffusers_check.py BIN_DIR EXPORTED_DIR OTHER_DIR WORK_DIR IMAGE.png [LORA.safetensors PEFT_DIR]

OTHER_DIR: another model of the same sizes; its latents must differ by far more than the tolerance, or the comparison sees nothing.
LORA: an adapter that both sides put on the model; PEFT_DIR: the same in PEFT's layout. Written again by diffusers and read by PEFT it
must stay the same; adapters that others wrote are read as diffusers reads them. Ends with 77 where Python lacks diffusers.
"""
import subprocess
import sys
from pathlib import Path

try:
    import numpy as np
    import torch
    from diffusers import QwenImage21Pipeline
    from PIL import Image
    from safetensors.torch import load_file, save_file
except ImportError as error:
    print(f"skipped: {sys.executable} cannot run the comparison with diffusers ({error}); ATELIER_PYTHON names another Python")
    sys.exit(77)

LATENT_TOLERANCE = 3e-4  # of the RMS after the last step: fp32 on both sides, as tests/oracle/pipeline_oracle_test.cpp
RESOLUTION, STEPS = 128, 6


def generate(program, model, work, name, prompt, latents, image, lora):
    save_file({"latents": latents}, work / f"{name}-noise.safetensors")
    subprocess.run([program, "--model", model, "--prompt", prompt, "--steps", str(STEPS), "--output-resolution", str(RESOLUTION),
                    "--height", str(RESOLUTION), "--width", str(RESOLUTION), "--latents", work / f"{name}-noise.safetensors",
                    "--output-latents", work / f"{name}.safetensors", "--output", work / f"{name}.png", "--threads", "1"]
                   + (["--image", image] if image else []) + (["--lora", lora] if lora else []), check=True, capture_output=True)
    return load_file(work / f"{name}.safetensors")["latents"], np.asarray(Image.open(work / f"{name}.png")).astype(int)


def check_layouts(pipe, program, exported, work, lora, peft_directory):
    """diffusers writes the adapter that it read, PEFT reads ours: the same numbers, and the same picture from atelier-generate."""
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict
    name = list(pipe.transformer.peft_config)[0]
    state, config = get_peft_model_state_dict(pipe.transformer, adapter_name=name), pipe.transformer.peft_config[name].to_dict()
    pipe.save_lora_weights(work / "resaved", transformer_lora_layers=state, transformer_lora_adapter_metadata=config)
    mine = load_file(lora)
    assert mine.keys() == {f"transformer.{k}" for k in state}, "diffusers took other modules"
    assert all(torch.equal(mine[f"transformer.{k}"], v) for k, v in state.items()), "diffusers read other numbers"
    noise = torch.randn(1, (RESOLUTION // 16) ** 2, pipe.transformer.config.in_channels, generator=torch.Generator().manual_seed(3))
    prompt = "a red circle"
    ours, _ = generate(program / "atelier-generate", exported, work, "ours", prompt, noise, None, lora)
    again, _ = generate(program / "atelier-generate", exported, work, "again", prompt, noise, None, work / "resaved")
    assert torch.equal(ours, again), "the adapter that diffusers wrote is another one"
    fresh = QwenImage21Pipeline.from_pretrained(exported, dtype=torch.float32).transformer
    model = PeftModel.from_pretrained(fresh, peft_directory)
    read = get_peft_model_state_dict(model)
    assert {k.removeprefix("base_model.model."): v for k, v in read.items()}.keys() == state.keys(), "PEFT took other modules"
    assert all(torch.equal(read[k], state[k.removeprefix("base_model.model.")]) for k in read), "PEFT read other numbers"
    assert model.peft_config["default"].lora_alpha == config["lora_alpha"] and model.peft_config["default"].r == config["r"]
    print(f"adapter of {len(state) // 2} matrices: diffusers and PEFT read and write the same numbers")


def draw(pipe, prompt, picture, noise):
    """Latents after the last step, and the picture's bytes."""
    last = []
    result = pipe(prompt=prompt, image=[Image.open(picture)] if picture else None, height=RESOLUTION, width=RESOLUTION,
                  num_inference_steps=STEPS, latents=noise.clone(), true_cfg_scale=1.0, output_resolution=RESOLUTION,
                  output_type="pt", callback_on_step_end=lambda p, i, t, kw: (last.append(kw["latents"].clone()), kw)[1]).images
    return last[-1], (result[0].permute(1, 2, 0).numpy() * 255).round().astype(int)


def check_variants(pipe, program, exported, work):
    """Adapters of others: as diffusers writes them without a configuration, with ranks and alphas by patterns, and in other trainers'
    names with tensors for alpha. Two ranks in each; half of each must be another adapter."""
    from peft import LoraConfig
    pipe.unload_lora_weights()
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(1, (RESOLUTION // 16) ** 2, pipe.transformer.config.in_channels, generator=generator)
    state = {}
    for name, module in pipe.transformer.named_modules():
        if name.endswith(("to_q", "to_v")):
            rank, (outputs, inputs) = 4 if name.endswith("to_q") else 2, module.weight.shape
            state[f"{name}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) / inputs ** 0.5
            state[f"{name}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) / 8
    modules = sorted({key.split(".lora_")[0] for key in state})
    config = LoraConfig(r=4, lora_alpha=6, target_modules=modules, rank_pattern={"to_v": 2},
                        alpha_pattern={r"transformer_blocks\.0\..*to_q": 12, "to_v": 1})
    pipe.save_lora_weights(work / "plain", transformer_lora_layers=state)
    pipe.save_lora_weights(work / "patterns", transformer_lora_layers=state, transformer_lora_adapter_metadata=config.to_dict())
    (work / "alphas").mkdir()
    renamed = {"diffusion_model." + key.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): v for key, v in state.items()}
    renamed.update({f"diffusion_model.{name}.alpha": torch.tensor(3.0) for name in modules})
    save_file(renamed, work / "alphas" / "pytorch_lora_weights.safetensors")
    prompt = "a red circle"
    for name in ("plain", "patterns", "alphas"):
        pipe.unload_lora_weights()
        pipe.load_lora_weights(str(work / name), weight_name="pytorch_lora_weights.safetensors")
        theirs, _ = draw(pipe, prompt, None, noise)
        ours, _ = generate(program / "atelier-generate", exported, work, name, prompt, noise, None, work / name)
        half, _ = generate(program / "atelier-generate", exported, work, name + "-half", prompt, noise, None, f"{work / name}:0.5")
        scale = theirs.square().mean().sqrt()
        error, distance = ((ours - theirs).abs().max() / scale).item(), ((half - theirs).abs().max() / scale).item()
        print(f"adapter \"{name}\": latents differ by {error:.2e} of their RMS; half of it by {distance:.2e}")
        assert error < LATENT_TOLERANCE and distance > 10 * LATENT_TOLERANCE, f"the adapter \"{name}\" is read as another one"


def main():
    program, exported, other, work, image = (Path(a) for a in sys.argv[1:6])
    lora = Path(sys.argv[6]) if len(sys.argv) > 6 else None
    torch.set_num_threads(1)
    pipe = QwenImage21Pipeline.from_pretrained(exported, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if lora:
        pipe.load_lora_weights(str(lora.parent), weight_name=lora.name)
        check_layouts(pipe, program, exported, work, lora, Path(sys.argv[7]))
    failed = False
    for name, prompt, picture in (("t2i", "a blue star left of a green square on gray", None), ("edit", "add glasses", image)):
        tokens, channels = (RESOLUTION // 16) ** 2, pipe.transformer.config.in_channels
        noise = torch.randn(1, tokens, channels, generator=torch.Generator().manual_seed(7))
        last, theirs = draw(pipe, prompt, picture, noise)
        latents, ours = generate(program / "atelier-generate", exported, work, name, prompt, noise, picture, lora)
        away, _ = generate(program / "atelier-generate", other, work, name + "-other", prompt, noise, picture, None)
        scale = last.square().mean().sqrt()
        error = ((latents - last).abs().max() / scale).item()
        distance = ((away - last).abs().max() / scale).item()
        bytes_off = np.abs(ours - theirs).max()
        print(f"{name}: latents differ by {error:.2e} of their RMS, picture bytes by at most {bytes_off}; another model's by {distance:.2e}")
        failed |= not (error < LATENT_TOLERANCE and bytes_off <= 1 and distance > 10 * LATENT_TOLERANCE)
    if lora:
        check_variants(pipe, program, exported, work)
    sys.exit(1 if failed else 0)


main()
