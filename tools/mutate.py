"""Change what computes, one place at a time, and count the changes that the tests notice: ``make mutants``."""

import argparse
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

SCORE = Path("tests/data/mutants.json")
FIRST = "ntk_helpers.dynamics.stability.x_max_learning_rate__mutmut_1"  # with which mutmut makes all the others
SEED, LEAST = 0, 5  # of each module in a sample
SURVIVED = ("survived", "no tests", "suspicious", "skipped", "not checked")


def mutmut(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "mutmut", *arguments], check=True, text=True, **options).stdout


def results():
    """What became of each mutant, by its name."""
    lines = mutmut("results", "--all", "true", stdout=subprocess.PIPE).splitlines()
    return dict(sorted(line.strip().rsplit(": ", 1) for line in lines if "__mutmut_" in line))


def module(mutant):
    """As `kernels/duals` is to the reader."""
    return mutant.split(".x", 1)[0].removeprefix("ntk_helpers.").replace(".", "/")


def sample(mutants, size):
    """So many mutants, of each module its share, but at least a few."""
    draw, chosen = random.Random(SEED), []
    for name, count in sorted(Counter(map(module, mutants)).items()):
        own = [mutant for mutant in mutants if module(mutant) == name]
        chosen += draw.sample(own, min(count, max(LEAST, round(size * count / len(mutants)))))
    return chosen


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", help="of the sample, or all")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    processes = f"--max-children={options.processes}"
    mutmut("run", processes, FIRST)
    names = list(results())
    chosen = names if options.size == "all" else sample(names, int(options.size))
    mutmut("run", processes, *chosen)
    found = results()
    score = {name: {"mutants": 0, "killed": 0} for name in sorted(set(map(module, chosen)))}
    for mutant in chosen:
        score[module(mutant)]["mutants"] += 1
        score[module(mutant)]["killed"] += found[mutant] not in SURVIVED
        if found[mutant] in SURVIVED:
            print(f"{mutant}: {found[mutant]}", mutmut("show", mutant, stdout=subprocess.PIPE), sep="\n")
    SCORE.write_text(json.dumps({"of": len(names), "modules": score}, indent=1) + "\n", encoding="utf-8")
    print(f"{sum(row['killed'] for row in score.values())} of {len(chosen)} killed")


if __name__ == "__main__":
    main()
