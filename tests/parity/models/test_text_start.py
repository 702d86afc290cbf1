"""Weights before training from text: against counts by hand, dense formulas and numpy's decomposition."""

import numpy as np
import pytest
import torch
from scipy import sparse
from tests.conftest import write_examples
from torch.nn import functional
from transformers import AutoConfig, AutoModelForMaskedLM

from polydistill.corpora.examples import Examples
from polydistill.models.features import masked_features, output_layer
from polydistill.models.text_start import (
    MIN_OCCURRENCES,
    PieceCounts,
    count_pieces,
    pass_values,
    positive_pmi,
    start_from_text,
    text_rows,
    tokenised,
)
from polydistill.tokenization.load import load_tokenizer

SIZE = 40


def texts_of(seed, number=30):
    draw = np.random.default_rng(seed)
    return [draw.zipf(1.3, draw.integers(0, 12)) % SIZE for _ in range(number)]


def counts_of(seed=0, number=300):
    return count_pieces({"a": [texts_of(seed, number)]}, {"a": 1.0}, SIZE)


def test_counts_are_those_of_a_loop_over_pairs() -> None:
    """Pairs within four pieces count 1 / distance in both directions, and no pair bridges two texts."""
    texts = texts_of(1)
    counts = count_pieces({"a": [texts[:10], [], texts[10:]]}, {"a": 1.0}, SIZE)
    pairs = np.zeros((SIZE, SIZE))
    for text in texts:
        for i, left in enumerate(text):
            for distance, right in enumerate(text[i + 1 : i + 5], start=1):
                pairs[left, right] += 1 / distance
                pairs[right, left] += 1 / distance
    np.testing.assert_allclose(counts.cooccurrences.toarray(), pairs)
    np.testing.assert_array_equal(counts.occurrences, np.bincount(np.concatenate(texts), minlength=SIZE))


def test_a_language_counts_as_often_as_it_is_drawn() -> None:
    """Ten times the text, a third of the draws."""
    large, small = texts_of(2, 300), texts_of(3, 30)
    counts = count_pieces({"a": [large], "b": [small]}, {"a": 0.25, "b": 0.75}, SIZE)
    shares = [
        np.bincount(np.concatenate(texts), minlength=SIZE) / sum(map(len, texts)) for texts in (large, small)
    ]
    np.testing.assert_allclose(
        counts.occurrences / counts.occurrences.sum(), 0.25 * shares[0] + 0.75 * shares[1]
    )
    assert counts.occurrences.sum() == pytest.approx(sum(map(len, large)) + sum(map(len, small)))
    both = counts.cooccurrences.toarray()
    alone = [count_pieces({"x": [texts]}, {"x": 1.0}, SIZE) for texts in (large, small)]
    weights = [0.25 / alone[0].occurrences.sum(), 0.75 / alone[1].occurrences.sum()]
    mixed = sum(w * part.cooccurrences.toarray() for w, part in zip(weights, alone, strict=True))
    np.testing.assert_allclose(both / counts.occurrences.sum(), mixed)


def test_positive_pmi_is_the_dense_formula() -> None:
    pairs = counts_of().cooccurrences.toarray()
    joint = pairs / pairs.sum()
    words = joint.sum(1, keepdims=True)
    contexts = pairs.sum(0) ** 0.75
    contexts = contexts / contexts.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.nan_to_num(np.maximum(0.0, np.log(joint / (words * contexts))), neginf=0.0)
    found = positive_pmi(sparse.csr_matrix(pairs)).toarray()
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert (found > 0).sum() > 50


