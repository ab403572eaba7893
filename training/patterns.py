"""The 44 surface patterns, one numba function.

A pattern does not know colours.  It answers four numbers for a point: how much of the second and of the third palette
colour covers the first (a, b), a multiplicative shade, and a gloss in [0, 1].  Palettes live in `vocabulary`.
One unit of texture space is one feature of the pattern (a brick course, a tile, a knit stitch), so that the scene
sampler can keep features wide enough to survive at 64 pixels.
"""

from __future__ import annotations

import math

from pipeline.core.jit import njit
from training.noise import fbm, hash3, smooth, value, worley2, worley3

#: Order is the pattern id. Append only: cached shards store these numbers.
PATTERNS = (
    "plastic", "brick", "wood", "planks", "marble", "stone", "cobblestone", "moss", "grass", "rust", "gold",
    "metal", "copper", "lava", "checker", "stripes", "dots", "knit", "denim", "scales", "camouflage", "ice",
    "snow", "sand", "leather", "giraffe", "leopard", "zebra", "tiger", "clouds", "water", "tiles", "plaid", "fur",
    "earth", "granite", "crystal", "bark", "straw", "leaves", "galaxy", "cheese", "honeycomb", "wicker",
)  # fmt: skip


@njit(cache=True, fastmath=True, nogil=True)
def _metal(nx: float, ny: float, nz: float, wobble: float):
    """Fake reflection of a bright sky over a dark floor: (mid tone, highlight), from the normal alone."""
    e = 0.5 + 0.5 * math.sin(2.6 * ny + 1.3 * nx + 0.9 * nz + 3.0 * wobble - 1.5)
    return smooth(0.1, 0.85, e), smooth(0.86, 1.0, e)


