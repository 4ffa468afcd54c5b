"""Makes the small data sets of configs/*.yaml; every row is invented here or drawn from a seed.

    .venv/bin/python scripts/example_data.py [FOLDER]      by default configs/data

| files | rows | for |
|---|---|---|
| flats_train.csv, flats_queries.csv | an advertisement and its rent | regression.yaml |
| capitals_train.jsonl, capitals_queries.jsonl | a prompt and its completion | completions.yaml |
| choices_train.jsonl, choices_queries.jsonl | a prompt, two answers | preferences.yaml |
| buildings_train.jsonl, buildings_queries.jsonl | a text, a question, an answer | questions.yaml |
| points_train.csv, .npy, points_queries.csv, .npy | a label and a vector | vectors.yaml |

Some training rows are wrong on purpose; the column `is_wrong` says which, and no stage reads it.
Flats, buildings and points do not exist; capitals are common knowledge.
"""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]

CAPITALS = {
    "Austria": "Vienna",
    "Bulgaria": "Sofia",
    "Canada": "Ottawa",
    "Chile": "Santiago",
    "Cuba": "Havana",
    "Denmark": "Copenhagen",
    "Egypt": "Cairo",
    "Finland": "Helsinki",
    "France": "Paris",
    "Germany": "Berlin",
    "Ghana": "Accra",
    "Greece": "Athens",
    "Hungary": "Budapest",
    "Iceland": "Reykjavik",
    "Ireland": "Dublin",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Kenya": "Nairobi",
    "Morocco": "Rabat",
    "Norway": "Oslo",
    "Peru": "Lima",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Spain": "Madrid",
    "Sweden": "Stockholm",
    "Turkey": "Ankara",
}
PROMPTS = (
    "What is the capital of {} ?",
    "Name the capital of {} .",
    "Which city is the capital of {} ?",
    "Which is the capital city of {} ?",
)
"""The queries are the last one."""
SWAPPED = {"Denmark": "Oslo", "Italy": "Athens", "Kenya": "Cairo", "Spain": "Lisbon"}
"""Wrong answers to the first prompt."""

