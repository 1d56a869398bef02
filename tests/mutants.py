"""Mutation testing of the core: cosmic-ray's operators on a sample drawn by a seed, each mutant against its file's quick tests.

    make mutants                    goes on where the last run stopped; .mutants.json keeps what was found
    make mutants ARGS="--count 60"  the first 60 of the sample

Not drawn are mutants that differ in annotations alone, which nothing evaluates, and arithmetic on floats turned into that of bits,
which ends in a TypeError and would flatter the result.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import hashlib
import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache

from planted import ROOT, TESTS, outcome, warm

CORE = (
    *sorted(f"marble_core/algorithm/{path.name}" for path in (ROOT / "marble_core/algorithm").glob("*.py")),
    "marble_core/evaluation/statistics.py",
    "marble_core/prompts/mixing.py",
)
RESULTS = ROOT / ".mutants.json"
BITS = tuple(f"_{name}" for name in ("BitOr", "BitAnd", "BitXor", "LShift", "RShift"))
WITH_ARGUMENTS = ("VariableReplacer", "VariableInserter")  # of cosmic-ray, which need a variable's name


@dataclass(frozen=True)
class Mutant:
    file: str
    operator: str
    occurrence: int

    @property
    def code(self) -> str:
        from cosmic_ray.mutating import mutate_code

        return mutate_code(source(self.file), operators()[self.operator](), self.occurrence) or source(self.file)

    @property
    def key(self) -> str:
        """By what is changed, so that a mutant of a line that stayed is not run again."""
        return hashlib.sha256(f"{self.file}{self.code}".encode()).hexdigest()[:16]

    @property
    def change(self) -> str:
        lines = difflib.unified_diff(source(self.file).splitlines(), self.code.splitlines(), n=0, lineterm="")
        return "  ->  ".join(line[1:].strip() for line in list(lines)[2:] if line[0] in "+-")


@cache
def source(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


@cache
def operators() -> dict:
    from cosmic_ray.operators.provider import OperatorProvider

    provider = OperatorProvider()
    return {name: provider[name] for name in sorted(provider) if name not in WITH_ARGUMENTS and not name.endswith(BITS)}


class _WithoutAnnotations(ast.NodeTransformer):
    def visit_arg(self, node):
        node.annotation = None
        return node

    def visit_AnnAssign(self, node):
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_FunctionDef(self, node):
        node.returns = None
        return self.generic_visit(node)


def meaning(code: str) -> str:
    return ast.dump(_WithoutAnnotations().visit(ast.parse(code)))


def population() -> list[Mutant]:
    from cosmic_ray.ast import ast_nodes, get_ast

    found = []
    for file in CORE:
        nodes = list(ast_nodes(get_ast(source(file))))
        for name, operator in operators().items():
            count = sum(len(list(operator().mutation_positions(node))) for node in nodes)
            found += [Mutant(file, name, n) for n in range(count)]
    return found


def sample(count: int, seed: int) -> list[Mutant]:
    """The first ``count`` of the population's order by ``seed``, but for those that change nothing."""
    drawn, everything = [], population()
    random.Random(seed).shuffle(everything)
    for mutant in everything:
        if len(drawn) == count:
            break
        try:
            if meaning(mutant.code) != meaning(source(mutant.file)):
                drawn.append(mutant)
        except SyntaxError:
            continue
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--survivors", action="store_true", help="run those that survived again")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    drawn = sample(arguments.count, arguments.seed)
    todo = [m for m in drawn if m.key not in known or (arguments.survivors and not known[m.key]["killed"])]
    warm()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        running = {pool.submit(outcome, m.file, m.code, TESTS[m.file]): m for m in todo}
        for n, future in enumerate(as_completed(running), 1):
            mutant, done = running[future], future.result()
            known[mutant.key] = {"file": mutant.file, "operator": mutant.operator, "change": mutant.change, **vars(done)}
            RESULTS.write_text(json.dumps(known, indent=1))
            word = "killed  " if done.killed else "SURVIVED"
            print(f"{n:4} {word} {mutant.file}: {mutant.change}  [{done.by}, {done.seconds} s]", flush=True)
    results = [known[mutant.key] for mutant in drawn if mutant.key in known]
    killed = Counter(r["file"] for r in results if r["killed"])
    for file, count in sorted(Counter(r["file"] for r in results).items()):
        print(f"{file}: {killed[file]} of {count} killed")
    print(f"{sum(killed.values())} of {len(results)} killed")


if __name__ == "__main__":
    main()
