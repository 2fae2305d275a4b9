"""The planted programs. Each function returns (model, circuit edges, pair generator, sentences)."""
import numpy as np

from circuit_model import SHARP, Planted

LETTERS = "a b c d e f g h".split()
NAMES = "Mary John Anna Paul Kate Tom".split()


def back(n, by):
    """[n, n]: position p -> p - by (position 0 stays)."""
    m = np.zeros((n, n))
    for p in range(n):
        m[p, max(0, p - by)] = 1.0
    return m


def first(n, width, position):
    """[n, width]: every row's value goes to column 0; only `position` has one."""
    m = np.zeros((n, width))
    m[position, 0] = 1.0
    return m


def column(values, width=1):
    m = np.zeros((len(values), width))
    m[:, 0] = values
    return m


def previous_token():
    n = 12
    V = len(LETTERS) + 2
    m = Planted(LETTERS, n, {"prev": V, "dead": V, "dead2": V}, n_layers=1, n_heads=4, d_head=n)
    I = np.eye(V)
    m.head(0, 1, [("pos", SHARP * back(n, 1))], [("pos", np.eye(n))], ("tok", I), ("prev", I))
    m.head(0, 0, [("pos", SHARP * np.eye(n))], [("pos", np.eye(n))], ("tok", I), ("dead", I))
    m.head(0, 2, [("pos", column(np.full(n, SHARP)))], [("pos", first(n, 1, 1))], ("tok", I), ("dead2", I))
    m.output("prev", 8.0)
    m.circuit = {"a0.h1": "previous-token head: attends to the position before and copies its token into `prev`"}
    m.distractors = {"a0.h0": "attends to itself and copies the current token into a part nothing reads",
                     "a0.h2": "attends to the first letter and copies it into a part nothing reads",
                     "a0.h3": "all weights zero"}
    edges = ["input->a0.h1<q>", "input->a0.h1<k>", "input->a0.h1<v>", "a0.h1->logits"]

    def pair(rng):
        words = list(rng.choice(LETTERS, rng.integers(3, n - 1)))
        other = list(words)
        other[-2] = rng.choice([x for x in LETTERS if x != words[-2]])
        return words, other, words[-2], other[-2]

    return m, edges, pair, "Repeat the letter before the last one."


def induction():
    n = 24
    V = len(LETTERS) + 2
    m = Planted(LETTERS, n, {"prev": V, "out": V, "dead": V, "dead2": n}, n_layers=2, n_heads=3, d_head=n)
    I = np.eye(V)
    letters = np.diag(m.tokens(LETTERS))
    m.head(0, 1, [("pos", SHARP * back(n, 1))], [("pos", np.eye(n))], ("tok", I), ("prev", I))
    m.head(1, 2, [("tok", SHARP * letters)], [("prev", I)], ("tok", letters), ("out", I))
    m.head(0, 0, [("pos", SHARP * np.eye(n))], [("pos", np.eye(n))], ("tok", I), ("dead", I))
    m.head(0, 2, [("pos", SHARP * back(n, 2))], [("pos", np.eye(n))], ("tok", I), ("dead", -I))
    m.head(1, 0, [("tok", SHARP * letters)], [("tok", I)], ("pos", np.eye(n)), ("dead2", np.eye(n)))
    m.head(1, 1, [("dead", I)], [("prev", I)], ("dead", I), ("dead", I))
    m.output("out", 10.0)
    m.circuit = {"a0.h1": "previous-token head: copies the token before each position into `prev`",
                 "a1.h2": "induction head: looks for a position whose `prev` is the current token and copies that "
                          "position's token to the output"}
    m.distractors = {"a0.h0": "copies the current token into a part only a1.h1 reads",
                     "a0.h2": "copies the token two before, negated, into the same part",
                     "a1.h0": "duplicate-token head: marks where the current token stood, in a part nothing reads",
                     "a1.h1": "an induction-like head on the wrong part: composes with a0.h0, a0.h1 and a0.h2, moves no logit"}
    edges = ["input->a0.h1<q>", "input->a0.h1<k>", "input->a0.h1<v>", "input->a1.h2<q>", "a0.h1->a1.h2<k>",
             "input->a1.h2<v>", "a1.h2->logits"]

    def pair(rng):
        k = int(rng.integers(3, len(LETTERS) + 1))
        s = list(rng.permutation(LETTERS)[:k])
        cut = int(rng.integers(1, k))
        words = s + s[:cut]
        # Another token where the answer first stood: the same repetition, another continuation.
        free = [x for x in LETTERS if x not in s]
        other = list(words)
        if free:
            new = rng.choice(free)
            other[cut] = new
        else:
            j = 0 if cut + 1 >= k else cut + 1  # swap two letters of the first half that the second half does not reach
            if j == 0:
                return pair(rng)
            other[cut], other[j] = other[j], other[cut]
            new = other[cut]
        return words, other, s[cut], new

    return m, edges, pair, "A string of different letters starts again: continue it."