@njit(cache=True, fastmath=True, nogil=True)
def pattern(kind: int, x: float, y: float, z: float, u: float, v: float, nx: float, ny: float, nz: float, seed: int):
    """Evaluate pattern `kind` at solid coordinates x y z and box-mapped coordinates u v (both in features).

    Returns (a, b, shade, gloss): palette weights in [0, 1], multiplicative shade around 1, gloss in [0, 1].
    """
    a, b, s, g = 0.0, 0.0, 1.0, 0.0
    if kind == 0:  # plastic: smooth, glossy
        s = 0.97 + 0.06 * value(x * 0.6, y * 0.6, z * 0.6, seed)
        g = 0.8
    elif kind == 1:  # brick: courses with light mortar
        row = math.floor(v)
        uu = u / 2.5 + 0.5 * (int(row) & 1)
        col = math.floor(uu)
        fv, fu = v - row, (uu - col) * 2.5
        d = min(min(fv, 1 - fv), min(fu, 2.5 - fu))
        a = 1.0 - smooth(0.08, 0.16, d)
        s = 0.76 + 0.36 * hash3(int(row), int(col), 3, seed) + 0.14 * (value(x * 4, y * 4, z * 4, seed) - 0.5)
        s = s * (1 - a) + a
    elif kind == 2:  # wood: long wavy rings and fine grain along y
        w = value(x * 0.5, y * 0.1, z * 0.5, seed)
        r = 1.3 * x + 0.8 * z + 4.0 * w + 0.5 * value(x * 1.5, y * 0.3, z * 1.5, seed + 3)
        f = r - math.floor(r)
        a = smooth(0.1, 0.75, f) * (1.0 - smooth(0.85, 1.0, f))
        s = 0.86 + 0.28 * value(x * 6, y * 0.5, z * 6, seed + 5)
    elif kind == 3:  # planks: boards with dark gaps
        row = math.floor(v)
        h = hash3(int(row), 5, 1, seed)
        uu = u / 6.0 + h
        col = math.floor(uu)
        fv, fu = v - row, (uu - col) * 6.0
        d = min(min(fv, 1 - fv), min(fu, 6.0 - fu))
        b = 1.0 - smooth(0.05, 0.12, d)
        k = hash3(int(row), int(col), 2, seed)
        grain = value(u * 0.6 + 31 * k, v * 5.0, k * 50, seed)
        a = smooth(0.45, 0.8, grain) * 0.75
        s = 0.72 + 0.5 * k
    elif kind == 4:  # marble: sharp veins over soft clouds
        wx = value(x * 0.7, y * 0.7, z * 0.7, seed + 1) * 2.2
        wy = value(x * 0.7 + 7, y * 0.7, z * 0.7, seed + 2) * 2.2
        n = value(x * 0.42 + wx, y * 0.42 + wy, z * 0.42 + wx, seed)
        n2 = value(x * 0.9 + wy, y * 0.9 + wx, z * 0.9, seed + 9)
        # Veins fade in and out, else they close into worm-like rings.
        fade = smooth(0.3, 0.65, value(x * 0.6, y * 0.6, z * 0.6, seed + 6))
        a = max(
            (1.0 - smooth(0.03, 0.17, abs(n - 0.5))) * (0.5 + 0.5 * fade),
            0.8 * (1.0 - smooth(0.01, 0.1, abs(n2 - 0.5))) * (1.0 - fade),
        )
        b = 0.45 * smooth(0.45, 0.85, value(x * 0.5 + wx, y * 0.5, z * 0.5 + wy, seed + 4))
        g = 0.5
    elif kind == 5:  # stone: rough, blotched
        n = fbm(x * 0.9, y * 0.9, z * 0.9, 4, seed)
        f1, f2, c = worley3(x * 0.5 + n * 0.5, y * 0.5, z * 0.5 + n * 0.3, 0.9, seed + 2)
        crack = 1.0 - smooth(0.02, 0.11, f2 - f1)
        a = smooth(0.3, 0.6, c)
        b = 0.85 * crack
        # Grain that no other material has: what tells a rock from marble and ice where no crack is in sight.
        s = 0.62 + 0.45 * n + 0.55 * (value(x * 3.4, y * 3.4, z * 3.4, seed + 5) - 0.5)
        s = s * (1 - b) + b
    elif kind == 6:  # cobblestone: round stones, dark gaps
        f1, f2, c = worley2(u, v, 0.75, seed)
        a = 1.0 - smooth(0.07, 0.22, f2 - f1)
        s = (0.66 + 0.5 * c) * (1.18 - 0.5 * f1) * (0.92 + 0.16 * value(x * 4, y * 4, z * 4, seed))
        s = s * (1 - a) + a
    elif kind == 7:  # moss: fluffy clumps
        n = value(x * 2.4, y * 2.4, z * 2.4, seed)
        c = fbm(x * 0.9, y * 0.9, z * 0.9, 2, seed + 4)
        a = smooth(0.35, 0.7, c)
        b = smooth(0.72, 0.9, n) * 0.7
        s = 0.45 + 0.95 * n
    elif kind == 8:  # grass: rows of pointed blades, each row before the one above it
        s = 0.42  # between the blades
        for k in range(3):
            row = math.floor(v * 0.9) - 2 + k
            q = u * 1.5 + 0.37 * row + 0.5 * value(u * 0.5, row * 1.0, 3.0, seed + 6)
            col = math.floor(q)
            h = hash3(int(col), int(row), 4, seed)
            f = (v * 0.9 - row - 0.3 * h) / 2.1  # 0 at the root, 1 at the tip
            w = abs(q - col - 0.5 - 0.3 * (h - 0.5) * f)
            if 0.0 <= f < 1.0 and w < 0.52 * (1.0 - f):
                a = smooth(0.25, 0.95, f)
                b = (1.0 if h > 0.75 else 0.0) * 0.6
                s = 0.42 + 0.6 * f + 0.25 * h
    elif kind == 9:  # rust: orange crust, dark pits, bare metal
        n = fbm(x * 0.8, y * 0.8, z * 0.8, 4, seed)
        a = smooth(0.45, 0.57, n)
        b = smooth(0.6, 0.66, fbm(x * 0.55 + 9, y * 0.55, z * 0.55, 3, seed + 5)) * 0.9
        s = 0.7 + 0.6 * value(x * 4, y * 4, z * 4, seed + 3)
    elif kind == 10:  # gold: hammered, each dent dark above and with a light below
        f1, f2, c = worley3(x * 1.25, y * 1.25, z * 1.25, 0.6, seed)
        g1, _, _ = worley3(x * 1.25, y * 1.25 + 0.12, z * 1.25, 0.6, seed)
        up = (g1 - f1) / 0.12  # 1 above the middle of a dent, -1 below
        a = 1.0 - smooth(-0.7, 0.75, up)
        b = (1.0 - smooth(-0.75, -0.25, up)) * smooth(0.12, 0.3, f1)
        s = 0.9 + 0.2 * c
        g = 0.5
    elif kind == 11:  # metal: brushed
        w = value(x * 0.4, y * 0.4, z * 0.4, seed)
        a, b = _metal(nx, ny, nz, 0.7 * w)
        b *= 0.7
        s = 0.45 + 1.0 * value(u * 0.25, v * 2.6, 3.0, seed + 2)
        g = 0.4
    elif kind == 12:  # copper: polished with green patina
        w = value(x * 0.9, y * 0.9, z * 0.9, seed)
        a, h = _metal(nx, ny, nz, w)
        n = fbm(x * 0.95, y * 0.95, z * 0.95, 3, seed + 3)
        b = smooth(0.5, 0.58, n)
        s = 1.0 + 0.5 * h * (1 - b)
        g = 0.5 * (1 - b)
    elif kind == 13:  # lava: black crust, glowing cracks
        n = value(x * 0.9, y * 0.9, z * 0.9, seed + 7) * 0.8
        f1, f2, c = worley3(x * 0.75 + n, y * 0.75 + n, z * 0.75, 1.0, seed)
        e = f2 - f1
        a = 1.0 - smooth(0.05, 0.24, e)
        b = 1.0 - smooth(0.0, 0.10, e)
        s = (0.75 + 0.7 * value(x * 3, y * 3, z * 3, seed)) * (1 - a) + 1.12 * a
    elif kind == 14:  # checker
        a = float((math.floor(u) + math.floor(v)) & 1)
        g = 0.3
    elif kind == 15:  # stripes
        f = v * 0.5 - math.floor(v * 0.5)
        a = smooth(0.0, 0.03, f) * (1.0 - smooth(0.5, 0.53, f))
    elif kind == 16:  # polka dots on a staggered grid
        vv = v / 1.3
        row = math.floor(vv)
        uu = u / 1.5 + 0.5 * (int(row) & 1)
        du, dv = (uu - math.floor(uu) - 0.5) * 1.5, (vv - row - 0.5) * 1.3
        a = 1.0 - smooth(0.36, 0.42, math.sqrt(du * du + dv * dv))
    elif kind == 17:  # knit: columns of V stitches
        col = math.floor(u)
        fu = u - col
        side = fu if fu < 0.5 else 1.0 - fu
        r = v / 0.75 - side * 1.5
        f = r - math.floor(r)
        s = 0.5 + 0.62 * math.sin(math.pi * f) ** 0.6 * smooth(0.0, 0.16, side)
        s *= 0.95 + 0.1 * value(u * 6, v * 6, 1.0, seed)
        a = 0.0
    elif kind == 18:  # denim: twill, fading, stitched seams
        r = (u * 2.2 + v * 2.2) - math.floor(u * 2.2 + v * 2.2)
        n = fbm(x * 0.45, y * 0.45, z * 0.45, 2, seed)
        a = 0.55 * smooth(0.45, 0.8, n) + 0.35 * smooth(0.4, 0.6, r) * (1 - smooth(0.85, 1.0, r))
        m = u / 6.0 + 0.3
        f = (m - math.floor(m)) * 6.0
        dash = v * 1.6 - math.floor(v * 1.6)
        line = 1.0 - smooth(0.09, 0.15, abs(f - 3.0))
        b = line * (1.0 if dash < 0.68 else 0.0)
        s = 0.86 + 0.28 * value(u * 5, v * 5, 1.0, seed + 3)
        s *= 1.0 - 0.35 * (1.0 - smooth(0.0, 0.18, abs(f - 3.35)))
    elif kind == 19:  # scales: overlapping rounded rows
        d = 9.0
        h = 0.0
        for k in range(3):
            row = math.floor(v / 0.7) + 1 - k
            uu = u + 0.5 * (int(row) & 1)
            col = math.floor(uu)
            du, dv = uu - col - 0.5, v - row * 0.7
            r = math.sqrt(du * du + dv * dv)
            # Rows overlap downwards: the first row above the point that covers it wins.
            if (dv <= 0.0 and r < 0.72 and k == 0) or (d == 9.0 and r < 0.72):
                d = r
                h = hash3(int(row), int(col), 9, seed)
        if d > 1.0:
            d = 0.72
        a = smooth(0.55, 0.68, d)
        b = 0.6 * (1.0 - smooth(0.0, 0.3, d))
        s = (0.82 + 0.28 * h) * (1.12 - 0.4 * d)
        g = 0.4
    elif kind == 20:  # camouflage: three hard-edged blotches
        n1 = fbm(x * 0.5, y * 0.5, z * 0.5, 2, seed)
        n2 = fbm(x * 0.5 + 20, y * 0.5, z * 0.5, 2, seed + 3)
        n3 = fbm(x * 0.6, y * 0.6 + 20, z * 0.6, 2, seed + 6)
        a = smooth(0.5, 0.53, n1)
        b = smooth(0.56, 0.59, n2)
        if n3 > 0.64:
            s = 0.4
    elif kind == 21:  # ice: pale, white cracks, blue depth
        n = value(x * 0.8, y * 0.8, z * 0.8, seed + 3)
        f1, f2, c = worley3(x * 0.72 + n * 0.5, y * 0.72, z * 0.72 + n * 0.4, 1.0, seed)
        a = 1.0 - smooth(0.01, 0.12, f2 - f1)
        b = 0.9 * smooth(0.38, 0.62, fbm(x * 0.6, y * 0.6, z * 0.6, 3, seed + 5))
        s = 0.92 + 0.16 * c
        g = 0.9
    elif kind == 22:  # snow: soft lumps, blue hollows, sparkle
        n = fbm(x * 1.1, y * 1.1, z * 1.1, 3, seed)
        b = 1.0 - smooth(0.36, 0.56, n)
        s = 0.94 + 0.12 * value(x * 5, y * 5, z * 5, seed + 2)
        a = 1.0 - smooth(0.03, 0.08, worley3(x * 2, y * 2, z * 2, 1.0, seed + 4)[0])
    elif kind == 23:  # sand: wind ripples and grains
        r = v * 1.0 + 1.6 * value(x * 0.5, y * 0.5, z * 0.5, seed) + 0.3 * value(u * 1.5, v * 1.5, 1.0, seed + 1)
        f = 0.5 + 0.5 * math.sin(r * 2 * math.pi)
        a = smooth(0.2, 0.9, f)
        s = 0.86 + 0.3 * hash3(math.floor(u * 9), math.floor(v * 9), 1, seed)
    elif kind == 24:  # leather: pebbled, creased
        f1, f2, c = worley3(x * 1.35, y * 1.35, z * 1.35, 0.9, seed)
        n = fbm(x * 0.5, y * 0.5, z * 0.5, 2, seed + 3)
        a = 0.9 * (1.0 - smooth(0.02, 0.24, f2 - f1))
        b = 0.6 * smooth(0.5, 0.85, n)
        s = 0.88 + 0.2 * c
        g = 0.5
    elif kind == 25:  # giraffe: brown patches, cream net
        n = 0.35 * value(x * 1.2, y * 1.2, z * 1.2, seed + 3)
        f1, f2, c = worley3(x * 0.8 + n, y * 0.8 + n, z * 0.8, 0.85, seed)
        a = smooth(0.10, 0.19, f2 - f1)
        s = 1.0 - a * (0.25 * (1 - c) + 0.3 * (0.5 - min(f1, 0.5)))
    elif kind == 26:  # leopard: broken dark rings
        f1, f2, c = worley3(x, y, z, 0.65, seed)
        n = value(x * 2.6, y * 2.6, z * 2.6, seed + 3)
        r = f1 + 0.22 * (n - 0.5)
        ring = smooth(0.17, 0.22, r) * (1.0 - smooth(0.38, 0.43, r))
        b = ring * smooth(0.25, 0.36, n)
        a = 0.75 * (1.0 - smooth(0.15, 0.25, r))
        s = 0.95 + 0.1 * value(x * 5, y * 5, z * 5, seed)
    elif kind == 27:  # zebra
        w = 1.3 * value(x * 0.4, y * 0.4, z * 0.4, seed) + 0.35 * value(x * 1.2, y * 1.2, z * 1.2, seed + 2)
        e = math.sin((u * 0.8 + v * 0.25 + w) * math.pi)
        a = smooth(-0.1, 0.12, e)
    elif kind == 28:  # tiger: tapering black bands
        w = 1.8 * value(x * 0.5, y * 0.5, z * 0.5, seed) + 0.5 * value(x * 1.5, y * 1.5, z * 1.5, seed + 2)
        e = math.sin((v * 0.8 + w) * math.pi)
        taper = 0.75 * value(u * 0.45, v * 0.8, 4.0, seed + 5) + 0.1
        a = smooth(0.0, 0.12, e - taper)
        b = 0.75 * smooth(0.2, 0.8, -ny) + 0.25 * smooth(0.6, 0.8, value(x * 0.6, y * 0.6, z * 0.6, seed + 8))
        b *= 1 - a
        s = 0.93 + 0.14 * value(x * 5, y * 2, z * 5, seed)
    elif kind == 29:  # clouds
        n = fbm(x * 0.55, y * 0.75, z * 0.55, 4, seed)
        a = smooth(0.42, 0.6, n)
        b = 0.3 * smooth(0.72, 0.95, n)
    elif kind == 30:  # water: bright caustic net
        n = value(x * 0.9, y * 0.9, z * 0.9, seed + 3)
        f1, f2, c = worley3(x * 0.8 + 0.6 * n, y * 0.8 - 0.6 * n, z * 0.8, 1.0, seed)
        a = (1.0 - smooth(0.0, 0.2, f2 - f1)) * 0.9
        b = 0.6 * smooth(0.4, 0.75, value(x * 0.4, y * 0.4, z * 0.4, seed + 6))
        g = 0.8
    elif kind == 31:  # tiles: square, grouted
        iu, iv = math.floor(u), math.floor(v)
        d = min(min(u - iu, 1 - u + iu), min(v - iv, 1 - v + iv))
        a = 1.0 - smooth(0.05, 0.11, d)
        h = hash3(int(iu), int(iv), 2, seed)
        s = (0.72 + 0.5 * h) * (1 - a) + a
        b = (1.0 if h > 0.62 else 0.0) * (1 - a) * 0.8
        g = 0.6
    elif kind == 32:  # plaid
        fu, fv = u * 0.5 - math.floor(u * 0.5), v * 0.5 - math.floor(v * 0.5)
        bu = 1.0 if fu < 0.45 else 0.0
        bv = 1.0 if fv < 0.45 else 0.0
        a = 0.5 * bu + 0.5 * bv
        lu = 1.0 if abs(fu - 0.72) < 0.055 else 0.0
        lv = 1.0 if abs(fv - 0.72) < 0.055 else 0.0
        b = max(lu, lv) * 0.85
    elif kind == 33:  # fur: hanging tufts of strands, their tips over the dark roots of those below
        n = value(x * 0.6, y * 0.6, z * 0.6, seed + 2)
        q = u * 1.25 + 0.5 * n
        col = math.floor(q)
        h = hash3(int(col), 3, 5, seed)
        r = v * 0.7 + 0.8 * h - 0.9 * abs(q - col - 0.5) + 0.4 * n
        f = r - math.floor(r)  # 0 at the tips, 1 at the roots
        strand = smooth(0.25, 0.75, value(u * 3.2 + 1.6 * n, v * 0.5, 2.0, seed))
        a = 0.9 * strand * (1.0 - smooth(0.35, 0.9, f))
        b = 0.8 * smooth(0.5, 1.0, f)
        s = (0.62 + 0.5 * strand) * (1.08 - 0.5 * smooth(0.4, 1.0, f))
    elif kind == 34:  # earth: dry mud plates
        n = 0.25 * value(x * 2, y * 2, z * 2, seed + 3)
        f1, f2, c = worley2(u * 0.7 + n, v * 0.7 + n, 1.0, seed)
        a = 1.0 - smooth(0.03, 0.1, f2 - f1)
        b = 0.6 * c
        s = 0.85 + 0.25 * fbm(x * 2, y * 2, z * 2, 2, seed + 1)
    elif kind == 35:  # granite: speckles
        f1, f2, c = worley3(x * 2.0, y * 2.0, z * 2.0, 1.0, seed)
        a = 1.0 if c < 0.3 else 0.0
        b = 1.0 if c > 0.68 else 0.0
        s = 0.86 + 0.28 * ((c * 71.7) % 1.0)
        g = 0.4
    elif kind == 36:  # crystal: flat facets with bright edges
        f1, f2, c = worley3(x * 0.8, y * 0.8, z * 0.8, 1.0, seed)
        a = 1.0 - smooth(0.0, 0.07, f2 - f1)
        b = 1.0 if c > 0.75 else 0.0
        b *= 0.6
        s = 0.5 + 0.8 * c
        g = 1.0
    elif kind == 37:  # bark: upright ridges, dark furrows
        w = 0.7 * value(x * 0.6, y * 0.5, z * 0.6, seed + 4)
        n = value((x + w) * 1.7, y * 0.45, (z + w) * 1.7, seed)
        r = abs(n - 0.5) * 2
        a = 1.0 - smooth(0.08, 0.3, r)
        b = 0.5 * smooth(0.6, 0.9, r)
        s = 0.75 + 0.45 * value(x * 4, y * 1.5, z * 4, seed + 3)
    elif kind == 38:  # straw: crossing thin stalks
        k = 0.0
        top = 0.0
        for i in range(3):
            t = 0.35 * (i - 1) + 0.15 * (value(u * 0.3, v * 0.3, i * 5.0, seed) - 0.5)
            q = u * math.cos(t) + v * math.sin(t)
            w = v * math.cos(t) - u * math.sin(t)
            col = math.floor(q * 2.6 + i * 0.37)
            f = q * 2.6 + i * 0.37 - col
            h = hash3(int(col), math.floor(w * 0.45 + hash3(int(col), i, 2, seed)), i, seed)
            if h > 0.3:
                k = h
                top = math.sin(math.pi * f)
        a = smooth(0.75, 0.95, k)
        b = 1.0 - smooth(0.0, 0.35, top)
        b *= 0.8
        s = 0.7 + 0.4 * k
    elif kind == 39:  # leaves: overlapping, ribbed
        f1, f2, c = worley2(u * 0.95, v * 0.95, 0.9, seed)
        g1, g2, c2 = worley2(u * 0.95 + 5.3, v * 0.95 + 2.1, 0.9, seed + 5)
        if g1 < 0.36:
            f1, f2, c = g1, g2, c2
            a = smooth(0.28, 0.36, f1)
        else:
            a = 1.0 - smooth(0.02, 0.16, f2 - f1)
        b = smooth(0.7, 0.9, c) * 0.6
        s = (0.62 + 0.6 * c) * (1.15 - 0.5 * f1)
    elif kind == 40:  # galaxy: nebula and stars
        n = fbm(x * 0.5, y * 0.5, z * 0.5, 3, seed)
        a = smooth(0.45, 0.85, n)
        f1, f2, c = worley2(u * 1.1, v * 1.1, 0.9, seed + 3)
        b = (1.0 - smooth(0.05 + 0.1 * c, 0.12 + 0.12 * c, f1)) * (1.0 if c > 0.3 else 0.0)
    elif kind == 41:  # cheese: round holes
        f1, f2, c = worley3(x * 0.75, y * 0.75, z * 0.75, 0.8, seed)
        r = 0.18 + 0.2 * c
        a = 1.0 - smooth(r, r + 0.05, f1)
        b = smooth(r * 0.5, r, f1) * a * 0.4
        s = 0.97 + 0.06 * value(x * 2, y * 2, z * 2, seed)
    elif kind == 42:  # honeycomb
        q = u / 1.0
        w = v / 1.732
        au, av = q - math.floor(q) - 0.5, (w - math.floor(w) - 0.5) * 1.732
        q2, w2 = q + 0.5, w + 0.5
        bu, bv = q2 - math.floor(q2) - 0.5, (w2 - math.floor(w2) - 0.5) * 1.732
        ida, idb = (
            math.floor(q) * 7 + math.floor(w) * 2,
            math.floor(q2) * 7 + math.floor(w2) * 2 + 1,
        )
        if au * au + av * av > bu * bu + bv * bv:
            au, av, ida = bu, bv, idb
        d = max(abs(au), abs(au) * 0.5 + abs(av) * 0.866)
        a = smooth(0.37, 0.43, d)
        h = hash3(ida, 3, 3, seed)
        s = (0.62 + 0.5 * h + 0.35 * (0.5 - d)) * (1 - a) + a
        b = 0.7 * (1.0 if h > 0.7 else 0.0) * (1 - a)
        g = 0.4
    else:  # wicker: basket weave
        iu, iv = math.floor(u), math.floor(v)
        fu, fv = u - iu, v - iv
        if (int(iu) + int(iv)) & 1:
            fu, fv = fv, fu
        s = (0.55 + 0.55 * math.sin(math.pi * fu)) * (0.72 + 0.4 * math.sin(math.pi * fv) ** 0.5)
        d = min(fv, 1 - fv)
        a = 1.0 - smooth(0.03, 0.14, d)
        f3 = fv * 3.0 - math.floor(fv * 3.0)
        s *= 0.84 + 0.2 * math.sin(math.pi * f3)
    return a, b, s, g