def test_rows_are_numpy_s_decomposition_of_it() -> None:
    """Cosines between rows are those of U * sqrt(S), for the rotation changes none."""
    counts = counts_of()
    rows = text_rows(counts.cooccurrences, 12, seed=5)
    left, singular, _ = np.linalg.svd(positive_pmi(counts.cooccurrences).toarray())
    expected = left[:, :12] * np.sqrt(singular[:12])
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    met = (counts.occurrences > 0) & (lengths[:, 0] > 1e-6)
    expected = expected / np.maximum(lengths, 1e-9)
    np.testing.assert_allclose((rows @ rows.T)[met][:, met], (expected @ expected.T)[met][:, met], atol=0.02)
    np.testing.assert_allclose(np.linalg.norm(rows[met], axis=1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(rows, text_rows(counts.cooccurrences, 12, seed=5))
    assert not np.array_equal(rows, text_rows(counts.cooccurrences, 12, seed=6))
    # The leading directions are spread over all columns: without the rotation the first has most of it.
    sizes, unrotated = (np.square(table[met]).mean(0) for table in (rows, expected))
    assert unrotated.max() > 3 * unrotated.mean()
    assert sizes.max() < 2.5 * sizes.mean()


def test_a_width_above_the_number_of_pieces_is_filled() -> None:
    rows = text_rows(counts_of().cooccurrences, 2 * SIZE, seed=0)
    assert rows.shape == (SIZE, 2 * SIZE)
    assert np.isfinite(rows).all()


SHAPES = {
    "bert": {"hidden_size": 16, "intermediate_size": 16},
    "modernbert": {"hidden_size": 16, "intermediate_size": 16, "pad_token_id": 0},
    "electra": {"hidden_size": 32, "intermediate_size": 16, "embedding_size": 16},
    "albert": {"hidden_size": 32, "intermediate_size": 16, "embedding_size": 16},
    "distilbert": {"dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 2},
    "deberta-v2": {"hidden_size": 16, "intermediate_size": 16},
    "roberta": {"hidden_size": 16, "intermediate_size": 16},
}
ATTENTIONS = {
    "bert": "attention.self.value attention.output.dense",
    "roberta": "attention.self.value attention.output.dense",
    "electra": "attention.self.value attention.output.dense",
    "deberta-v2": "attention.self.value_proj attention.output.dense",
    "distilbert": "attention.v_lin attention.out_lin",
    "albert": "attention.value attention.dense",
    "modernbert": "attn.Wqkv attn.Wo",
}


def make_model(architecture, **fields):
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2} if architecture != "distilbert" else {}
    config = AutoConfig.for_model(architecture, vocab_size=SIZE, **layers | SHAPES[architecture] | fields)
    torch.manual_seed(0)
    return AutoModelForMaskedLM.from_config(config)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", SHAPES)
def test_a_model_starts_at_the_unigram_s_loss_with_rows_of_the_given_spread(architecture, tied) -> None:
    model = make_model(architecture, tie_word_embeddings=tied)
    before = model.get_input_embeddings().weight.detach().clone()
    counts = counts_of(number=30)
    record = start_from_text(model, counts, seed=3, scale=2.0)
    rows, (output, bias) = model.get_input_embeddings().weight.detach(), output_layer(model)
    known = torch.from_numpy(counts.occurrences >= MIN_OCCURRENCES)
    assert record == {"bias": True, "known_pieces": int(known.sum())}
    assert 0 < int(known.sum()) < SIZE
    assert torch.equal(rows[~known], before[~known])
    assert float(rows[known].std()) == pytest.approx(2 * float(before.std()), rel=1e-4)
    assert torch.equal(output[known], rows[known])
    frequencies = (counts.occurrences + 1) / (counts.occurrences + 1).sum()
    np.testing.assert_allclose(bias.detach().exp().numpy(), frequencies, rtol=1e-5)
    # Where the encoder says little, the loss is that of the frequencies.
    start_from_text(model, counts, seed=3, rows="random")
    with torch.no_grad():
        output.zero_()
        ids = torch.from_numpy(np.concatenate(texts_of(0, 300))[:64])[None]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        features = masked_features(model.eval(), inputs, torch.arange(64))
        loss = functional.cross_entropy(features @ output.T + bias, ids[0])
    assert float(loss) == pytest.approx(-np.log(frequencies)[ids[0].numpy()].mean(), abs=1e-4)


def test_random_rows_stay_where_only_the_bias_is_asked_for() -> None:
    model = make_model("bert")
    before = model.get_input_embeddings().weight.detach().clone()
    assert start_from_text(model, counts_of(), seed=0, rows="random") == {"bias": True, "known_pieces": 0}
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_the_bias_stays_where_only_rows_are_asked_for() -> None:
    model = make_model("bert")
    assert not start_from_text(model, counts_of(), seed=0, bias=False)["bias"]
    assert not output_layer(model)[1].any()


def test_text_without_a_pair_changes_no_row() -> None:
    model = make_model("bert")
    before = model.get_input_embeddings().weight.detach().clone()
    nothing = PieceCounts(np.ones(SIZE), sparse.csr_matrix((SIZE, SIZE)))
    assert start_from_text(model, nothing, seed=0)["known_pieces"] == 0
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_texts_are_read_by_the_teacher_s_tokenizer_in_the_student_s_ids(tmp_path, teachers) -> None:
    tokenizer = load_tokenizer(str(teachers["en"]))
    lines = [f"the house of {'the ' * (number % 5)}" for number in range(3000)]
    write_examples(tmp_path / "text.arrow", [(line, 3) for line in lines])
    examples = Examples(tmp_path / "text.arrow")
    mapping = np.arange(tokenizer.size)[::-1].copy()

    def ids(**more):
        batches = list(tokenised(examples, tokenizer, **{"characters": 10**9} | more))
        return [list(text) for batch in batches for text in batch]

    expected = [
        tokenizer.backend.encode(text, add_special_tokens=False).ids for text in examples.texts(slice(None))
    ]
    assert ids() == expected
    assert ids(mapping=mapping) == [[tokenizer.size - 1 - piece for piece in text] for text in expected]
    rows = np.array([5, 2, 2999])
    assert ids(rows=rows) == [expected[row] for row in rows]
    # A third of the text: every third thousand.
    assert ids(characters=int(examples.num_characters.sum()) // 3 + 1) == expected[:1000]


@pytest.mark.parametrize("architecture", ATTENTIONS)
def test_an_attention_passes_the_mean_of_its_values(architecture) -> None:
    """Output times value is 1.5 identities, in another basis in each layer, and nothing else changes."""
    fields = {"n_layers": 2} if architecture == "distilbert" else {"num_hidden_layers": 2}
    model = make_model(architecture, **fields)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    # ALBERT's layers share their weights.
    number = 1 if architecture == "albert" else 2
    assert pass_values(model, seed=4, gain=1.5) == number
    value, output = ATTENTIONS[architecture].split()
    after = model.state_dict()
    bases = []
    for name in after:
        if name.endswith(f".{value}.weight"):
            basis = after[name]
            width = basis.shape[1]
            assert torch.equal(basis[:-width], before[name][:-width])
            bases.append(basis[-width:])
            mixed = after[name.replace(value, output)] @ bases[-1]
            torch.testing.assert_close(mixed, 1.5 * torch.eye(width), atol=1e-5, rtol=0)
        elif not name.endswith(f".{output}.weight"):
            assert torch.equal(after[name], before[name]), name
    assert len(bases) == number
    assert number == 1 or not torch.allclose(bases[0], bases[1])
    again = make_model(architecture, **fields)
    pass_values(again, seed=4, gain=1.5)
    assert all(torch.equal(tensor, after[name]) for name, tensor in again.state_dict().items())
