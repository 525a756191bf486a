"""Independent reference of the envelope format, docs/envelope-format.md (needs the `cryptography` package).

    python3 envelope_ref.py            print tests/vectors/envelope.json from fixed inputs, and run the negative cases
    python3 envelope_ref.py open-wrapped  MASTER_HEX TENANT DEK_VERSION WRAPPED_HEX
    python3 envelope_ref.py open-secret   DEK_HEX TENANT NAME DEK_VERSION SECRET_VERSION BLOB_HEX

A blob of `-` is read from standard input: the longest secret is more than one argument may hold. It shares no code with the product, so a blob that both of them open was made to the written format.
"""
import hashlib, hmac, json, os, struct, sys
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

P = "containarium/v2/"
FORMAT, SUITE = 2, 1
WRAPPED_LEN, SECRET_OVERHEAD = 132, 96


class Malformed(Exception):
    """Wrong length, version, suite, type or reserved byte, or a header that is not the row's."""


class WrongMaster(Exception):
    """The wrapped DEK names another master key."""


class NotCommitted(Exception):
    """The commitment does not match: wrong key, or the blob was moved to another tenant, name or version."""


class Corrupted(Exception):
    """The AES-GCM tag does not match."""


def lp(b):
    return struct.pack(">I", len(b)) + b


def hkdf(ikm, salt, info, n):
    return HKDF(hashes.SHA256(), n, salt, info).derive(ikm)


def label(name):
    return lp((P + name).encode())


def master_kid(master):
    return hkdf(master, None, label("master/kid"), 16)


def master_kek(master):
    return hkdf(master, None, label("master/kek"), 32)


def derive_dek(entropy, tenant, dek_version):
    return hkdf(entropy, None, label("dek") + lp(tenant) + struct.pack(">I", dek_version), 32)


def dek_id(dek):
    return hkdf(dek, None, label("dek/id"), 16)


def message_keys(key, salt, info):
    okm = hkdf(key, salt, info, 76)
    return okm[:32], okm[32:64], okm[64:76]  # commitment, AES-256 key, nonce


def seal(key, header, salt, info, plaintext):
    commitment, aes, nonce = message_keys(key, salt, info)
    return header + salt + commitment + AESGCM(aes).encrypt(nonce, plaintext, info)


def open_(key, header_len, blob, info):
    salt, commitment = blob[header_len:header_len + 32], blob[header_len + 32:header_len + 64]
    want, aes, nonce = message_keys(key, salt, info)
    if not hmac.compare_digest(want, commitment):
        raise NotCommitted
    try:
        return AESGCM(aes).decrypt(nonce, blob[header_len + 64:], info)
    except InvalidTag:
        raise Corrupted from None


def wrap_dek(master, tenant, dek_version, dek, salt=None):
    salt = salt or os.urandom(32)
    header = bytes([FORMAT, SUITE, ord("W"), 0]) + master_kid(master)
    info = label("wrap") + header + lp(tenant) + struct.pack(">I", dek_version)
    return seal(master_kek(master), header, salt, info, dek)


def unwrap_dek(master, tenant, dek_version, blob):
    if len(blob) != WRAPPED_LEN or blob[:4] != bytes([FORMAT, SUITE, ord("W"), 0]):
        raise Malformed
    if blob[4:20] != master_kid(master):
        raise WrongMaster
    info = label("wrap") + blob[:20] + lp(tenant) + struct.pack(">I", dek_version)
    return open_(master_kek(master), 20, blob, info)


def seal_secret(dek, tenant, name, dek_version, secret_version, value, salt=None):
    salt = salt or os.urandom(32)
    header = bytes([FORMAT, SUITE, ord("S"), 0]) + struct.pack(">IQ", dek_version, secret_version)
    info = label("secret") + header + lp(tenant) + lp(name)
    return seal(dek, header, salt, info, value)


def open_secret(dek, tenant, name, dek_version, secret_version, blob):
    if len(blob) < SECRET_OVERHEAD or blob[:4] != bytes([FORMAT, SUITE, ord("S"), 0]):
        raise Malformed
    if blob[4:16] != struct.pack(">IQ", dek_version, secret_version):
        raise Malformed
    info = label("secret") + blob[:16] + lp(tenant) + lp(name)
    return open_(dek, 16, blob, info)


