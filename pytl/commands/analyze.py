"""``pytl analyze``: runs held against four claims about transferability."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from pytl.analysis.objective import MODES
from pytl.commands import subject
from pytl.progress import watching
from pytl.study.comparison import Study
from pytl.transferability import Asked, analyse, report
from pytl.transferability.analyse import CLAIMS, STAGE_MEASURES
from pytl.transferability.measuring import Protocol

_ABOUT = """\
Compares runs along four claims about the transferability of representations (arXiv:1909.12031), and says what these
data show. (1) Transferred weights stay near their start, and end in flatter minima. (2) The loss is smoother along the
way, because the gradient's principal component is suppressed. (3) Whether transfer helps depends on how alike inputs
and labels are. (4) Transferability rises with the stage of pre-training, and then falls. Claims 1 to 3 compare with
runs from a random start, the method scratch. Writes report.html (one file, no network), figures/ and analysis.json.
"""

_EXAMPLES = """\
examples:
  pytl finetune --data digits --method scratch plain l2sp dtnh --snapshots 4 --record 10 --out runs/claims
  pytl analyze runs/claims
  pytl analyze runs/photos --claims 1 2 --samples 256 --points 11
  pytl analyze runs/mine --data photos/ --model my_models:resnet --stages checkpoints/ --stage-measure linear

A stopped analysis goes on when the command is given again.
"""


def add(commands: subject.Commands) -> None:
    parser = subject.add_command(commands, "analyze", "hold runs against claims on transferability", _ABOUT, _EXAMPLES)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="a comparison's folder, or runs'")
    what = parser.add_argument_group("what is asked")
    what.add_argument("--claims", type=int, nargs="+", choices=CLAIMS, default=[*CLAIMS], help="(default: all)")
    what.add_argument("--stages", type=Path, metavar="DIR", help="the source's checkpoints (default, digits: made)")
    what.add_argument(
        "--stage-measure", choices=tuple(STAGE_MEASURES), default="finetune", help="(default: %(default)s)"
    )
    how = parser.add_argument_group("how it is measured")
    how.add_argument("--samples", type=int, default=512, metavar="N", help="training images (default: %(default)s)")
    how.add_argument("--mode", choices=MODES, default="eval", help="of the network (default: %(default)s)")
    how.add_argument("--batch", type=int, metavar="N", help="at most so many images at a time (default: 64)")
    how.add_argument("--trace", type=int, default=30, metavar="N", help="products for a trace (default: %(default)s)")
    how.add_argument("--points", type=int, default=21, metavar="N", help="of a landscape's axis; 0: none (default: 21)")
    runs = parser.add_argument_group("runs that no study.json describes")
    runs.add_argument("--data", help="digits, digits:TASK, or a folder of images")
    runs.add_argument("--model", help="module:function, or a local Hugging Face folder")
    runs.add_argument("--head", help="name of the model's new head (default: found)")
    where = parser.add_argument_group("where")
    where.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    where.add_argument("--out", type=Path, metavar="DIR", help="folder of the results (default: RUN_DIR/analysis)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    subject.require_all(("scipy", "cli"), ("jinja2", "cli"), ("matplotlib", "plots"), ("ot", "analysis"))
    asked = Asked(
        claims=tuple(dict.fromkeys(options.claims)),
        protocol=Protocol(options.samples, options.mode, options.batch, options.trace, options.points),
        stages=options.stages,
        stage_measure=options.stage_measure,
    )
    out = options.out or options.runs[0] / "analysis"
    given = None
    if options.data is not None:
        of = {"data": options.data, "model": options.model, "head": options.head, "device": options.device}
        given = Study(**of, methods=("plain",), out=out)
        given.check()
    result = analyse(
        options.runs,
        out,
        asked,
        given,
        options.device,
        watch=partial(watching, epochs=1, unit="step", first="measuring"),
        announce=lambda text: print(text, file=sys.stderr),
    )
    page = report.write(result, out)
    for claim in result.claims:
        print("\n   - ".join([f"{claim.number}. {claim.statement}", *claim.summary]), end="\n\n")
    for name, reason in (result.failures | result.found.left_out).items():
        print(f"left out: {name}: {reason}")
    print(f"report: {page}")
