"""char_gpt, small enough to take a millisecond per step, as a job that can be started again and again."""
import job


def command(folder, *arguments, dim=16, resume=None):
    """The program and its arguments: trains, saves in `folder` and exports there at the end; goes on from the checkpoint
    `resume`, or from the last one in `folder` if there is one."""
    return [job.program("char_gpt"), "--synthetic", "--dim", str(dim), "--layers", "1", "--heads", "2", "--seq", "16", "--batch",
            "2", "--dropout", "0.1", "--eval-batches", "1", "--checkpoint-dir", f"{folder}/checkpoints", "--resume",
            *([resume] if resume else []), "--metrics", f"{folder}/metrics", "--export", f"{folder}/model.safetensors", *arguments]


def export_in(folder):
    """The bytes of what a job has exported."""
    with open(f"{folder}/model.safetensors", "rb") as file:
        return file.read()


def steps_in(folder):
    """How many steps a job that may still run has done."""
    return job.lines_of(f"{folder}/metrics")


def undisturbed(folder, ranks, *arguments):
    """What a job that nobody disturbs exports."""
    result = job.run([*job.mpirun(ranks), *command(folder, *arguments)])
    if result.code != 0:
        raise AssertionError(f"the undisturbed job failed: {result}")
    return export_in(folder)
