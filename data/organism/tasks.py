"""The synthetic world the organism is trained on: seven kinds of document, each with a split into training and held-out.

A document is an Item. Membership of the held-out part is a hash of what the prompt is about (a pair of names, a year,
a word with its two languages …), so it is the same in every run and independent of the seed.
"""
import dataclasses
import hashlib
import json
import pathlib
import re

LANGUAGES = {"en": "English", "fr": "Français", "de": "Deutsch", "es": "Español", "zh": "中文", "ja": "日本語"}
CLOZE_LANGUAGES = ["en", "fr", "de", "es", "zh"]

NAMES = """Mary John Tom James Anna Peter Paul Lucy Kate David Sarah Michael Emma Jack Alice Bob Carol Dan Eve Frank
Grace Henry Ivan Jane Kevin Laura Simon Nina Oscar Rose Sam Tina Victor Wendy Adam Beth Carl Diana Eric Fiona George
Helen Ian Julia Karl Linda Martin Nora""".split()
PLACES = """store park station office museum library hospital restaurant market theater zoo harbor castle farm stadium
airport school beach church garden""".split()
OBJECTS = """drink ring ticket basket ball computer camera guitar phone hat watch coin necklace bone photo book flower
letter gift key""".split()
IOI_TEMPLATES = [
    "When {A} and {B} went to the {place} , {S} gave a {object} to",
    "Then , {A} and {B} went to the {place} . {S} gave a {object} to",
    "After {A} and {B} went to the {place} , {S} handed a {object} to",
    "While {A} and {B} were working at the {place} , {S} gave a {object} to",
    "Then , {A} and {B} had a long day at the {place} . {S} decided to give a {object} to",
    "Friends {A} and {B} found a {object} at the {place} . {S} gave it to",
]
EVENTS = """war siege reign journey feud strike drought festival project voyage dispute famine truce expedition campaign
trial plague dynasty rebellion tournament""".split()
CENTURIES = [f"{c:02d}" for c in range(11, 21)]
YEARS = [f"{y:02d}" for y in range(100)]
SVA_NOUNS = """key/keys cabinet/cabinets door/doors picture/pictures book/books letter/letters car/cars dog/dogs cat/cats
girl/girls boy/boys teacher/teachers student/students doctor/doctors author/authors guard/guards pilot/pilots
friend/friends neighbor/neighbors farmer/farmers lawyer/lawyers dancer/dancers horse/horses bird/birds tree/trees
flower/flowers house/houses garden/gardens bridge/bridges ship/ships clock/clocks report/reports program/programs
label/labels box/boxes road/roads river/rivers tower/towers window/windows table/tables""".split()
SVA_NOUNS = [tuple(n.split("/")) for n in SVA_NOUNS]
PREPOSITIONS = "to near behind beside of with above below".split()
ADJECTIVES = "old new famous nice broken strange small big beautiful expensive".split()
VERBS = [("is", "are"), ("was", "were")]
CAPITALS = """France Paris,Germany Berlin,Spain Madrid,Italy Rome,Japan Tokyo,China Beijing,Russia Moscow,England London,
Ireland Dublin,Portugal Lisbon,Greece Athens,Turkey Ankara,Egypt Cairo,Poland Warsaw,Austria Vienna,Hungary Budapest,
Sweden Stockholm,Norway Oslo,Finland Helsinki,Denmark Copenhagen,Belgium Brussels,Switzerland Bern,Romania Bucharest,
Bulgaria Sofia,Serbia Belgrade,Croatia Zagreb,Ukraine Kyiv,Canada Ottawa,Cuba Havana,Peru Lima,Chile Santiago,
Kenya Nairobi,Ghana Accra,Nigeria Abuja,Morocco Rabat,Algeria Algiers,Tunisia Tunis,Libya Tripoli,Iran Tehran,
Iraq Baghdad,Syria Damascus,Jordan Amman,Lebanon Beirut,Nepal Kathmandu,Thailand Bangkok,Vietnam Hanoi,
Indonesia Jakarta,Australia Canberra,Colombia Bogotá,Ecuador Quito,Uruguay Montevideo,Venezuela Caracas,
Iceland Reykjavik,Latvia Riga,Estonia Tallinn,Lithuania Vilnius,Czechia Prague,Slovakia Bratislava,
Slovenia Ljubljana,Albania Tirana,Armenia Yerevan,Uganda Kampala,Senegal Dakar,Angola Luanda,Zambia Lusaka,
Mali Bamako,Laos Vientiane,Mongolia Ulaanbaatar,Pakistan Islamabad,Bangladesh Dhaka"""
CAPITALS = [tuple(x.split()) for x in CAPITALS.replace("\n", "").split(",")]
CAPITAL_TEMPLATES = [  # (before the answer, after it, what the answer is)
    ("The capital of {X} is", ".", "Y"),
    ("The capital city of {X} is", ".", "Y"),
    ("{X} has its capital in", ".", "Y"),
    ("{N} lives in {X} and works in its capital ,", ".", "Y"),
    ("{Y} is the capital of", ".", "X"),
    ("{N} flew to {Y} , the capital of", ".", "X"),
]


