"""Score a detector on a data set with COCO's numbers.

python eval.py --weight runs/synthetic/yolox-nano/1/best.pth
python eval.py -d coco --root PATH --weight yolox_s.pth
torchrun --nproc_per_node 4 eval.py -d coco --root PATH --weight yolox_s.pth
"""

import argparse

import data
import engine
import models
from utils import cli, dist
from utils.errors import UserError
from utils.evaluator import Evaluator
from utils.log import say


def parse_arguments() -> argparse.Namespace:
    parser = cli.Parser(description=__doc__.split("\n\n")[0], epilog="See docs/data.md.")
    cli.add_weight_flags(parser.add_argument_group("model"), conf=0.001)
    basic = parser.add_argument_group("data (default: what the checkpoint was trained on)")
    cli.add_data_flags(basic, data.READERS)
    cli.add_split_flags(basic, data.SPLITS)
    running = parser.add_argument_group("running")
    running.add_argument(
        "-bs", "--batch_size", type=cli.whole(1), default=8, metavar="N", help="images (8)"
    )
    running.add_argument(
        "--num_workers", type=cli.whole(0), metavar="N", help="processes that read images"
    )
    cli.add_device_flags(running)
    cli.add_debug_flag(running)
    return parser.parse_args()


def main():
    args = parse_arguments()
    cli.data_of_checkpoint(args, models.arguments_of(args.weight))
    device = cli.pick_device(args)
    dist.init(device)
    model = models.load(args.weight, conf=args.conf, nms=args.nms, img_size=args.img_size)
    model.to(device)
    options = cli.reader_options(args, args.split)
    options["classes"] = options["classes"] or model.classes
    records = data.read(args.dataset, args.root, args.split, **options)
    if len(records.classes) != len(model.classes):
        raise UserError(
            f"the set has {len(records.classes)} classes ({', '.join(records.classes[:5])} ...), "
            f"the model {len(model.classes)}; name the model's, in its order, with --classes FILE"
        )
    data.check_files(records)
    loader = data.build_loader(
        records,
        train=False,
        size_hw=model.input_hw,
        batch_size=args.batch_size,
        num_workers=cli.worker_count(args.num_workers, device),
        seed=0,
        rank=dist.rank(),
        world=dist.world_size(),
        pin=device.type == "cuda",
    )
    evaluator = Evaluator(records.ground_truth(), records.classes, records.category_ids)
    engine.evaluate(model, loader, evaluator, device=device)
    if dist.is_main():
        say(f"{args.weight} on {records.summary()}")
        say(evaluator.table())
        numbers = evaluator.compute()
        say(", ".join(f"{name} {numbers[name]:.4f}" for name in ("AP", "AP50", "AP75")))
        for note in numbers["notes"]:
            say(f"note: {note}")


if __name__ == "__main__":
    cli.run_main(main)
