"""Exported graphs against PyTorch: padding, token types, tied tables, int8, and a check that must refuse."""

import numpy as np
import pytest
import torch
from tests.parity.models.test_models import ARCHITECTURES, SMALL
from transformers import AutoConfig, AutoModelForMaskedLM

from polydistill.errors import ModelError, RecipeError
from polydistill.evaluation.cost import measure_cost, measure_in_turns
from polydistill.models.load import load_masked_lm
from polydistill.models.onnx_export import Inputs, agreement, compare_onnx, export_onnx, takes_token_types
from polydistill.models.onnx_int8 import quantise_onnx, quantise_rows
from polydistill.models.onnx_runtime import OnnxModel
from polydistill.tokenization.load import load_tokenizer
from polydistill.tools.export_checks import choose_lines, compare_mrr, proof_batches, prove_int8, prove_logits

onnx = pytest.importorskip("onnx")

# A vocabulary so wide that a table stored twice would be most of the file.
ROWS = 3000
QUICK = ("modernbert",)
NAMES = ("bert", "distilbert", "roberta", "xlm-roberta", "electra", "albert", "modernbert")


def make(model_type: str, attention: str = "sdpa"):
    torch.manual_seed(0)
    fields = SMALL | ARCHITECTURES[model_type] | {"vocab_size": ROWS, "max_position_embeddings": 80}
    if model_type == "modernbert":
        # A window shorter than the texts.
        fields |= {"local_attention": 8}
    config = AutoConfig.for_model(model_type, **fields)
    model = AutoModelForMaskedLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        # In fresh layers, tokens hardly attend to one another: a wrong mask must show.
        for parameter in model.parameters():
            if parameter.dim() == 2 and ROWS not in parameter.shape:
                parameter.mul_(8)
    return model