def open_v1(master, username, name, nonce, ciphertext):
    """A row of the v1 `secrets` table: AES-256-GCM directly under the master key."""
    return AESGCM(master).decrypt(nonce, ciphertext, username + b"\0" + name)


def vectors():
    m1, m2 = bytes(range(32)), bytes(range(32, 64))
    entropy, salt = bytes(range(64, 96)), b"\xa5" * 32
    tenant, name, value = b"alice", b"OPENAI_API_KEY", b"sk-test-0001"
    dek = derive_dek(entropy, tenant, 1)
    nonce = bytes(range(12))
    return {
        "master": m1.hex(), "master_2": m2.hex(), "entropy": entropy.hex(), "salt": salt.hex(),
        "tenant": tenant.decode(), "name": name.decode(), "value": value.decode(),
        "kid": master_kid(m1).hex(), "kid_2": master_kid(m2).hex(), "kek": master_kek(m1).hex(),
        "dek": dek.hex(), "dek_id": dek_id(dek).hex(),
        "wrapped": wrap_dek(m1, tenant, 1, dek, salt).hex(),
        "wrapped_2": wrap_dek(m2, tenant, 1, dek, salt).hex(),
        "secret_version_7": seal_secret(dek, tenant, name, 1, 7, value, salt).hex(),
        "secret_empty_version_8": seal_secret(dek, tenant, name, 1, 8, b"", salt).hex(),
        "v1_nonce": nonce.hex(),
        "v1_ciphertext": AESGCM(m1).encrypt(nonce, value, tenant + b"\0" + name).hex(),
    }


def negatives(v):
    """Every bit flip, every truncation and every moved context must be refused; returns (tried, accepted)."""
    m1, m2, dek = bytes.fromhex(v["master"]), bytes.fromhex(v["master_2"]), bytes.fromhex(v["dek"])
    t, n = v["tenant"].encode(), v["name"].encode()
    wrapped, secret = bytes.fromhex(v["wrapped"]), bytes.fromhex(v["secret_version_7"])
    tried = accepted = 0

    def refused(open_call, *args):
        nonlocal tried, accepted
        tried += 1
        try:
            open_call(*args)
            accepted += 1
        except (Malformed, WrongMaster, NotCommitted, Corrupted):
            pass

    for blob, call in ((wrapped, lambda b: unwrap_dek(m1, t, 1, b)),
                       (secret, lambda b: open_secret(dek, t, n, 1, 7, b))):
        for bit in range(len(blob) * 8):
            flipped = bytearray(blob)
            flipped[bit // 8] ^= 1 << (bit % 8)
            refused(call, bytes(flipped))
        for length in range(len(blob)):
            refused(call, blob[:length])
    for args in ((dek, b"bob", n, 1, 7), (dek, t, b"OTHER", 1, 7), (dek, t, n, 2, 7), (dek, t, n, 1, 8),
                 (bytes(32), t, n, 1, 7), (dek, b"aliceO", b"PENAI_API_KEY", 1, 7)):
        refused(open_secret, *args, secret)
    for args in ((m2, t, 1), (m1, b"bob", 1), (m1, t, 2)):
        refused(unwrap_dek, *args, wrapped)
    return tried, accepted


def blob_argument(text):
    return bytes.fromhex(sys.stdin.read() if text == "-" else text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["open-wrapped"]:
        master, tenant, version, blob = sys.argv[2:6]
        print(unwrap_dek(bytes.fromhex(master), tenant.encode(), int(version), blob_argument(blob)).hex())
    elif sys.argv[1:2] == ["open-secret"]:
        dek_hex, tenant, name, dv, sv, blob = sys.argv[2:8]
        sys.stdout.buffer.write(open_secret(bytes.fromhex(dek_hex), tenant.encode(), name.encode(),
                                            int(dv), int(sv), blob_argument(blob)))
    else:
        v = vectors()
        print(json.dumps(v, indent=2))
        tried, accepted = negatives(v)
        print(f"negative cases: {tried} tried, {accepted} accepted", file=sys.stderr)
        sys.exit(accepted != 0)
