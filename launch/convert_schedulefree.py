#!/usr/bin/env python3
"""Turns what a Python trainer with the package schedulefree has saved into a checkpoint that zerosched loads.

usage: convert_schedulefree.py STATE FOLDER

STATE is a file that the Python trainer wrote with

    torch.save({"class": type(optimizer).__name__, "optimizer": optimizer.state_dict(), "model": model.state_dict(),
                "parameters": [name for name, p in model.named_parameters() if p.requires_grad],
                "frozen": [name for name, p in model.named_parameters() if not p.requires_grad]}, STATE)

where "parameters" are in the order in which the optimizer was given them. FOLDER, which must not exist yet, becomes the
checkpoint: zerosched's optimizer of the same class loads it at any world size. Needs torch, safetensors and xxhash.
"""
import argparse
import json
import os
import shutil
import sys
import tempfile
import time

import safetensors.torch
import torch
import xxhash

# By class: options in zerosched's order, and what the package calls each. beta1 and beta2 are its "betas".
ADAMW = ["lr", "beta1", "beta2", "eps", "weight_decay", "warmup_steps", "r", "weight_lr_power"]
OPTIONS = {
    "AdamWScheduleFree": ADAMW,
    "AdamWScheduleFreePaper": ADAMW,
    "RAdamScheduleFree": ["lr", "beta1", "beta2", "eps", "weight_decay", "r", "weight_lr_power", "silent_sgd_phase"],
    "SGDScheduleFree": ["lr", "momentum", "weight_decay", "warmup_steps", "r", "weight_lr_power"],
}
DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16"}


def option(group, name):
    if name in ("beta1", "beta2"):
        return float(group["betas"][int(name[-1]) - 1])
    return float(group[name])


def beta1(group):
    return group["betas"][0] if "betas" in group else group["momentum"]


def flat(tensor, parameter, dtype):
    """The elements of `tensor` in the order in which `parameter` lies in memory."""
    copy = torch.empty_strided(parameter.shape, parameter.stride(), dtype=dtype).copy_(tensor)
    return copy.as_strided((copy.numel(),), (1,))


def state_of(parameter, state, group):
    """z, x and v of one parameter, from the package's z and y (or x, if it was saved in eval mode)."""
    dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    held = parameter.to(torch.float64)
    z = state["z"].to(torch.float64) if "z" in state else held  # never had a gradient: z = x = y
    x = held
    if group["train_mode"] and "z" in state:
        b = beta1(group)
        if b == 0:
            sys.exit("convert_schedulefree: x cannot be told from y and z where beta1 is 0; save in eval mode")
        x = (held - (1 - b) * z) / b  # y = b x + (1 - b) z
    tensors = {"z": flat(z, parameter, dtype), "x": flat(x, parameter, dtype)}
    if "betas" in group:
        tensors["v"] = flat(state.get("exp_avg_sq", torch.zeros_like(parameter)), parameter, dtype)
    return tensors


def sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(folder, name, tensors):
    path = os.path.join(folder, name)
    safetensors.torch.save_file(tensors, path)
    sync(path)
    checksums = {key: xxhash.xxh3_64_hexdigest(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
                 for key, tensor in tensors.items()}
    return {"bytes": os.path.getsize(path), "xxh3": checksums}


def convert(saved):
    """What the manifest says of the optimizer, and the tensors of the two files."""
    if saved["class"] not in OPTIONS:
        sys.exit(f"convert_schedulefree: class {saved['class']} is not known; expected one of {', '.join(OPTIONS)}")
    model, names = saved["model"], saved["parameters"]
    states, groups = saved["optimizer"]["state"], saved["optimizer"]["param_groups"]
    count = sum(len(group["params"]) for group in groups)
    if count != len(names):
        sys.exit(f"convert_schedulefree: the optimizer has {count} parameters, but \"parameters\" names {len(names)}")

    pieces, parameters, first_name = {}, [], {}
    for g, group in enumerate(groups):
        for index in group["params"]:
            name = names[index]
            parameter = model[name]
            first_name[parameter.data_ptr()] = name
            parameters.append({"name": name, "shape": list(parameter.shape), "strides": list(parameter.stride()),
                               "dtype": DTYPES[parameter.dtype], "group": g})
            if parameter.numel() == 0:
                continue
            for which, tensor in state_of(parameter, states.get(index, {}), group).items():
                pieces[f"{which}:0-{tensor.numel()}:{name}"] = tensor
    unsharded, tied = {}, {}
    for name, tensor in model.items():
        if name in names:
            continue
        if tensor.numel() > 0 and tensor.data_ptr() in first_name:
            tied[name] = first_name[tensor.data_ptr()]
            continue
        kind = "frozen" if name in saved.get("frozen", []) else "buffer"
        unsharded[f"{kind}:{name}"] = tensor.contiguous().clone()

    return {"class": saved["class"], "groups": groups, "parameters": parameters, "tied": tied}, pieces, unsharded


def write_checkpoint(partial, of, pieces, unsharded):
    manifest = {
        "format": "zerosched checkpoint",
        "version": 1,
        "library_version": "convert_schedulefree",
        "created": time.time_ns(),
        "world_size": 1,
        "optimizer": of["class"],
        "groups": [{"options": [[name, option(group, name)] for name in OPTIONS[of["class"]]],
                    "k": group["k"], "weight_sum": group["weight_sum"], "lr_max": group["lr_max"],
                    "y_weight": 1 - beta1(group)} for group in of["groups"]],
        "parameters": of["parameters"],
        "tied": of["tied"],
        "files": {"rank_00000.safetensors": write(partial, "rank_00000.safetensors", pieces),
                  "module.safetensors": write(partial, "module.safetensors", unsharded)},
        "shared": {},
        "local": [{}],
    }
    with open(os.path.join(partial, "manifest.json"), "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync(partial)


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("state", metavar="STATE")
    parser.add_argument("folder", metavar="FOLDER")
    arguments = parser.parse_args()
    folder = arguments.folder.rstrip("/")
    if os.path.lexists(folder):
        sys.exit(f"convert_schedulefree: {folder} is there already")
    converted = convert(torch.load(arguments.state, map_location="cpu", weights_only=True))
    above, name = os.path.split(os.path.abspath(folder))
    os.makedirs(above, exist_ok=True)
    # A name of its own, so that nothing else is ever deleted; and none that a job saving beside it would clean up.
    partial = tempfile.mkdtemp(prefix=f".{name}.", suffix=".converting", dir=above)
    try:
        write_checkpoint(partial, *converted)
        os.chmod(partial, 0o777 & ~current_umask())  # mkdtemp's is the owner's only
        os.rename(partial, folder)  # fails if somebody else has made a folder with something in it meanwhile
        sync(above)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


if __name__ == "__main__":
    main()