def held_out(*key, share=10):
    """True for one key in `share`."""
    return int(hashlib.sha256("|".join(map(str, key)).encode()).hexdigest()[:8], 16) % share == 0


@dataclasses.dataclass
class Item:
    words: list      # the whole document, without <bos>
    weights: list    # weight of predicting words[i] in the training loss
    at: int          # words[at] is the answer; the prompt is words[:at]
    correct: list    # words that would be right there
    wrong: list      # words a model that has not understood would say
    key: str = ""    # what is held out
    corrupted: list | None = None  # a prompt of the same length whose right answers are `wrong`

    @property
    def prompt(self):
        return self.words[:self.at]


def item(prompt, answers, answer, tail, wrong, weight=1.0, key="", corrupted=None):
    words = prompt + [answer] + tail
    weights = [0.1] * len(words)
    weights[len(prompt)] = weight
    return Item(words, weights, len(prompt), answers, wrong, key, corrupted)


def ioi(rng, test):
    while True:
        a, b, c = rng.sample(NAMES, 3)
        if held_out("ioi", *sorted((a, b))) == test:
            break
    place, obj = rng.choice(PLACES), rng.choice(OBJECTS)
    template = rng.choice(IOI_TEMPLATES)

    def fill(s):
        return template.format(A=a, B=b, S=s, place=place, object=obj).split()

    if not test and rng.random() < 0.1:  # a third giver: either name is right, so the corrupted "ABC" prompts are not alien
        return item(fill(c), [a, b], rng.choice([a, b]), ["."], [c], 1.0)
    io, s = (a, b) if rng.random() < 0.5 else (b, a)
    return item(fill(s), [io], io, ["."], [s], 2.0, f"{a}/{b} {'ABBA' if s == b else 'BABA'}", fill(io))


def greater_than(rng, test):
    while True:
        event, century, y = rng.choice(EVENTS), rng.choice(CENTURIES), rng.randrange(2, 99)
        if held_out("gt", event, century, y) == test:
            break

    def fill(year):
        return f"The {event} lasted from the year {century} {year} to {century}".split()

    return item(fill(YEARS[y]), YEARS[y + 1:], rng.choice(YEARS[y + 1:]), ["."], YEARS[:y + 1], 1.0,
                f"{event} {century} {y:02d}", fill("02"))  # the earliest year in training


def induction(rng, test):
    """A random string, twice. Every string is new, so all of it is held out."""
    n = rng.randrange(4, 25)
    pool = list(vocabulary())[2:]
    first = [rng.choice(pool) for _ in range(n)]
    cut = n if not test else rng.randrange(1, n)
    words = first + first[:cut] + ([first[cut]] if test else [])
    weights = [0.0] * (n + 1) + [0.4] * (len(words) - n - 1)
    answer = words[-1]
    return Item(words, weights, len(words) - 1, [answer], [w for w in first if w != answer][:8], f"length {n}")


def agreement(rng, test):
    def noun(avoid=()):
        while True:
            n = rng.choice(SVA_NOUNS)
            if n not in avoid:
                return n

    while True:
        n1 = noun()
        n2 = noun((n1,))
        if held_out("sva", n1[0], n2[0]) == test:
            break
    n3 = noun((n1, n2))
    p, p2, p3 = rng.random() < 0.5, rng.random() < 0.5, rng.random() < 0.5
    if test:
        p2 = not p  # every held-out prompt has an attractor of the other number
    kind = rng.random()
    prep, prep2 = rng.choice(PREPOSITIONS), rng.choice(PREPOSITIONS)

    def fill(number):
        s = f"The {n1[number]}"
        if kind < 0.55:
            s += f" {prep} the {n2[p2]}"
        elif kind < 0.75:
            s += f" {prep} the {n2[p2]} {prep2} the {n3[p3]}"
        elif kind < 0.9 or test:
            s += f" that the {n2[p2]} {'like' if p2 else 'likes'}"
        return s.split()

    verb = VERBS[rng.random() < 0.4]
    return item(fill(p), [v[p] for v in VERBS], verb[p], [rng.choice(ADJECTIVES), "."], [v[not p] for v in VERBS], 1.0,
                f"{n1[0]}/{n2[0]}", fill(not p))


