"""Dictionaries written by SAELens and circuit-tracer themselves, and what they compute with them.

    python tests/transcoder/make_file_goldens.py CIRCUIT_TRACER_CHECKOUT

Writes tests/transcoder/goldens/: folders as the two programs save them, and values.safetensors with,
for each folder NAME, NAME.x, NAME.features (dense activations) and NAME.y (reconstructions).
Needs sae-lens 6 (made with 6.54.12), torch and a checkout of decoderesearch/circuit-tracer (made
with commit 4bb8c0e).
"""

import importlib
import json
import pathlib
import shutil
import sys
import types

import torch
import yaml
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
OUT = HERE / "goldens"
D, F, ROWS = 12, 40, 7
values = {}


def randomise(module, generator):
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "threshold" in name:
                p.copy_(torch.rand(p.shape, generator=generator) * 0.6)
            else:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.4)


def keep(name, x, features, y):
    values[f"{name}.x"] = x.contiguous()
    values[f"{name}.features"] = features.detach().float().contiguous()
    values[f"{name}.y"] = y.detach().float().contiguous()


def saelens():
    from sae_lens import SAE
    from sae_lens.registry import get_sae_class

    def make(folder, architecture, metadata, **settings):
        g = torch.Generator().manual_seed(len(values) + 1)
        cls, cfg_cls = get_sae_class(architecture)
        sae = cls(cfg_cls(d_in=D, d_sae=F, **settings))
        for key, value in metadata.items():
            setattr(sae.cfg.metadata, key, value)
        randomise(sae, g)
        sae.save_model(OUT / folder)
        check(folder, g)

    def check(folder, g):
        sae = SAE.load_from_disk(OUT / folder)
        x = torch.randn(ROWS, D, generator=g)
        with torch.no_grad():
            keep(folder, x, sae.encode(x), sae(x))

    resid = {"model_name": "gpt2", "hook_name": "blocks.1.hook_resid_post"}
    mlp = {
        "model_name": "gpt2",
        "hook_name": "blocks.1.ln2.hook_normalized",
        "hook_name_out": "blocks.1.hook_mlp_out",
    }
    make("standard", "standard", resid, apply_b_dec_to_input=True)
    make("jumprelu", "jumprelu", resid, apply_b_dec_to_input=False)
    make("topk", "topk", resid, apply_b_dec_to_input=True, k=5)
    make("topk_rescaled", "topk", resid, apply_b_dec_to_input=True, k=5,
         rescale_acts_by_decoder_norm=True)
    for kind in ("transcoder", "skip_transcoder", "jumprelu_transcoder",
                 "jumprelu_skip_transcoder"):
        make(kind, kind, mlp, d_out=D - 2, apply_b_dec_to_input=False)

    # A BatchTopK dictionary as training leaves it: saved for inference it is a JumpReLU one.
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    g = torch.Generator().manual_seed(77)
    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=D, d_sae=F, k=4))
    for key, value in resid.items():
        setattr(sae.cfg.metadata, key, value)
    randomise(sae, g)
    sae.topk_threshold.fill_(0.7)
    sae.save_inference_model(OUT / "batchtopk")
    check("batchtopk", g)

    # Configurations of older versions, which SAELens still loads.
    def old(folder, source, cfg):
        shutil.copytree(OUT / source, OUT / folder)
        (OUT / folder / "cfg.json").write_text(json.dumps(cfg))
        check(folder, torch.Generator().manual_seed(99))

    old("v5_standard", "standard", {
        "architecture": "standard", "d_in": D, "d_sae": F, "activation_fn_str": "relu",
        "apply_b_dec_to_input": False, "finetuning_scaling_factor": False, "context_size": 128,
        "model_name": "gpt2", "hook_name": "blocks.1.hook_resid_post", "hook_layer": 1,
        "hook_head_index": None, "prepend_bos": True, "dataset_path": "nothing",
        "dataset_trust_remote_code": True, "normalize_activations": "none", "dtype": "float32",
        "device": "cpu", "sae_lens_training_version": "5.3.0", "activation_fn_kwargs": {},
        "neuronpedia_id": None, "model_from_pretrained_kwargs": {"center_writing_weights": True},
        "seqpos_slice": [None]})
    old("v5_topk", "topk", {
        "architecture": "standard", "d_in": D, "d_sae": F, "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 5}, "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False, "context_size": 128, "model_name": "gpt2",
        "hook_name": "blocks.1.hook_resid_post", "hook_layer": 1, "hook_head_index": None,
        "normalize_activations": "none", "dtype": "float32", "device": "cpu"})
    old("v2_standard", "standard", {
        "model_name": "gpt2", "hook_point": "blocks.1.hook_resid_post", "hook_point_layer": 1,
        "hook_point_head_index": None, "dataset_path": "nothing", "d_in": D, "d_sae": F,
        "expansion_factor": 4, "dtype": "float32", "device": "cpu",
        "normalize_activations": False})


