"""One prompt by every solver and several numbers of steps, from one noise: a labelled grid for the README.

usage: python scripts/solver_grid.py [solvers.png] [--model FOLDER] [--prompt TEXT] [--steps 4 8 16 32] [--seed 0]
"""

import argparse
import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from t2i.diffusion.solvers import SOLVERS
from t2i.pipeline import Pipeline
from t2i.pipeline.find import find_model
from t2i.progress import progress
from t2i.report.grid import LabelledGrid

LEFT_OUT = ("lcm",)  # needs a model that was distilled for it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path("solvers.png"))
    parser.add_argument("--model", type=Path, help="a pipeline's folder; by default the shipped one")
    parser.add_argument("--prompt", default="red anvil icon on a yellow background")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--solvers", nargs="+", default=[name for name in SOLVERS if name not in LEFT_OUT])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pipeline = Pipeline.from_pretrained(find_model(options.model))
    cells = list(product(options.steps, options.solvers))
    images = []
    with progress("images", len(cells)) as report:
        for steps, solver in cells:
            drawn = pipeline(options.prompt, num_inference_steps=steps, solver=solver, seeds=options.seed)
            images += drawn.images
            report(len(images))
    rows = tuple(f"{steps} steps" for steps in options.steps)
    title = f"{options.prompt}, seed {options.seed}"
    LabelledGrid(title, images[0].size, tuple(options.solvers), rows).draw(images).save(options.out)
    print(options.out)


if __name__ == "__main__":
    main()
