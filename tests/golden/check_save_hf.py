"""Does transformers load what `save_hf` writes, without a word, and answer the same? Not run by CI.

    python -m tests.golden.check_save_hf --transformers OTHER/bin/python        # about 1 minute

This library saves random models of every kind beside their answers; then the interpreter OTHER, which needs torch and
transformers and nothing of ours, loads each with the Auto class of its task and compares. The biases and norms are
random too, so that a tensor that is left out or swapped shows in the outputs.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

TOLERANCE = 2e-5
PIECES = "[PAD] [UNK] [CLS] [SEP] [MASK] a gem of film two hours i want back cafe un ##watch ##able ##s , . !"
TEXTS = ["A gem of a film.", "Unwatchable! Two hours I want back.", "café", ""]
LABELS = ["negative", "neutral", "positive"]
SIZES = {"num_layers": 4, "hidden_dim": 24, "num_heads": 3, "intermediate_dim": 40, "max_sequence_length": 20}

# Folder -> Auto class of transformers.
CHECKPOINTS = {
    f"{family}_{kind}": auto_class
    for family in ("bert", "albert")
    for kind, auto_class in {
        "encoder": "AutoModel",
        "pretraining": "AutoModelForPreTraining",
        "masked_lm": "AutoModelForMaskedLM",
        "classifier": "AutoModelForSequenceClassification",
        "bfloat16": "AutoModelForPreTraining",
    }.items()
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--transformers", default=sys.executable, help="interpreter that has torch and transformers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        save(pathlib.Path(directory))
        command = [options.transformers, "-W", "error", __file__, "compare", directory]
        sys.exit(subprocess.run(command, check=False).returncode)


def save(directory):
    """With this library: each checkpoint, and `expected.safetensors` in it."""
    import keras
    from safetensors.numpy import save_file

    import keras_bert_lib as kbl

    tokenizer = kbl.preprocessing.WordPieceTokenizer(PIECES.split(), lowercase=True)
    preprocessor = kbl.preprocessing.TextPreprocessor(tokenizer, max_sequence_length=SIZES["max_sequence_length"])
    features = preprocessor((TEXTS, TEXTS[::-1]))
    for name in CHECKPOINTS:
        family, _, kind = name.partition("_")
        own = {"embedding_dim": 10, "num_groups": 2} if family == "albert" else {"activation": "gelu_approximate"}
        encoder = getattr(kbl.models, family)(tokenizer.vocabulary_size(), **SIZES, **own)
        heads = {}
        if kind in ("pretraining", "masked_lm", "bfloat16"):
            config = encoder.get_layer("block_0").get_config()
            heads["masked_lm"] = kbl.layers.MaskedLMHead(
                encoder.get_layer("embeddings"), config["activation"], name="masked_lm"
            )
        if kind in ("pretraining", "bfloat16"):
            heads["next_sentence"] = kbl.layers.NextSentenceHead(name="next_sentence")
        if kind == "classifier":
            heads["head"] = kbl.layers.ClassificationHead(len(LABELS), name="head")
        model = keras.Model(encoder.input, {**encoder.output, **answers(heads, encoder.output)})
        randomize(model, rounded=kind == "bfloat16")
        if heads:
            model.encoder, model.preprocessor = encoder, preprocessor
            for attribute, value in {**heads, "kind": "multi_class", "labels": LABELS}.items():
                setattr(model, attribute, value)
        kbl.checkpoints.save_hf(
            model if heads else encoder,
            directory / name,
            tokenizer=None if heads else tokenizer,
            dtype="bfloat16" if kind == "bfloat16" else "float32",
        )
        expected = {name: keras.ops.convert_to_numpy(value) for name, value in model(features).items()}
        if kind == "masked_lm":
            del expected["pooled_output"]
        expected |= {name: value.numpy() for name, value in features.items()}
        save_file(expected, directory / name / "expected.safetensors")


def answers(heads, outputs):
    return {
        name: head(outputs["sequence_output" if name == "masked_lm" else "pooled_output"])
        for name, head in heads.items()
    }


def randomize(model, rounded):
    import ml_dtypes

    rng = np.random.default_rng(0)
    for weight in model.weights:
        centre = 1.0 if weight.path.endswith("gamma") else 0.0
        values = centre + 0.3 * rng.standard_normal(weight.shape).astype("float32")
        weight.assign(values.astype(ml_dtypes.bfloat16).astype("float32") if rounded else values)


def compare(directory):
    """With transformers: each checkpoint must load without a message, and give what is expected."""
    import torch
    import transformers
    from safetensors.numpy import load_file

    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    worst = 0.0
    for name, auto_class in CHECKPOINTS.items():
        folder = directory / name
        model, loading = getattr(transformers, auto_class).from_pretrained(folder, output_loading_info=True)
        report = {key: value for key, value in loading.items() if value}
        assert not report, f"{name}: {report}"
        dtype = "bfloat16" if name.endswith("bfloat16") else "float32"
        config = transformers.AutoConfig.from_pretrained(folder)
        stated = config.dtype if hasattr(config, "dtype") else config.torch_dtype  # before transformers 4.56
        assert str(stated) == f"torch.{dtype}", f"{name}: {stated}"
        if name.endswith("classifier"):
            assert list(model.config.id2label.values()) == LABELS
        assert json.loads((folder / "config.json").read_text())["architectures"] == [type(model).__name__]

        expected = load_file(folder / "expected.safetensors")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        inputs = tokenizer(TEXTS, TEXTS[::-1], padding=True, truncation=True, return_tensors="pt")
        names = {"token_ids": "input_ids", "segment_ids": "token_type_ids", "padding_mask": "attention_mask"}
        for ours, theirs in names.items():
            np.testing.assert_array_equal(expected[ours], inputs[theirs].numpy(), err_msg=f"{name}: {ours}")
        outputs = run(model.float().eval(), inputs)
        real = expected["padding_mask"].astype(bool)
        differences = {}
        for key in expected.keys() - names.keys():
            values, theirs = expected[key], outputs[key].numpy()
            where = real if values.ndim == 3 else slice(None)
            differences[key] = float(np.abs(values[where] - theirs[where]).max())
        print(f"{name:20} {type(model).__name__:32}", {key: f"{value:.1e}" for key, value in differences.items()})
        worst = max(worst, *differences.values())
    print(f"largest difference {worst:.1e}, allowed {TOLERANCE}")
    return worst <= TOLERANCE


def run(model, inputs):
    import torch

    with torch.no_grad():
        encoded = getattr(model, model.base_model_prefix, model)(**inputs)
        answer = model(**inputs)
    outputs = {"sequence_output": encoded.last_hidden_state, "pooled_output": encoded.pooler_output}
    masked_lm = model.config.architectures[0].endswith("ForMaskedLM")
    names = {
        "prediction_logits": "masked_lm",
        "seq_relationship_logits": "next_sentence",
        "sop_logits": "next_sentence",
        "logits": "masked_lm" if masked_lm else "head",
    }
    return outputs | {ours: answer[theirs] for theirs, ours in names.items() if theirs in answer}


if __name__ == "__main__":
    if sys.argv[1:2] == ["compare"]:
        sys.exit(not compare(pathlib.Path(sys.argv[2])))
    main()
