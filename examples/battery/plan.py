"""What the comparison runs: tasks, lengths, arms and grids, for the whole comparison and for a quick one."""
import dataclasses

ADAMW_BETA2 = (0.8, 0.9, 0.95, 0.99, 0.999, 0.9999)
ADAMW_DECAY = (0.0, 0.002, 0.01, 0.05, 0.2, 1.0)
SGD_DECAY = (0.0, 2e-5, 1e-4, 5e-4, 2e-3, 1e-2)


@dataclasses.dataclass(frozen=True)
class Axis:
    """Values of one setting: those tried at first, and those beyond for an optimum at an end."""
    name: str
    values: tuple
    below: tuple = ()  # nearest first
    above: tuple = ()


def learning_rates(*values):
    """A grid that goes on by the ratio at its ends, three times at most."""
    down, up = values[0] / values[1], values[-1] / values[-2]
    beyond = (1, 2, 3)
    return Axis("lr", values, tuple(values[0] * down**i for i in beyond), tuple(values[-1] * up**i for i in beyond))


def around(defaults, **ladders):
    """Of each default a grid of it and its neighbours on the ladder; the others are for an optimum at an end."""
    for name, ladder in ladders.items():
        at = ladder.index(defaults[name])
        yield Axis(name, ladder[at - 1:at + 2], tuple(reversed(ladder[:at - 1])), ladder[at + 2:])


def adamw(weight_decay, beta2):
    """Defaults and axes of a task that AdamW trains."""
    defaults = {"weight_decay": weight_decay, "beta2": beta2}
    return defaults, tuple(around(defaults, weight_decay=ADAMW_DECAY, beta2=ADAMW_BETA2))


def sgd(weight_decay):
    """Defaults and axes of a task that SGD trains."""
    defaults = {"weight_decay": weight_decay}
    return defaults, tuple(around(defaults, weight_decay=SGD_DECAY))


@dataclasses.dataclass(frozen=True)
class Relative:
    """A relative of Schedule-Free, tuned for the longest length as it is."""
    title: str
    optimizer: str
    lr: Axis
    defaults: dict  # of the settings but the learning rate
    other: tuple  # Axis of each of these that is tuned
    warms_up: bool = True


def plus(decays=True):
    """ScheduleFree+, whose lr is a factor: as it comes, and with a small grid."""
    other = (Axis("weight_decay", (0.0, 10.0, 30.0), above=(100.0, 300.0)),) if decays else ()
    return {"plus": Relative("ScheduleFree+, not tuned", "adamw-schedulefree-plus", Axis("lr", (1.0,)),
                             {"weight_decay": 0.0}, (), warms_up=False),
            "plus-tuned": Relative("ScheduleFree+", "adamw-schedulefree-plus", learning_rates(0.125, 0.25, 0.5, 1.0),
                                   {"weight_decay": 0.0}, other, warms_up=False)}


def adamw_relatives(schedule_free_lr, scheduled_lr, weight_decay, beta2):
    """Those of Schedule-Free AdamW, by grids of its own size."""
    defaults, other = adamw(weight_decay, beta2)
    return {
        "refined": Relative("refined Schedule-Free", "adamw-schedulefree", schedule_free_lr,
                            {**defaults, "refinement": 20.0},
                            (*other, Axis("refinement", (5.0, 20.0, 50.0), (2.0,), (100.0, 200.0)))),
        "inner": Relative("Schedule-Free with inner momentum", "adamw-schedulefree", schedule_free_lr,
                          {**defaults, "inner_momentum": 0.9},
                          (*other, Axis("inner_momentum", (0.8, 0.9, 0.95), (0.5,), (0.98,)))),
        "gpa": Relative("generalized primal averaging", "gpa-adamw", scheduled_lr, {**defaults, "eval_interp": 0.99},
                        (*other, Axis("eval_interp", (0.97, 0.99, 0.9967), (0.9,), (0.999,))))}


@dataclasses.dataclass(frozen=True)
class Task:
    """One panel of the figures."""
    name: str
    title: str
    metric: str  # less is better
    metric_title: str
    steps: int  # T, the longest run
    seeds: int
    step_s: float  # on one core, for the first estimate of the time left
    optimizers: dict  # "schedule-free" and "scheduled": (--optimizer, further arguments)
    lr: dict  # "schedule-free", "scheduled", and for some EXTREMES: Axis
    defaults: dict  # of the settings but the learning rate
    other: tuple  # Axis of each of these that is tuned, the same for every arm
    relatives: dict = dataclasses.field(default_factory=plus)  # arm -> Relative
    second: tuple = ()  # (metric, title) that the table shows beside it
    log_metric: bool = False
    points: tuple = (13, 7)  # read-off points of a Schedule-Free run, and of one with a schedule


ADAMW = {"schedule-free": ("adamw-schedulefree", ()), "scheduled": ("adamw", ())}
SGD = {"schedule-free": ("sgd-schedulefree", ()), "scheduled": ("sgd", ("--momentum", "0.9", "--nesterov"))}