def majority():
    n = 17
    words = ["x", *LETTERS]
    V = len(words) + 2
    m = Planted(words, n, {"balance": 1, "first": V, "out": V, "dead": V, "dead2": 2}, n_layers=2, n_heads=3,
                d_head=n, d_mlp=16)
    I = np.eye(V)
    sign = m.tokens(["x"]) - m.tokens(LETTERS)
    m.head(0, 1, [], [], ("tok", column(sign)), ("balance", [[1.0]]))
    m.head(0, 2, [("pos", column(np.full(n, SHARP)))], [("pos", first(n, 1, 1))], ("tok", np.diag(m.tokens(LETTERS))),
           ("first", I))
    m.head(0, 0, [("pos", SHARP * back(n, 1))], [("pos", np.eye(n))], ("tok", I), ("dead", I))
    # balance = (n_x - n_other) / T, at least 1/n in size unless it is a tie; K makes it at least 2.
    K = 2.0 * n
    for i, letter in enumerate(LETTERS):
        m.neuron(0, i, [("first", m.id[letter], 1.0), ("balance", 0, -K)], 0.0, [("out", m.id[letter], 1.0)])
    m.neuron(0, 8, [("balance", 0, K)], 0.0, [("out", m.id["x"], 1.0)])
    for i, letter in enumerate(LETTERS):  # neurons of m1 that compute, and write where nothing reads
        m.neuron(1, i, [("tok", m.id[letter], 1.0), ("first", m.id[letter], 1.0)], -1.0, [("dead2", i % 2, 1.0)])
    m.head(1, 0, [("tok", SHARP * I)], [("tok", I)], ("balance", [[1.0]]), ("dead2", [[1.0, 0.0]]))
    m.head(1, 1, [], [], ("tok", I), ("dead", I))
    m.output("out", 4.0)
    m.circuit = {"a0.h1": "counter: attends evenly to everything so far; x counts +1, another letter −1",
                 "a0.h2": "first-letter head: attends to position 1 and copies its letter, unless that is x",
                 "m0": "threshold: ReLU(first − K·balance) per letter and ReLU(K·balance) for x"}
    m.distractors = {"a0.h0": "previous-token head into a part nothing reads",
                     "a1.h0": "averages the balance over equal tokens, into a part nothing reads",
                     "a1.h1": "averages all tokens into a part nothing reads", "a1.h2": "all weights zero",
                     "m1": "notices that the current letter is the first letter, writes it where nothing reads"}
    edges = ["input->a0.h1<v>", "input->a0.h2<q>", "input->a0.h2<k>", "input->a0.h2<v>", "a0.h1->m0", "a0.h2->m0",
             "m0->logits"]

    def pair(rng):
        """First letter is never x; the clean and the corrupted prompt differ in who has the majority."""
        while True:
            k = int(rng.integers(4, n))
            lead = rng.choice(LETTERS)

            def draw(p):
                return [lead] + [("x" if rng.random() < p else rng.choice(LETTERS)) for _ in range(k - 1)]

            many, few = draw(0.8), draw(0.25)
            if many.count("x") * 2 > k and few.count("x") * 2 < k:
                return (many, few, "x", lead) if rng.random() < 0.5 else (few, many, lead, "x")

    return m, edges, pair, "Say x if more than half of the letters are x, otherwise repeat the first letter."


