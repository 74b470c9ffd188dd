"""A small loop that has the lines of torchvision's classification/train.py which the guide's difference changes.

torchrun ... like_torchvision.py FOLDER
"""

# Written as torchvision's own lines are.
# ruff: noqa
# fmt: off
import os
import sys
from types import SimpleNamespace

import torch
import torch.utils.data
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class ExponentialMovingAverage(torch.optim.swa_utils.AveragedModel):
    def __init__(self, model, decay, device="cpu"):
        super().__init__(model, device, lambda average, new, _: decay * average + (1 - decay) * new, use_buffers=True)


def train_one_epoch(model, criterion, optimizer, data_loader, device, epoch, args, model_ema=None, scaler=None):
    model.train()
    for i, (image, target) in enumerate(data_loader):
        with torch.amp.autocast("cpu", enabled=scaler is not None):
            output = model(image)
            loss = criterion(output, target)
        optimizer.zero_grad()
        if scaler is not None:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            optimizer.step()
        if model_ema and i % args.model_ema_steps == 0:
            model_ema.update_parameters(model)


def evaluate(model, criterion, data_loader, device, print_freq=100, log_suffix=""):
    model.eval()
    total = torch.zeros(2)
    with torch.inference_mode():
        for image, target in data_loader:
            total += torch.stack([criterion(model(image), target) * len(image), torch.tensor(float(len(image)))])
    torch.distributed.all_reduce(total)
    print(f"Test: {log_suffix} loss {total[0] / total[1]:.4f}", flush=True)


def made_up(num_images, seed):
    images = torch.randn(num_images, 16, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(images, images[:, :4].argmax(1))


def main(args):
    torch.distributed.init_process_group(backend="gloo")
    args.distributed, args.world_size, device = True, torch.distributed.get_world_size(), torch.device("cpu")
    dataset = (made_up(512, 1))
    dataset_test = (made_up(128, 2))
    train_sampler = torch.utils.data.distributed.DistributedSampler(dataset)
    test_sampler = torch.utils.data.distributed.DistributedSampler(dataset_test, shuffle=False)
    data_loader = DataLoader(dataset, batch_size=args.batch_size, sampler=train_sampler)
    data_loader_test = DataLoader(dataset_test, batch_size=args.batch_size, sampler=test_sampler)
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    criterion = nn.CrossEntropyLoss(label_smoothing=args.label_smoothing)
    parameters = model.parameters()

    opt_name = args.opt.lower()
    if opt_name.startswith("sgd"):
        optimizer = torch.optim.SGD(
            parameters,
            lr=args.lr,
            momentum=args.momentum,
            weight_decay=args.weight_decay,
            nesterov="nesterov" in opt_name,
        )

    scaler = torch.amp.GradScaler("cpu") if args.amp else None

    args.lr_scheduler = args.lr_scheduler.lower()
    main_lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.epochs)
    lr_scheduler = main_lr_scheduler

    model_without_ddp = model
    if args.distributed:
        model = torch.nn.parallel.DistributedDataParallel(model, device_ids=[args.gpu])
        model_without_ddp = model.module

    model_ema = None
    if args.model_ema:
        adjust = args.world_size * args.batch_size * args.model_ema_steps / args.epochs
        alpha = 1.0 - args.model_ema_decay
        alpha = min(1.0, alpha * adjust)
        model_ema = ExponentialMovingAverage(model_without_ddp, device=device, decay=1.0 - alpha)

    if args.test_only:
        # We disable the cudnn benchmarking because it can noticeably affect the accuracy
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        if model_ema:
            evaluate(model_ema, criterion, data_loader_test, device=device, log_suffix="EMA")
        else:
            evaluate(model, criterion, data_loader_test, device=device)
        return

    print("Start training")
    for epoch in range(args.start_epoch, args.epochs):
        if args.distributed:
            train_sampler.set_epoch(epoch)
        train_one_epoch(model, criterion, optimizer, data_loader, device, epoch, args, model_ema, scaler)
        lr_scheduler.step()
        evaluate(model, criterion, data_loader_test, device=device)
        if model_ema:
            evaluate(model_ema, criterion, data_loader_test, device=device, log_suffix="EMA")
        if args.output_dir:
            checkpoint = {"epoch": epoch, "args": args}
            utils.save_on_master(checkpoint, os.path.join(args.output_dir, f"model_{epoch}.pth"))
            utils.save_on_master(checkpoint, os.path.join(args.output_dir, "checkpoint.pth"))

    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(SimpleNamespace(output_dir=sys.argv[1], epochs=3, start_epoch=0, batch_size=16, lr=0.02, momentum=0.9, weight_decay=1e-4, opt="sgd", lr_scheduler="cosineannealinglr", label_smoothing=0.1, amp=True, model_ema=True, model_ema_decay=0.98, model_ema_steps=2, test_only=False))
