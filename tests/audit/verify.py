"""Checks an audit log with nothing but what docs/operate/audit-proof.md says, and no code of the proxy's.

usage: verify.py KEY CHECKPOINTS LINES

KEY is the verifier key as `portcullis audit key` prints it, CHECKPOINTS the store's file of
checkpoints or a witness's, LINES the records from 0 on, one a line. Ends with 0 if all holds, with
1 and a reason if not.
"""

import base64
import hashlib
import re
import sys

# Ed25519, as RFC 8032 section 6 has it. Slow, and enough for this.
P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P


def add(p, q):
    a = (p[1] - p[0]) * (q[1] - q[0]) % P
    b = (p[1] + p[0]) * (q[1] + q[0]) % P
    c = 2 * p[3] * q[3] * D % P
    d = 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return (e * f % P, g * h % P, f * g % P, e * h % P)


def times(n, p):
    q = (0, 1, 1, 0)
    while n > 0:
        if n & 1:
            q = add(q, p)
        p = add(p, p)
        n >>= 1
    return q


def point(octets):
    y = int.from_bytes(octets, "little")
    sign, y = y >> 255, y & ((1 << 255) - 1)
    x2 = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(x2, (P + 3) // 8, P)
    if (x * x - x2) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if y >= P or (x * x - x2) % P:
        raise ValueError("no point of the curve")
    if x & 1 != sign:
        x = P - x
    return (x, y, 1, x * y % P)


G_Y = 4 * pow(5, P - 2, P) % P
G = point(G_Y.to_bytes(32, "little"))


def is_signed(key, message, signature):
    try:
        a, r = point(key), point(signature[:32])
    except ValueError:
        return False
    s = int.from_bytes(signature[32:], "little")
    digest = hashlib.sha512(signature[:32] + key + message).digest()
    h = int.from_bytes(digest, "little") % L
    left, right = times(s, G), add(r, times(h, a))
    same = (left[0] * right[2] - right[0] * left[2]) % P == 0
    return s < L and same and (left[1] * right[2] - right[1] * left[2]) % P == 0


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def fail(why):
    sys.exit(f"not verified: {why}")


def checkpoints(text, key):
    """The checkpoints of a file, each held against the key and the one before it."""
    name, key_hash, secret = key.split("+", 2)
    public = base64.b64decode(secret)
    key_id = sha256(name.encode(), b"\n", public)[:4]
    if key_id.hex() != key_hash or public[0] != 1:
        fail("the key is none")
    before, found = bytes(32), []
    blocks = text.split("\n\n")
    if blocks.pop() != "" or len(blocks) % 2:
        fail("the file of checkpoints is cut or damaged")
    for body, signatures in zip(blocks[::2], blocks[1::2]):
        body += "\n"
        lines = re.fullmatch(
            r"(.+)\n(\d+)\n(.+)\nnumber (\d+)\nbefore (.+)\nlast (.+)\ntime (.+)\nnext (\d+) (\d+)\n"
            r"digest-key (.+)\nstore (.+)\nverifiers (.+)\n",
            body,
        )
        if not lines or lines[1] != name:
            fail("a checkpoint is not of this log")
        number = int(lines[4])
        signed = [
            base64.b64decode(line.split(" ")[2])
            for line in signatures.split("\n")
            if line.startswith(f"\u2014 {name} ")
        ]
        if not any(s[:4] == key_id and is_signed(public[1:], body.encode(), s[4:]) for s in signed):
            fail(f"checkpoint {number} is not signed by the key")
        if number != len(found) or lines[5] != before.hex():
            fail(f"checkpoint {number} does not follow the one before it")
        before = sha256(body.encode())
        found.append((int(lines[2]), base64.b64decode(lines[3]), number))
    return found


def root(peaks):
    """RFC 9162 section 2.1.1, of the roots of the perfect trees that the tree is made of."""
    if not peaks:
        return sha256()
    found = peaks[-1][1]
    for _, left in reversed(peaks[:-1]):
        found = sha256(b"\x01", left, found)
    return found


def main():
    key, notes, records = sys.argv[1:]
    with open(notes, encoding="utf-8", newline="") as file:
        signed = sorted(checkpoints(file.read(), key))
    head = re.compile(
        rb'\{"v":1,"seq":(\d+),"recorded":"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z)",'
        rb'"prev":"([0-9a-f]{64})",'
    )
    peaks, prev, recorded, seq = [], bytes(32), b"", 0

    def check():
        while signed and signed[0][0] == seq:
            _, expected, number = signed.pop(0)
            if root(peaks) != expected:
                fail(f"the first {seq} records are not those of checkpoint {number}")

    check()
    with open(records, "rb") as file:
        for line in file:
            line = line.removesuffix(b"\n")
            found = head.match(line)
            if not found or int(found[1]) != seq:
                fail(f"record {seq} is not there")
            if bytes.fromhex(found[3].decode()) != prev:
                fail(f"record {seq} does not name the one before it")
            if found[2] < recorded:
                fail(f"record {seq} is older than the one before it")
            recorded, prev = found[2], sha256(b"\x00", line)
            peaks.append((1, prev))
            while len(peaks) > 1 and peaks[-1][0] == peaks[-2][0]:
                size, right = peaks.pop()
                _, left = peaks.pop()
                peaks.append((2 * size, sha256(b"\x01", left, right)))
            seq += 1
            check()
    if signed:
        fail(f"the log ends at record {seq}, and {signed[-1][0]} were signed")
    print(f"verified: {seq} records")


main()
