"""`polydistill vocab trim` as a process; plain transformers reads its output in another."""

import json
import subprocess
import sys

from tests.end_to_end.test_merge import polydistill

USE = """
import json, sys, torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
found = []
for folder in sys.argv[1:]:
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["the house of [MASK]", "she [MASK] that"], return_tensors="pt", padding=True)
    logits = model(**batch).logits[batch["input_ids"] == tokenizer.mask_token_id]
    kept = json.load(open(sys.argv[2] + "/kept.json"))
    logits = logits if folder == sys.argv[2] else logits[:, kept]
    found.append([tokenizer.tokenize("the house of it"), logits.tolist()])
print(json.dumps(found))
"""


def test_trim_as_a_command(tmp_path, texts, teachers) -> None:
    output = tmp_path / "small"
    done = polydistill(
        "vocab",
        "trim",
        str(teachers["en"]),
        "--text",
        f"en={texts['en']}",
        "--output",
        str(output),
        "--size",
        "250",
        "--verify-lines",
        "30",
    )
    assert done.returncode == 0, done.stderr
    assert "400 pieces → 250" in done.stdout
    assert "en: chosen on" in done.stdout
    assert "largest difference" in done.stdout
    record = json.loads((output / "trim.json").read_text("utf-8"))
    assert (record["pieces"], record["size"], record["languages"]["en"]["num_texts"]) == (250, 250, 30)
    # The output must not hold the model's path.
    assert not [p.name for p in output.iterdir() if str(teachers["en"]).encode() in p.read_bytes()]
    assert "trimmed to en" in (output / "README.md").read_text("utf-8")
    used = subprocess.run(
        [sys.executable, "-c", USE, str(teachers["en"]), str(output)],
        capture_output=True,
        text=True,
        check=True,
    )
    (old_pieces, old), (new_pieces, new) = json.loads(used.stdout)
    assert old_pieces == new_pieces
    assert max(abs(a - b) for x, y in zip(old, new, strict=True) for a, b in zip(x, y, strict=True)) < 1e-5
    assert len(new[0]) == 250
    wrong = polydistill(
        "vocab", "trim", str(teachers["en"]), "--text", "en", "--output", str(tmp_path / "other")
    )
    assert wrong.returncode == 2
    assert "--text 'en': is not of the form NAME=VALUE" in wrong.stderr
    assert "Traceback" not in wrong.stderr