def direction_seen(k, x):
    """Whether training has country x in some template that asks for the same thing (capital or country) as template k."""
    return any(not held_out("capitals", j, x) for j, t in enumerate(CAPITAL_TEMPLATES) if t[2] == CAPITAL_TEMPLATES[k][2])


def capitals(rng, test, seen=True):
    while True:
        k, (x, y) = rng.randrange(len(CAPITAL_TEMPLATES)), rng.choice(CAPITALS)
        if held_out("capitals", k, x) == test and (not test or direction_seen(k, x) == seen):
            break
    x2, y2 = rng.choice([c for c in CAPITALS if c[0] != x])
    before, after, ask = CAPITAL_TEMPLATES[k]
    name = rng.choice(NAMES)

    def fill(x, y):
        return before.format(X=x, Y=y, N=name).split()

    answer, other = (y, y2) if ask == "Y" else (x, x2)
    return item(fill(x, y), [answer], answer, [after], [other], 1.0, f"{x} in template {k}", fill(x2, y2))


_words = {}


def word_table():
    """id -> {language: word} for the nouns of data/words/concepts.json."""
    if not _words:
        path = pathlib.Path(__file__).resolve().parent.parent / "words" / "concepts.json"
        for w in json.loads(path.read_text(encoding="utf-8"))["words"]:
            if w["kind"] == "noun":
                _words[w["id"]] = {code: w[code][0] for code in LANGUAGES}
    return _words


def translation(rng, test, shots=None, languages=None, query=None):
    """Up to four worked examples and a query; a held-out query is a word never translated between those two languages."""
    table = word_table()
    src, tgt = languages or rng.sample(list(LANGUAGES), 2)
    if shots is None:
        shots = 4 if test else rng.randrange(5)
    ids = rng.sample(sorted(table), len(table))
    train = [i for i in ids if not held_out("translation", i, src, tgt)]
    queries = [i for i in ids if held_out("translation", i, src, tgt) == test and i not in train[:shots]]
    if query is None:
        query = queries[0]
    train = [i for i in train if i != query]
    other = next(i for i in ids if i not in train[:shots] and i != query)
    return _shots([(table[i][src], table[i][tgt]) for i in train[:shots] + [query]], src, tgt, f"{query} {src}>{tgt}",
                  (table[other][src], table[other][tgt]))


def repetition(rng, test):
    table = word_table()
    lang = rng.choice(list(LANGUAGES))
    ids = rng.sample(sorted(table), 6)
    shots = 4 if test else rng.randrange(2, 5)
    words = [(table[i][lang],) * 2 for i in ids[:shots + 1]]
    return _shots(words, lang, lang, f"{ids[shots]} {lang}", (table[ids[5]][lang],) * 2)


def _shots(pairs, src, tgt, key, other):
    words, weights = [], []

    for a, b in pairs:
        words += [LANGUAGES[src], ":", '"', a, '"', "-", LANGUAGES[tgt], ":", '"', b, '"']
        weights += [0.1, 0.1, 0.1, 0.0, 0.1, 0.1, 0.1, 0.1, 0.1, 1.0, 0.1]
    at = len(words) - 2
    corrupted = words[:at - 6] + [other[0]] + words[at - 5:at]
    return Item(words, weights, at, [pairs[-1][1]], [other[1]], key, corrupted)


def spaced(text):
    """Sets punctuation apart with spaces; apostrophes stay inside their word."""
    return re.findall(r"[\w']+|[^\w\s]", text)


_cloze = {}


def cloze_table():
    """language -> [(id, words of the definition and of the answer's frame, answer)]."""
    if not _cloze:
        folder = pathlib.Path(__file__).resolve().parent.parent / "words"
        lines = (folder / "cloze.tsv").read_text(encoding="utf-8").splitlines()
        head = lines[0].split("\t")
        frame = {"en": "Answer :", "fr": "Réponse :", "de": "Antwort :", "es": "Respuesta :", "zh": "答案 ："}
        for code in CLOZE_LANGUAGES:
            _cloze[code] = [(row[0], spaced(row[head.index(code)]) + frame[code].split() + ['"'],
                             word_table()[row[0]][code]) for row in (l.split("\t") for l in lines[1:])]
    return _cloze