def padded(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(5, ROWS, (len(lengths), max(lengths)))
    attention = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    # Padding is id 0 in each of these configurations.
    return ids * attention, attention


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """(model, its float32 graph, its int8 graph), with token types."""
    model, folder = make("bert"), tmp_path_factory.mktemp("bert")
    assert takes_token_types(model, ["input_ids", "token_type_ids"])
    export_onnx(model, folder / "model.onnx", token_types=True)
    quantise_onnx(folder / "model.onnx", folder / "model_int8.onnx", rows=ROWS)
    model.config.save_pretrained(folder)
    return model, folder / "model.onnx", folder / "model_int8.onnx"


def check_against_rows_alone(model, path) -> None:
    """Each row of a padded batch equals PyTorch's output for it alone, without padding or a mask."""
    exported = OnnxModel(path)
    for lengths in ([8], [17, 5, 11], [40, 33, 8, 3, 40, 21, 2, 1], [76]):
        ids, attention = padded(lengths)
        made = exported.logits(ids, attention)
        for row, length in enumerate(lengths):
            with torch.no_grad():
                alone = model(input_ids=ids[row : row + 1, :length]).logits[0]
            difference = float((alone - made[row, :length]).abs().max() / alone.abs().max())
            assert difference < 1e-4, (lengths, row, difference)


def check_size(model, path) -> None:
    """A tied table is in the file once, and no path of this machine is."""
    needed = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert needed < path.stat().st_size < needed + 4 * ROWS * 16
    assert b"site-packages" not in path.read_bytes()
    assert b"modeling_" not in path.read_bytes()


@pytest.mark.parametrize(
    ("model_type", "attention"),
    [
        pytest.param(name, kind, marks=[] if name in QUICK and kind == "sdpa" else pytest.mark.slow)
        for name in NAMES
        for kind in ("sdpa", "eager")
    ],
)
def test_padded_rows_get_what_they_get_alone(tmp_path, model_type, attention) -> None:
    model = make(model_type, attention)
    export_onnx(model, tmp_path / "model.onnx", token_types=False)
    check_against_rows_alone(model, tmp_path / "model.onnx")
    check_size(model, tmp_path / "model.onnx")


def test_token_types_are_an_input_where_they_are_used(bert) -> None:
    model, path, _ = bert
    check_against_rows_alone(model, path)
    check_size(model, path)
    exported = OnnxModel(path)
    assert exported.inputs == ["input_ids", "attention_mask", "token_type_ids"]
    ids, attention = padded([17, 9])
    types = torch.zeros_like(ids)
    types[:, 6:] = 1
    (agreed,) = compare_onnx(model, [exported], Inputs(ids, attention, types))
    assert agreed.relative < 1e-4
    assert agreed.same == 1
    (other,) = compare_onnx(model, [exported], Inputs(ids, attention, None))
    assert other.largest != agreed.largest
    # A tokenizer that writes none, a model with a single type, a model without any.
    assert not takes_token_types(model, ["input_ids", "attention_mask"])
    assert not takes_token_types(make("distilbert"), ["token_type_ids"])
    roberta = make("roberta")
    roberta.config.type_vocab_size = 1
    assert not takes_token_types(roberta, ["token_type_ids"])


def test_agreement_by_hand() -> None:
    logits = torch.tensor([[[1.0, -4.0, 2.0], [0.0, 1.0, 0.5], [9.0, 0.0, 0.0]]])
    other = torch.tensor([[[1.0, -4.0, 2.5], [2.0, 1.0, 0.5], [torch.nan, 0.0, 0.0]]])
    agreed = agreement(logits, other, torch.tensor([[1, 1, 0]]))
    assert agreed == (2.0, 4.0, 0.5)
    assert agreed.relative == 0.5
    assert np.isnan(agreement(logits, other, torch.ones(1, 3, dtype=torch.long)).relative)


@pytest.mark.parametrize("wrong", ["weights", "not a number"])
def test_the_proof_refuses_another_model(bert, teachers, wrong) -> None:
    """A change of 3e-4 of the largest logit is beyond the tolerance of 1e-4; one of 3e-5 is not."""
    model, path, _ = bert
    tokenizer = load_tokenizer(str(teachers["en"]))
    exported = {"onnx": OnnxModel(path)}
    batches = proof_batches(tokenizer, [], token_types=True)
    assert [tuple(inputs.ids.shape) for inputs in batches] == [(1, 8), (3, 17), (8, 64), (1, 64)]
    assert len({int(length) for length in batches[1].attention.sum(1)}) == 3
    rows = prove_logits(model, "bert", exported, batches)
    assert max(row["onnx"]["relative_difference"] for row in rows) < 1e-5
    bias = model.cls.predictions.decoder.bias
    before = bias.detach().clone()
    try:
        with torch.no_grad():
            bias += 3e-5 * rows[0]["max_logit"]
            prove_logits(model, "bert", exported, batches[:1])
            bias += torch.nan if wrong == "not a number" else 3e-4 * rows[0]["max_logit"]
        with pytest.raises(ModelError, match=r"differ by .*\(allowed: 0.0001\)"):
            prove_logits(model, "bert", exported, batches)
    finally:
        bias.data.copy_(before)


def test_rows_are_quantised_to_the_nearest() -> None:
    table = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    table[7] = 0
    values, scales = quantise_rows(table)
    assert values.dtype == np.int8
    assert np.abs(table - values * scales[:, None]).max() <= 0.5001 * scales.max()
    for row in range(50):
        step = np.abs(table[row]).max() / 127
        assert np.abs(table[row] - values[row] * scales[row]).max() <= 0.5001 * step + 1e-30


def test_int8_keeps_one_table_in_eight_bits_and_nearly_the_logits(bert) -> None:
    model, path, small = bert
    assert small.stat().st_size < 0.4 * path.stat().st_size
    weights = onnx.load(small).graph.initializer
    tables = [(weight.name, weight.data_type) for weight in weights if sorted(weight.dims) == [32, ROWS]]
    assert [kind for _, kind in tables] == [onnx.TensorProto.INT8]
    assert not [
        weight.name
        for weight in weights
        if len(weight.dims) == 2
        and min(weight.dims) > 20
        and weight.data_type == onnx.TensorProto.FLOAT
        and 80 not in weight.dims
    ]
    ids, attention = padded([17, 9, 12])
    with torch.no_grad():
        own = model(input_ids=ids, attention_mask=attention).logits[attention.bool()]
    made = OnnxModel(small).logits(ids, attention)[attention.bool()]
    correlation = float(torch.corrcoef(torch.stack([own.flatten(), made.flatten()]))[0, 1])
    assert 0.98 < correlation < 1 - 1e-9


def int8_matrices(path) -> dict[str, np.ndarray]:
    """The int8 weights of matrix products, by name."""
    graph = onnx.load(path).graph
    weights = {weight.name: onnx.numpy_helper.to_array(weight) for weight in graph.initializer}
    # A table that is also the output layer is transposed in the graph.
    for node in graph.node:
        if node.op_type == "Transpose" and node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]].T
    used = {node.input[1] for node in graph.node if node.op_type == "MatMulInteger"}
    return {name: weights[name] for name in used if name in weights}


