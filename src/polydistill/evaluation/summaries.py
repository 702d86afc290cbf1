"""TODO"""

from __future__ import annotations

from typing import Any


def summarise(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """D: the mean over languages of the student's MRR minus its teacher's (the best one's), on held-out text.

    With the teacher's own tokenizer, so that both guess the same tokens (balanced-2022, section 4).
    """
    differences = {}
    for language, entries in rows.items():
        held_out = [row for row in entries if row["text"] == "held_out" and row["tokenizer"] == "own"]
        teachers = {row["teacher"]: row["mrr"] for row in held_out if row["model"] != "student"}
        students = {row["teacher"]: row["mrr"] for row in held_out if row["model"] == "student"}
        if teachers and students:
            best = max(teachers, key=lambda name: teachers[name])
            differences[language] = students[best] - teachers[best]
    mean = sum(differences.values()) / len(differences) if differences else None
    return {"D": mean, "differences": differences}
