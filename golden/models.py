"""Encoders with random weights and what they make of a few texts, by the classes of Transformers in float64.

Writes `models/NAME/` for each layout: `config.json`, `model.safetensors`, `tokenizer.json`, and `golden.json` with, per text, its ids, the
last hidden state of its tokens, and its sentence vector (mean over the tokens, divided by its Euclidean norm). Weights are rounded to the
type of the file before anything is computed.

    pip install torch transformers tokenizers safetensors
    python golden/models.py            # writes the files
    python golden/models.py --check    # compares them with what is on disk, writes nothing
"""

import argparse
import filecmp
import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

FOLDER = Path(__file__).parent / "models"
TEXTS = ["", " ", "a cat sat", "The dog ran, the cat sat on the mat.", "cats unknown dogs", "the " * 40]
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the a cat dog sat ran on mat ##s ##t , .".split()
BERT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40, "max_position_embeddings": 20}
DISTILBERT = {"dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 40, "max_position_embeddings": 20}


def word_pieces():
    """A tokenizer as BERT's, lower case."""
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def byte_pairs():
    """A tokenizer as RoBERTa's, over bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("a", "t"), ("c", "at"), ("Ġ", "cat")]
    words = ["<s>", "<pad>", "</s>", "<unk>", *letters, *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def roberta(tokenizer):
    """RoBERTa inside a language model: its tensors have a prefix, its positions start at 2."""
    sizes = BERT | {"vocab_size": tokenizer.get_vocab_size(), "type_vocab_size": 1, "pad_token_id": 1, "max_position_embeddings": 22}
    return RobertaForMaskedLM(RobertaConfig(**sizes, hidden_act="gelu_new", layer_norm_eps=1e-5))


def distilbert(tokenizer):
    """DistilBERT: other names, no token types."""
    return DistilBertModel(DistilBertConfig(vocab_size=tokenizer.get_vocab_size(), **DISTILBERT))


def bert(kind):
    """BERT, alone or inside a larger model."""
    return lambda tokenizer: kind(BertConfig(vocab_size=tokenizer.get_vocab_size(), **BERT))


CASES = {
    "bert": (word_pieces, bert(BertForPreTraining), torch.float32),
    "bert_f16": (word_pieces, bert(BertModel), torch.float16),
    "bert_bf16": (word_pieces, bert(BertModel), torch.bfloat16),
    "roberta": (byte_pairs, roberta, torch.float32),
    "distilbert": (word_pieces, distilbert, torch.float32),
}


def randomised(model, dtype):
    """Weights large enough to matter, rounded to the type of the file, in float64."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        middle = 1.0 if "LayerNorm.weight" in name or "layer_norm.weight" in name else 0.0
        values = middle + 0.3 * torch.randn(weight.shape, generator=generator)
        weight.data = values.to(dtype).double()
    return model.double().eval()


def results(model, tokenizer, limit):
    """What the encoder makes of every text."""
    encoder = getattr(model, model.base_model_prefix, model)
    tokenizer.enable_truncation(limit)
    texts = []
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        with torch.no_grad():
            hidden = encoder(torch.tensor([ids])).last_hidden_state[0]
        mean = hidden.mean(0)
        vector = mean / mean.norm()
        texts.append({"text": text, "ids": ids, "hidden": rounded(hidden.flatten()), "embedding": rounded(vector)})
    tokenizer.no_truncation()
    return {"texts": texts}


def rounded(values):
    """Numbers with nine digits, which a float32 gives back."""
    return [float(f"{value:.9g}") for value in values.tolist()]


def write(name, folder):
    """One folder."""
    make_tokenizer, make_model, dtype = CASES[name]
    tokenizer = make_tokenizer()
    model = randomised(make_model(tokenizer), dtype)
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    for key in ("_name_or_path", "dtype", "torch_dtype", "transformers_version"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))
    tied = getattr(model, "_tied_weights_keys", None) or {}
    weights = {key: value.to(dtype).contiguous() for key, value in model.state_dict().items() if value.is_floating_point() and key not in tied}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "golden.json").write_text(json.dumps(results(model, tokenizer, 20), ensure_ascii=False) + "\n")


def main():
    """Writes all folders, or compares them with those that are there."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with what is on disk, write nothing")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        for name in CASES:
            folder = Path(scratch) / name if check else FOLDER / name
            write(name, folder)
            if check:
                compare(folder, FOLDER / name)


def compare(new, old):
    """Complains about files that differ."""
    names = [path.name for path in new.iterdir()]
    _, different, missing = filecmp.cmpfiles(new, old, names, shallow=False)
    if different or missing:
        raise SystemExit(f"{old}: {different + missing} differ")
    print(f"{old.name}: the same")


if __name__ == "__main__":
    main()