def test_products_of_int8_fit_into_sixteen_bits(bert, tmp_path) -> None:
    """AVX2, and AVX512 without VNNI, add two products of an unsigned and a signed byte in 16 bits: the sum
    must fit for any activations. With weights of 8 bits it does not; a processor with VNNI does not show
    that.
    """

    def largest_sum(path) -> int:
        largest = 0
        for matrix in int8_matrices(path).values():
            assert matrix.dtype == np.int8
            pairs = matrix[: len(matrix) // 2 * 2].astype(np.int64).reshape(-1, 2, matrix.shape[1])
            largest = max(largest, int(255 * np.maximum(pairs.clip(0).sum(1), (-pairs).clip(0).sum(1)).max()))
        return largest

    model, path, small = bert
    assert len(int8_matrices(small)) >= 6 * model.config.num_hidden_layers
    assert 255 * 60 < largest_sum(small) <= 2**15 - 1
    quantise_onnx(path, tmp_path / "wide.onnx", rows=ROWS, bits=8)
    assert largest_sum(tmp_path / "wide.onnx") > 2**15 - 1


def saturated(path, target) -> None:
    """The graph with the damage of a kernel that saturates: products far too small."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("_scale") and "int8" not in tensor.name:
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[::2] *= 0.2
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save_model(model, target)


def test_an_int8_model_that_lost_its_predictions_is_refused(teachers, texts, tmp_path) -> None:
    tokenizer, model = load_tokenizer(str(teachers["en"])), load_masked_lm(str(teachers["en"]))
    export_onnx(model, tmp_path / "model.onnx", token_types=False)
    quantise_onnx(tmp_path / "model.onnx", tmp_path / "int8.onnx", rows=model.config.vocab_size)
    saturated(tmp_path / "int8.onnx", tmp_path / "bad.onnx")
    lines = choose_lines([str(texts["en"])], 80)
    batches = proof_batches(tokenizer, lines, token_types=False)

    def prove(name: str, *, with_text: bool) -> dict:
        exported = {"onnx": OnnxModel(tmp_path / "model.onnx"), "int8": OnnxModel(tmp_path / name)}
        rows = prove_logits(model, "en", exported, batches)
        return prove_int8(
            "en", rows, compare_mrr(model, exported, tokenizer, lines) if with_text else None, bits=8
        )

    for with_text in (True, False):
        assert prove("int8.onnx", with_text=with_text)["same_argmax"] > 0.8
        with pytest.raises(
            ModelError, match=r"likeliest piece at \d+% of .* --int8-bits 7.*nothing was written"
        ):
            prove("bad.onnx", with_text=with_text)


@pytest.mark.parametrize(("high", "refused"), [(-0.012, True), (-0.009, False)])
def test_a_loss_of_mrr_counts_where_its_interval_says_so(high, refused) -> None:
    """5 % of 0.2 is 0.01."""
    logits = [{"attended": 10, "int8": {"same_argmax": 0.9}}]
    mrr = {"pytorch": {"mrr": 0.2}, "int8": {"mrr": 0.17, "mrr_minus_pytorch": [-0.03, -0.05, high]}}
    if refused:
        with pytest.raises(
            ModelError, match=r"MRR is 0.170 and the float model's 0.200 \(-15%; allowed: -5%\)"
        ):
            prove_int8("x", logits, mrr, bits=7)
    else:
        assert prove_int8("x", logits, mrr, bits=7)["weight_bits"] == 7


def test_two_tables_and_weights_beyond_the_limit(tmp_path, monkeypatch) -> None:
    """A model with untied tables, and files whose weights are beside the graph."""
    monkeypatch.setattr("polydistill.models.onnx_export.INLINE_BYTES", 1000)
    monkeypatch.setattr("polydistill.models.onnx_int8.INLINE_BYTES", 1000)
    config = AutoConfig.for_model("bert", **(SMALL | {"vocab_size": ROWS, "tie_word_embeddings": False}))
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config).eval()
    export_onnx(model, tmp_path / "model.onnx", token_types=False)
    quantise_onnx(tmp_path / "model.onnx", tmp_path / "floats.onnx", rows=ROWS, tables=False)
    quantise_onnx(tmp_path / "model.onnx", tmp_path / "int8.onnx", rows=ROWS)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sorted(sizes) == [
        f"{name}.onnx{end}" for name in ("floats", "int8", "model") for end in ("", "_data")
    ]
    assert sizes["model.onnx_data"] > 2 * 4 * 32 * ROWS > 2 * sizes["model.onnx"]
    assert sizes["floats.onnx_data"] > 5 * 32 * ROWS > sizes["int8.onnx_data"]
    ids, attention = padded([17, 9])
    exact, *near = compare_onnx(
        model,
        [OnnxModel(tmp_path / f"{name}.onnx") for name in ("model", "floats", "int8")],
        Inputs(ids, attention, None),
    )
    assert exact.relative < 1e-5
    assert all(1e-4 < result.relative < 0.1 for result in near)


def test_an_exported_model_is_timed_like_any_other(bert, monkeypatch) -> None:
    path = str(bert[1])
    measured = measure_cost(path, 2, 500, "model", 1, threads=1)
    assert 0 < measured["seconds"] < 60
    assert measured["peak_bytes"] >= 0
    asked = []
    monkeypatch.setattr(
        "polydistill.evaluation.cost.in_a_process",
        lambda *arguments: asked.append(arguments) or {"seconds": 1.0, "peak_bytes": 1.0},
    )
    facts = {"torch": {"pieces": ROWS, "max_tokens": 80}, path: {"pieces": ROWS, "max_tokens": 80}}
    rows = measure_in_turns(facts, shapes=[(2, 500)], rounds=2, calls=3, parts=["model"], threads=1)
    options = {"threads": 1}
    assert asked == [("torch", 2, 80, "model", 3, options), (path, 2, 80, "model", 3, options)] * 2
    assert [row["length"] for row in rows] == [80, 80]


def test_opsets(bert, tmp_path) -> None:
    for opset in (17, 999):
        with pytest.raises(RecipeError, match=f"opset {opset}: "):
            export_onnx(bert[0], tmp_path / "model.onnx", token_types=False, opset=opset)
    assert not list(tmp_path.iterdir())