TASKS = {task.name: task for task in (
    Task("transformer", "Transformer: King James Bible", "nats_per_byte", "nats per byte", 1024, 3, 0.0113, ADAMW,
         {"scheduled": learning_rates(1e-3, 2e-3, 4e-3, 8e-3, 16e-3),
          "schedule-free": learning_rates(2.5e-3, 5e-3, 10e-3, 20e-3, 40e-3),
          "polyak": learning_rates(0.5e-3, 1e-3, 2e-3, 4e-3, 8e-3),
          "primal": learning_rates(2.5e-3, 5e-3, 10e-3, 20e-3, 40e-3)},
         *adamw(0.05, 0.999),
         {**plus(), **adamw_relatives(learning_rates(2.5e-3, 5e-3, 10e-3, 20e-3, 40e-3),
                                      learning_rates(1e-3, 2e-3, 4e-3, 8e-3, 16e-3), 0.05, 0.999)}),
    Task("lstm", "LSTM: CMUdict, letters to phonemes", "nats_per_phoneme", "nats per phoneme", 3200, 3, 0.0058, ADAMW,
         {"scheduled": learning_rates(4e-3, 8e-3, 16e-3, 24e-3, 32e-3),
          "schedule-free": learning_rates(10e-3, 14e-3, 20e-3, 30e-3, 40e-3)},
         *adamw(0.05, 0.95), second=("phoneme_error", "phoneme error")),
    Task("cnn", "CNN with BatchNorm: Fashion-MNIST, SGD", "error", "test error", 2800, 3, 0.0059, SGD,
         {"scheduled": learning_rates(0.02, 0.05, 0.1, 0.2, 0.4),
          "schedule-free": learning_rates(0.25, 0.5, 1.0, 2.0, 4.0),
          "polyak": learning_rates(0.05, 0.1, 0.2, 0.4, 0.8),
          "primal": learning_rates(0.25, 0.5, 1.0, 2.0, 4.0)},
         *sgd(1e-4), second=("cross_entropy", "cross-entropy")),
    Task("gnn", "GNN: solubility of molecules", "mae", "mean absolute error, log10 mol/l", 1600, 5, 0.0037, ADAMW,
         {"scheduled": learning_rates(1e-3, 2e-3, 4e-3, 8e-3, 16e-3),
          "schedule-free": learning_rates(1e-3, 2.5e-3, 5e-3, 10e-3, 20e-3)},
         *adamw(0.05, 0.999), second=("rmse", "RMSE")),
    Task("recommender", "DLRM: InstEval, ratings", "rmse", "RMSE of ratings", 8192, 5, 0.0009, ADAMW,
         {"scheduled": learning_rates(0.5e-3, 1e-3, 2e-3, 4e-3, 8e-3),
          "schedule-free": learning_rates(0.5e-3, 1e-3, 2e-3, 4e-3, 8e-3)},
         *adamw(0.05, 0.999)),
    Task("convex", "Logistic regression: letters", "suboptimality", "f - f*", 16000, 3, 0.0001, ADAMW,
         {"scheduled": learning_rates(0.01, 0.02, 0.03, 0.05, 0.07, 0.1),
          "schedule-free": learning_rates(0.01, 0.02, 0.03, 0.05, 0.07, 0.1),
          "polyak": learning_rates(0.01, 0.02, 0.03, 0.05, 0.07, 0.1),
          "primal": learning_rates(0.002, 0.005, 0.01, 0.02, 0.03, 0.05)},
         {"weight_decay": 0.0, "beta2": 0.999}, (), plus(decays=False),
         second=("test_error", "test error"), log_metric=True),
)}

SCHEDULES = ("cosine", "linear")
EXTREMES = ("polyak", "primal")  # Schedule-Free with beta1 0 and 1


def quick(task):
    """The task in two lengths of a thirty-second and a sixteenth, with one seed and two learning rates."""
    return dataclasses.replace(
        task, steps=task.steps // 32 * 2, seeds=1, other=(), points=(7, 3), relatives={},
        lr={arm: Axis("lr", task.lr[arm].values[1:3]) for arm in ("schedule-free", "scheduled")})


def lengths(task, is_quick=False):
    """Steps of the runs with a schedule, ascending."""
    return [task.steps // share for share in ((2, 1) if is_quick else (8, 4, 2, 1))]


def read_off_points(steps, count):
    """The last step and steps before it, each 1.4 times the one before, and the start."""
    return sorted({0, *(round(steps * 2**(-0.5 * j)) for j in range(count))})


def arguments(task, arm, steps, seed, settings):
    """The command line of the program battery for one run, but for where data and results are."""
    scheduled, relative = arm in SCHEDULES, task.relatives.get(arm)
    optimizer, further = task.optimizers["scheduled" if scheduled else "schedule-free"]
    if relative:
        optimizer, further = relative.optimizer, ()
    result = ["--task", task.name, "--optimizer", optimizer, *further, "--steps", steps, "--seed", seed]
    result += ["--evaluate-at", ",".join(map(str, read_off_points(steps, task.points[scheduled])))]
    # Of its own length; or a fixed count, because Schedule-Free is not to know when it will be stopped.
    if not relative or relative.warms_up:
        result += ["--warmup", max(1, round(0.05 * steps if scheduled else 0.0125 * task.steps))]
    if scheduled:
        result += ["--schedule", arm]
    if arm in EXTREMES:
        result += ["--momentum" if optimizer.startswith("sgd") else "--beta1", 0 if arm == "polyak" else 1]
    for name, value in settings.items():
        result += ["--" + name.replace("_", "-"), value]
    return [str(argument) for argument in result]