def circuit_tracer(checkout):
    # Its package imports far more than the two modules that are needed.
    package = types.ModuleType("circuit_tracer")
    package.__path__ = [str(pathlib.Path(checkout) / "circuit_tracer")]
    sys.modules["circuit_tracer"] = package
    utils = types.ModuleType("circuit_tracer.utils")
    utils.__path__ = [str(pathlib.Path(checkout) / "circuit_tracer" / "utils")]
    utils.get_default_device = lambda: torch.device("cpu")
    sys.modules["circuit_tracer.utils"] = utils
    transcoder = types.ModuleType("circuit_tracer.transcoder")
    transcoder.__path__ = [str(pathlib.Path(checkout) / "circuit_tracer" / "transcoder")]
    sys.modules["circuit_tracer.transcoder"] = transcoder
    single = importlib.import_module("circuit_tracer.transcoder.single_layer_transcoder")
    cross = importlib.import_module("circuit_tracer.transcoder.cross_layer_transcoder")
    functions = importlib.import_module("circuit_tracer.transcoder.activation_functions")

    def make(folder, layers, activation, skip, config):
        g = torch.Generator().manual_seed(len(values) + 1)
        made = {}
        for layer in range(layers):
            t = single.SingleLayerTranscoder(D, F, activation(), layer, skip_connection=skip,
                                             dtype=torch.float32)
            randomise(t, g)
            made[layer] = t
        set_ = single.TranscoderSet(made, "mlp.hook_in", "hook_mlp_out")
        set_.to_safetensors(str(OUT / folder))
        config = {"model_name": "openai-community/gpt2", "model_kind": "transcoder_set",
                  "feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out",
                  "scan": f"test/{folder}", **config}
        (OUT / folder / "config.yaml").write_text(yaml.safe_dump(config))
        files = {l: str(OUT / folder / f"layer_{l}.safetensors") for l in range(layers)}
        if config.get("activation") == "topk":
            loaded = set_  # its own loader refuses the tensor k that its writer writes
        else:
            loaded = single.load_transcoder_set(files, config["scan"], "mlp.hook_in",
                                                "hook_mlp_out", device=torch.device("cpu"),
                                                activation=config.get("activation"),
                                                lazy_encoder=False, lazy_decoder=False)
        for layer in range(layers):
            x = torch.randn(ROWS, D, generator=g)
            with torch.no_grad():
                features = loaded[layer].encode(x)
                keep(f"{folder}.{layer}", x, features, loaded[layer].decode(features, x))

    make("ct_relu", 2, lambda: torch.nn.functional.relu, False, {"activation": "relu"})
    make("ct_jump_skip", 1, lambda: functions.JumpReLU(torch.zeros(F), 0.1), True,
         {"transcoders": ["hf://test/ct_jump_skip/layer_0.safetensors?revision=main"]})
    make("ct_topk", 1, lambda: functions.TopK(5), False, {"activation": "topk", "k": 5})

    g = torch.Generator().manual_seed(5)
    layers = 3
    clt = cross.CrossLayerTranscoder(layers, F, D, activation_function="jump_relu",
                                     lazy_decoder=False, dtype=torch.float32,
                                     device=torch.device("cpu"))
    randomise(clt, g)
    clt.to_safetensors(str(OUT / "clt"))
    (OUT / "clt" / "config.yaml").write_text(yaml.safe_dump(
        {"model_name": "gpt2", "model_kind": "cross_layer_transcoder",
         "feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out",
         "scan": ["a", "b"]}))
    loaded = cross.load_clt(str(OUT / "clt"), dtype=torch.float32, device=torch.device("cpu"))
    x = torch.randn(layers, ROWS, D, generator=g)
    with torch.no_grad():
        features = loaded.encode(x)
        keep("clt", x, features, loaded.decode(features.to_sparse()))


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    saelens()
    circuit_tracer(sys.argv[1])
    save_file(values, OUT / "values.safetensors")


if __name__ == "__main__":
    main()
