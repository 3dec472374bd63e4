"""The battery's tasks as arrays: what each package's files are made of, which part is held out, and how it is coded."""
import gzip
import os
import re

import numpy

import r_data


def transformer(text):
    """The text as indices into the bytes that occur in it; the last tenth is held out."""
    data = numpy.frombuffer(text, "u1")
    symbols, tokens = numpy.unique(data, return_inverse=True)
    boundary = -(-9 * len(data) // 10)
    tokens = tokens.astype("u1")
    return {"train": tokens[:boundary], "test": tokens[boundary:], "symbols": symbols}


def lstm(path):
    """Words of 2-12 letters as letters 1-26, right-aligned, and phonemes 1-39, then 40, the end; 0 is padding.

    Stress is left out, and so are second pronunciations. Every 20th word is held out.
    """
    words, pronunciations = [], []
    with open(path, encoding="utf-8") as file:
        for line in file:
            word, *phonemes = line.split("#")[0].split()
            if re.fullmatch("[a-z]{2,12}", word) and len(phonemes) <= 12:
                words.append(word)
                pronunciations.append([phoneme.rstrip("012") for phoneme in phonemes])
    names = sorted({phoneme for phonemes in pronunciations for phoneme in phonemes})
    code = {name: index for index, name in enumerate(names, 1)}
    letters = numpy.zeros((len(words), 12), "u1")
    targets = numpy.zeros((len(words), 13), "u1")
    for row, (word, phonemes) in enumerate(zip(words, pronunciations)):
        letters[row, 12 - len(word):] = [ord(letter) - ord("a") + 1 for letter in word]
        targets[row, :len(phonemes) + 1] = [*(code[phoneme] for phoneme in phonemes), len(names) + 1]
    held_out = numpy.arange(len(words)) % 20 == 19
    return {"train_letters": letters[~held_out], "train_phonemes": targets[~held_out],
            "test_letters": letters[held_out], "test_phonemes": targets[held_out]}


def cnn(folder):
    """The images and labels of the IDX files (magic number, sizes as big-endian integers, bytes)."""
    arrays = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        for name, kind, header in (("images", "images-idx3-ubyte.gz", 16), ("labels", "labels-idx1-ubyte.gz", 8)):
            with gzip.open(os.path.join(folder, f"{prefix}-{kind}")) as file:
                arrays[f"{part}_{name}"] = numpy.frombuffer(file.read()[header:], "u1")
        arrays[f"{part}_images"] = arrays[f"{part}_images"].reshape(-1, 28, 28)
    return arrays


# One column each, and one for all others. Beside it what an atom of the element is bound to by default.
ELEMENTS = ("C", "N", "O", "S", "F", "Cl", "Br", "I", "P")
VALENCES = {"C": 4, "N": 3, "O": 2, "S": 2, "F": 1, "Cl": 1, "Br": 1, "I": 1, "P": 3, "B": 3, "Si": 4}
ATOM_FEATURES = 25


def molecule(block):
    """Features of the atoms, bonds (atom, atom, type) and the solubility in one entry of an SDF file (MDL V2000)."""
    lines = block.splitlines()
    atoms, bonds = int(lines[3][0:3]), int(lines[3][3:6])
    elements = [line[31:34].strip() for line in lines[4:4 + atoms]]
    bonds = [[int(line[0:3]) - 1, int(line[3:6]) - 1, int(line[6:9])] for line in lines[4 + atoms:4 + atoms + bonds]]
    charges = [0] * atoms
    for line in lines:
        if line.startswith("M  CHG"):
            numbers = [int(number) for number in line[9:].split()]
            for atom, charge in zip(numbers[::2], numbers[1::2]):
                charges[atom - 1] = charge
    # Element (10 columns), number of bonds (6), charge, valences that hydrogens fill (5); 3 columns are left.
    features = numpy.zeros((atoms, ATOM_FEATURES), "i1")
    for atom, element in enumerate(elements):
        orders = [order for first, second, order in bonds if atom in (first, second)]
        missing = VALENCES.get(element, 0) + charges[atom] - sum(orders)
        features[atom, ELEMENTS.index(element) if element in ELEMENTS else len(ELEMENTS)] = 1
        features[atom, 10 + min(len(orders), 5)] = 1
        features[atom, 16] = charges[atom]
        features[atom, 17 + min(max(missing, 0), 4)] = 1
    solubility = float(re.search(r"> +<SOL>[^\n]*\n([^\n]+)", block).group(1))
    return features, numpy.array(bonds, "i4").reshape(-1, 3), solubility


def gnn(folder):
    """Molecules one after the other: atoms and bonds of the i-th are those from begin[i] up to begin[i + 1]."""
    arrays = {}
    for part in ("train", "test"):
        with open(os.path.join(folder, f"solubility.{part}.sdf"), encoding="utf-8") as file:
            molecules = [molecule(block) for block in re.split(r"\$\$\$\$\n", file.read()) if block.strip()]
        for name, index in (("atom", 0), ("bond", 1)):
            arrays[f"{part}_{name}s"] = numpy.concatenate([entry[index] for entry in molecules])
            counts = [len(entry[index]) for entry in molecules]
            arrays[f"{part}_{name}_begin"] = numpy.concatenate([[0], numpy.cumsum(counts)]).astype("i8")
        arrays[f"{part}_log_solubility"] = numpy.array([entry[2] for entry in molecules], "f4")
    return arrays


FIELDS = ("s", "d", "dept", "service", "studage", "lectage")  # student, lecturer, ...


def recommender(path):
    """Ratings 1-5 and their six categories as indices from 0; every tenth, by the order in the package, is held out."""
    columns = r_data.read_lazy_load(path, "InstEval").columns()
    categories = numpy.stack([columns[field].value - 1 for field in FIELDS], 1).astype("i4")
    ratings = columns["y"].value.astype("f4")
    held_out = numpy.arange(len(ratings)) % 10 == 9
    return {"train_categories": categories[~held_out], "train_ratings": ratings[~held_out],
            "test_categories": categories[held_out], "test_ratings": ratings[held_out],
            "levels": numpy.array([len(columns[field].attributes["levels"].value) for field in FIELDS], "i8")}


def convex(path):
    """16 features, standardised over the first 16,000 letters, which are trained on; and the minimum of the loss."""
    columns = r_data.read_rda(path)["LetterRecognition"].columns()
    labels = columns.pop("lettr").value - 1
    features = numpy.stack([column.value for column in columns.values()], 1)
    train = features[:16000]
    features = (features - train.mean(0)) / train.std(0)
    return {"train_features": features[:16000].astype("f4"), "train_labels": labels[:16000].astype("i8"),
            "test_features": features[16000:].astype("f4"), "test_labels": labels[16000:].astype("i8"),
            "optimum": numpy.array([minimum(features[:16000].astype("f4").astype("f8"), labels[:16000])])}


def minimum(features, labels):
    """Of the mean cross-entropy of logistic regression with bias: by Newton's method, until the gradient is noise."""
    inputs = numpy.concatenate([features, numpy.ones((len(features), 1))], 1)
    width, classes = inputs.shape[1], labels.max() + 1
    one_hot = numpy.eye(classes)[labels]

    def loss_and_probabilities(weights):
        logits = inputs @ weights
        logits -= logits.max(1, keepdims=True)
        exponentials = numpy.exp(logits)
        sums = exponentials.sum(1, keepdims=True)
        return (numpy.log(sums[:, 0]) - logits[numpy.arange(len(labels)), labels]).mean(), exponentials / sums

    weights = numpy.zeros((width, classes))
    loss, probabilities = loss_and_probabilities(weights)
    for _ in range(100):
        gradient = inputs.T @ (probabilities - one_hot) / len(labels)
        if numpy.linalg.norm(gradient) < 1e-10:
            return loss
        hessian = numpy.zeros((classes, width, classes, width))
        for first in range(classes):
            for second in range(first + 1):
                scale = probabilities[:, first] * ((first == second) - probabilities[:, second]) / len(labels)
                block = inputs.T @ (scale[:, None] * inputs)
                hessian[first, :, second] = hessian[second, :, first] = block
        # Adding the same weights to every class changes nothing, which a little on the diagonal makes up for.
        hessian = hessian.reshape(classes * width, -1) + 1e-9 * numpy.eye(classes * width)
        direction = numpy.linalg.solve(hessian, gradient.T.reshape(-1)).reshape(classes, width).T
        size = 1.0
        while True:
            new_loss, new_probabilities = loss_and_probabilities(weights - size * direction)
            if new_loss <= loss or size < 1e-3:
                break
            size /= 2
        weights, loss, probabilities = weights - size * direction, new_loss, new_probabilities
    raise ArithmeticError(f"Newton's method has not converged: the gradient's norm is {numpy.linalg.norm(gradient)}")