def indirect_object():
    n = 18
    words = [*NAMES, *"When and went to the store , gave a drink ring".split()]
    V = len(words) + 2
    m = Planted(words, n, {"same": n, "flag": 1, "inhibit": V, "out": V, "dead": V, "dead2": 1}, n_layers=3, n_heads=3,
                d_head=V + 2, d_mlp=n)
    I = np.eye(V)
    names = m.tokens(NAMES)
    is_name = np.diag(names)
    last = m.tokens(["to"])
    # Layer 0: duplicate-token head. A name attends evenly to itself and to its earlier copies, and notes where they are.
    m.head(0, 0, [("tok", SHARP * is_name)], [("tok", is_name)], ("pos", np.eye(n)), ("same", np.eye(n)))
    # MLP 0: an earlier position with weight 1/2, at a name, raises the flag to 1; weights up to 0.45 do not. The name's
    # own position is subtracted away.
    for p in range(n):
        reads = [("same", p, 10.0), ("pos", p, -10.0)] + [("tok", m.id[x], 10.0) for x in NAMES]
        m.neuron(0, p, reads, -14.5, [("flag", 0, 2.0)])
    # Layer 1: at "to", attend to the flagged name and write it into `inhibit`.
    # With no flag it rests on <bos>; while there is a flag, that key has weight e^-30 and is not part of the circuit.
    m.head(1, 1, [("tok", column(SHARP * last))], [("flag", [[1.0]]), ("tok", column(0.5 * m.tokens(["<bos>"])))],
           ("tok", is_name), ("inhibit", I))
    # Layer 2: at "to", attend to names (query column V, key column V) except the inhibited one. The repeated name stands
    # there twice, so without inhibition it wins; 8 is enough to overrule that, and too little if a1.h1 looks everywhere.
    q = np.zeros((V, V + 1))
    q[:, V] = SHARP * last
    k = np.zeros((V, V + 1))
    k[:, :V] = is_name
    k[:, V] = names
    m.head(2, 0, [("tok", q), ("inhibit", -8.0 * I)], [("tok", k)], ("tok", is_name), ("out", I))
    # Distractors.
    m.head(0, 1, [("pos", SHARP * np.eye(n))], [("pos", np.eye(n))], ("tok", I), ("dead", I))
    m.head(0, 2, [("pos", column(np.full(n, SHARP)))], [("pos", first(n, 1, 2))], ("tok", I), ("dead", -I))
    m.head(1, 0, [("tok", SHARP * is_name)], [("tok", is_name)], ("tok", is_name), ("dead", I))
    m.head(1, 2, [("tok", column(SHARP * last))], [("tok", column(m.tokens(["and"])))], ("dead", I), ("dead", I))
    m.head(2, 1, [], [], ("tok", I - is_name), ("out", 2.0 * I))
    for i, name in enumerate(NAMES):
        m.neuron(1, i, [("dead", m.id[name], 1.0), ("tok", m.id["to"], 1.0)], -0.5, [("dead2", 0, 1.0)])
    m.neuron(2, 0, [("flag", 0, 1.0), ("tok", m.id["to"], -1.0)], 0.0, [("dead2", 0, -1.0)])
    m.output("out", 10.0)
    m.circuit = {"a0.h0": "duplicate-token head: a name notes the positions of its copies in `same`",
                 "m0": "raises `flag` at a name that has an earlier copy",
                 "a1.h1": "S-inhibition head: at the last word, attends to the flagged name and writes it into `inhibit`",
                 "a2.h0": "name mover: at the last word, attends to all names except the inhibited one and copies it out"}
    m.distractors = {"a0.h1": "copies the current token into a part the answer does not depend on",
                     "a0.h2": "copies the first name's slot, negated, into the same part",
                     "a1.h0": "second duplicate-token head, into the same part",
                     "a1.h2": "attends to `and` and copies that part",
                     "a2.h1": "does move logits: those of words that are not names, equally for either answer",
                     "a2.h2": "all weights zero",
                     "m1": "looks at the distractors' part, writes where nothing reads",
                     "m2": "reads the flag and the last word, writes where nothing reads"}
    edges = ["input->a0.h0<q>", "input->a0.h0<k>", "input->a0.h0<v>", "a0.h0->m0", "input->m0", "input->a1.h1<q>",
             "m0->a1.h1<k>", "input->a1.h1<v>", "input->a2.h0<q>", "a1.h1->a2.h0<q>", "input->a2.h0<k>",
             "input->a2.h0<v>", "a2.h0->logits"]

    def pair(rng):
        a, b = rng.choice(NAMES, 2, replace=False)
        s, io = (a, b) if rng.random() < 0.5 else (b, a)
        thing = rng.choice(["drink", "ring"])
        text = f"When {a} and {b} went to the store , {{}} gave a {thing} to"
        return text.format(s).split(), text.format(io).split(), io, s

    return m, edges, pair, "Indirect-object identification: of two names, say the one that is not repeated."


PROGRAMS = {"previous_token": previous_token, "induction": induction, "majority": majority,
            "indirect_object": indirect_object}