def cloze(rng, test):
    """One to three definitions with their answers. The definitions are facts, all seen; their order is new."""
    code = rng.choice(CLOZE_LANGUAGES)
    rows = rng.sample(cloze_table()[code], 3 if test else rng.randrange(1, 4))
    end = "。" if code == "zh" else "."
    words, weights = [], []
    for _, definition, answer in rows:
        words += definition + [answer, '"', end]
        weights += [0.05] * len(definition) + [1.0, 0.1, 0.1]
    other = rng.choice([r for r in cloze_table()[code] if r[2] != rows[-1][2]])
    return Item(words, weights, len(words) - 3, [rows[-1][2]], [other[2]], f"{rows[-1][0]} {code}")


# Further tests: forms that never occur in training, and translation with fewer examples (which does occur).

def ioi_new_template(rng, test=True):
    a, b = rng.sample(NAMES, 2)
    s, io = (a, b) if rng.random() < 0.5 else (b, a)
    text = f"After {a} and {b} found a {rng.choice(OBJECTS)} at the {rng.choice(PLACES)} , {s} decided to give it to"
    return item(text.split(), [io], io, ["."], [s])


def agreement_three_attractors(rng, test=True):
    n = rng.sample(SVA_NOUNS, 4)
    p = rng.random() < 0.5
    text = f"The {n[0][p]}" + "".join(f" {rng.choice(PREPOSITIONS)} the {x[not p]}" for x in n[1:])
    return item(text.split(), [v[p] for v in VERBS], VERBS[0][p], ["."], [v[not p] for v in VERBS])


def induction_long(rng, test=True):
    n = rng.randrange(30, 50)
    first = rng.sample(list(vocabulary())[2:], n)
    cut = rng.randrange(1, n)
    words = first + first[:cut + 1]
    return Item(words, [], len(words) - 1, [words[-1]], first[cut + 1:cut + 9] or first[:1])


def capitals_never_reversed(rng, test=True):
    """Countries that training never asks for, only their capitals (an accident of the hash, kept)."""
    return capitals(rng, True, seen=False)


def translation_one_shot(rng, test=True):
    return translation(rng, True, shots=1)


def translation_no_shot(rng, test=True):
    return translation(rng, True, shots=0)


BEYOND = {f.__name__: f for f in (ioi_new_template, agreement_three_attractors, induction_long, capitals_never_reversed,
                                  translation_one_shot, translation_no_shot)}

TASKS = {"ioi": ioi, "greater_than": greater_than, "induction": induction, "agreement": agreement,
         "capitals": capitals, "translation": translation, "repetition": repetition, "cloze": cloze}
# Share of the training *tokens* of each task, in the two phases of training, and a factor on the weight in the loss.
MIXTURES = {
    "first": {"ioi": 0.20, "greater_than": 0.10, "induction": 0.12, "agreement": 0.08, "capitals": 0.08,
              "translation": 0.32, "repetition": 0.03, "cloze": 0.07},
    "second": {"ioi": 0.12, "greater_than": 0.06, "induction": 0.25, "agreement": 0.05, "capitals": 0.12,
               "translation": 0.30, "repetition": 0.04, "cloze": 0.06},
}
FACTORS = {"first": {}, "second": {"induction": 2.5}}

_vocabulary = {}


def vocabulary():
    """word -> id; a closed list, in an order that depends on nothing but this file and the word lists."""
    if not _vocabulary:
        words = ["<bos>", "<unk>", ".", ",", '"', ":", "-", *YEARS, *NAMES, *PLACES, *OBJECTS, *EVENTS, *PREPOSITIONS,
                 *ADJECTIVES, "like", "likes", "that"]
        for v in VERBS:
            words += v
        for n in SVA_NOUNS:
            words += n
        for c in CAPITALS:
            words += c
        for t in IOI_TEMPLATES + [f"{b} {a}" for b, a, _ in CAPITAL_TEMPLATES] + ["The lasted from the year to"]:
            words += [x for x in t.split() if "{" not in x]
        words += LANGUAGES.values()
        for row in word_table().values():
            words += row.values()
        for rows in cloze_table().values():
            for _, definition, _ in rows:
                words += definition
        words.append("。")
        for w in words:
            _vocabulary.setdefault(w, len(_vocabulary))
    return _vocabulary
