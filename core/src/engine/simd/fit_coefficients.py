"""Fits the polynomials of functions.h (near-minimax, weighted least squares on Chebyshev nodes).

Run: python fit_coefficients.py   (needs mpmath). Prints C++ hexadecimal float constants, highest
power first. Coefficients are rounded to float one at a time, the rest being refitted each time.
"""

import mpmath as mp
import struct

mp.mp.dps = 40


def f32(x):
    return struct.unpack("f", struct.pack("f", float(x)))[0]


def fit(name, f, low, high, powers, weight):
    """f(t) ~ sum c_i t^powers[i] on [low, high], minimising the maximum of weight * error."""
    count = 200
    nodes = [(low + high) / 2 + (high - low) / 2 * mp.cos(mp.pi * (2 * i + 1) / (2 * count))
             for i in range(count)]
    fixed = {}
    lawson = [mp.mpf(1)] * count
    for step in range(len(powers) + 1):
        free = [p for p in powers if p not in fixed]
        if not free:
            break
        for _ in range(30 if step == 0 else 6):
            rows = mp.matrix(count, len(free))
            rhs = mp.matrix(count, 1)
            for i, t in enumerate(nodes):
                w = weight(t) * mp.sqrt(lawson[i])
                target = f(t) - sum(c * t**p for p, c in fixed.items())
                rhs[i] = w * target
                for j, p in enumerate(free):
                    rows[i, j] = w * t**p
            solution = mp.lu_solve(rows, rhs)
            errors = []
            for i, t in enumerate(nodes):
                value = sum(c * t**p for p, c in fixed.items())
                value += sum(solution[j] * t**p for j, p in enumerate(free))
                errors.append(abs(weight(t) * (value - f(t))))
            total = sum(lawson[i] * errors[i] for i in range(count))
            lawson = [lawson[i] * errors[i] / total * count for i in range(count)]
        fixed[free[0]] = mp.mpf(f32(solution[0]))
    print(f"{name}: weighted error {mp.nstr(max(errors), 3)}")
    for p in sorted(fixed, reverse=True):
        print(f"  {float(fixed[p]).hex()}f  // {mp.nstr(fixed[p], 9)} t^{p}")


one = lambda t: mp.mpf(1)
half_ln2 = mp.log(2) / 2
fit("exp: (e^t - 1 - t) / t^2", lambda t: (mp.exp(t) - 1 - t) / t**2,
    -half_ln2 * 1.001, half_ln2 * 1.001, [0, 1, 2, 3, 4], lambda t: t**2 / mp.exp(t))
fit("tanh: (tanh sqrt t / sqrt t - 1) / t", lambda t: (mp.tanh(mp.sqrt(t)) / mp.sqrt(t) - 1) / t,
    mp.mpf("1e-6"), mp.mpf("0.625")**2, [0, 1, 2, 3, 4, 5], lambda t: t)
fit("erf: erf sqrt t / sqrt t - 1", lambda t: mp.erf(mp.sqrt(t)) / mp.sqrt(t) - 1,
    mp.mpf("1e-6"), mp.mpf("0.93")**2, [0, 1, 2, 3, 4, 5], one)
fit("erf tail: log erfc t", lambda t: mp.log(mp.erfc(t)),
    mp.mpf("0.92"), mp.mpf("3.95"), [0, 1, 2, 3, 4, 5, 6, 7],
    lambda t: mp.erfc(t) / mp.erf(t) + mp.mpf("1e-10"))