PLACES = "Arlen Brask Corvo Delmar Estrel Fenwick Galdo Harne Istria Jorvik".split()
BUILDINGS = ("bridge", "mill", "library", "station", "lighthouse")
BUILDERS = ("two brothers", "a widow", "the town council", "a merchant", "monks")
MATERIALS = ("granite", "oak", "red brick", "limestone", "iron")
CENTRES = np.array([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
DIM = 8


def main(folder: Path) -> None:
    """Writes all files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", flats(160, 0)), ("queries", flats(40, 1))):
        _write_csv(folder / f"flats_{name}.csv", rows)
    for name, rows in (("train", capitals(PROMPTS[:-1])), ("queries", capitals(PROMPTS[-1:]))):
        _write_jsonl(folder / f"capitals_{name}.jsonl", rows)
    for name, rows in (("train", choices(PROMPTS[:-1])), ("queries", choices(PROMPTS[-1:]))):
        _write_jsonl(folder / f"choices_{name}.jsonl", rows)
    for name, rows in (("train", buildings(PLACES[:-1])), ("queries", buildings(PLACES[-1:]))):
        _write_jsonl(folder / f"buildings_{name}.jsonl", rows)
    for name, (rows, vectors) in (("train", points(300, 0)), ("queries", points(100, 1))):
        _write_csv(folder / f"points_{name}.csv", rows)
        np.save(folder / f"points_{name}.npy", vectors)


def flats(n: int, seed: int) -> list[Row]:
    """Advertisements with a rent that follows from what they say, and noise.

    Of the training rows (seed 0) every twentieth has a rent that is 700 too high.
    """
    rng = np.random.default_rng([seed, 1])
    rows = []
    for at in range(n):
        drawn = rng.integers((1, 0, 0, 0), (6, 2, 2, 2))
        rooms, is_central, has_balcony, is_old = (int(number) for number in drawn)
        parts = [
            f"a {('one', 'two', 'three', 'four', 'five')[rooms - 1]}-room flat",
            ("at the edge of town", "in the city centre")[is_central],
            *(["with a balcony"] if has_balcony else []),
            ("renovated last year", "in need of repair")[is_old],
        ]
        rent = 250 + 210 * rooms + 220 * is_central + 60 * has_balcony - 120 * is_old
        is_wrong = seed == 0 and at % 20 == 7
        rent += round(float(rng.normal(0, 25))) + 700 * is_wrong
        text = ", ".join([" ".join(parts[:2]), *parts[2:]])
        rows.append({"flat": at, "advertisement": text, "rent": rent, "is_wrong": is_wrong})
    return rows


def capitals(prompts: tuple[str, ...]) -> list[Row]:
    """Each prompt for each country; four of the first are completed wrongly."""
    rows: list[Row] = []
    for prompt in prompts:
        for country, capital in CAPITALS.items():
            is_wrong = prompt == PROMPTS[0] and country in SWAPPED
            rows.append(
                {
                    "id": len(rows),
                    "question": prompt.format(country),
                    "answer": f" {SWAPPED[country] if is_wrong else capital}",
                    "country": country,
                    "is_wrong": is_wrong,
                }
            )
    return rows


def choices(prompts: tuple[str, ...]) -> list[Row]:
    """Each prompt for each country with the right capital chosen, and another's rejected.

    Of the training rows (several prompts) every tenth has its answers the wrong way round.
    """
    rng = np.random.default_rng([len(prompts), 5])
    countries = list(CAPITALS)
    rows: list[Row] = []
    for prompt in prompts:
        for at, country in enumerate(countries):
            other = countries[(at + int(rng.integers(1, len(countries)))) % len(countries)]
            is_wrong = len(prompts) > 1 and len(rows) % 10 == 3
            answers = [f" {CAPITALS[country]}", f" {CAPITALS[other]}"]
            chosen, rejected = reversed(answers) if is_wrong else answers
            own = {"id": len(rows), "prompt": prompt.format(country)}
            rows.append({**own, "chosen": chosen, "rejected": rejected, "is_wrong": is_wrong})
    return rows


def buildings(places: list[str]) -> list[Row]:
    """Three questions about a text of two sentences, in the columns of SQuAD."""
    rng = np.random.default_rng([len(places), 2])
    rows: list[Row] = []
    for place in places:
        for what in BUILDINGS:
            year = str(rng.integers(1620, 1990))
            builder, material = rng.choice(BUILDERS), rng.choice(MATERIALS)
            context = (
                f"The {what} of {place} was built in {year} by {builder}. "
                f"It is made of {material} and stands there still."
            )
            for question, answer in (
                (f"When was the {what} of {place} built?", year),
                (f"Who built the {what} of {place}?", str(builder)),
                (f"What is the {what} of {place} made of?", str(material)),
            ):
                answers = {"text": [answer], "answer_start": [context.index(answer)]}
                own = {"id": len(rows), "context": context, "question": question}
                rows.append({**own, "answers": answers})
    return rows


def points(n: int, seed: int) -> tuple[list[Row], np.ndarray]:
    """Three clouds in the plane, seen through a random map to 8 numbers.

    Of the training rows (seed 0) every tenth has the label of another cloud.
    """
    rng = np.random.default_rng([seed, 3])
    labels = rng.integers(0, 3, n)
    seen_as = np.random.default_rng(4).normal(size=(2, DIM))
    plane = CENTRES[labels] + rng.normal(0, 0.7, (n, 2))
    vectors = plane @ seen_as + rng.normal(0, 0.1, (n, DIM))
    is_wrong = (np.arange(n) % 10 == 3) & (seed == 0)
    given = (labels + is_wrong * rng.integers(1, 3, n)) % 3
    rows = [
        {"point": at, "cloud": f"cloud {given[at]}", "is_wrong": bool(is_wrong[at])}
        for at in range(n)
    ]
    return rows, vectors.astype(np.float32)


def _write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_jsonl(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("configs/data"))
