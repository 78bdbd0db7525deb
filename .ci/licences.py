"""Licences of everything that Regard is built from, against a list of those that may be in it.

    python3 .ci/licences.py              # exit status 1 and a line per offender
    python3 -m doctest .ci/licences.py   # the examples below

Every target's dependencies are looked at, not only this machine's.
"""

import re
import subprocess
import sys

ALLOWED = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CDLA-Permissive-2.0", "ISC", "MIT", "MIT-0", "MPL-2.0",
    "Unicode-3.0", "Unlicense", "Zlib",
}  # fmt: skip


def allowed(expression):
    """Whether an SPDX expression can be met from the list; AND binds tighter than OR, `/` is an old way to write OR.

    >>> allowed("MIT OR GPL-3.0-only"), allowed("MIT AND GPL-3.0-only"), allowed("GPL-3.0-only")
    (True, False, False)
    >>> allowed("(MIT OR Apache-2.0) AND Unicode-3.0"), allowed("(MIT OR Apache-2.0) AND NCSA")
    (True, False)
    >>> allowed("GPL-3.0-only OR MIT AND NCSA"), allowed("GPL-3.0-only AND NCSA OR MIT")
    (False, True)
    >>> allowed("MIT/Apache-2.0"), allowed("Apache-2.0 WITH LLVM-exception"), allowed("GPL-2.0 WITH Classpath-exception-2.0")
    (True, True, False)
    >>> allowed("MIT OR"), allowed("(MIT"), allowed("MIT Apache-2.0"), allowed("MIT WITH"), allowed("")
    (False, False, False, False, False)
    """
    tokens = re.findall(r"[()]|[^\s()]+", expression.replace("/", " OR "))
    try:
        met = either(tokens)
    except IndexError:  # the expression ends too early
        return False
    return met and not tokens


def either(tokens):
    """Terms joined by OR."""
    met = both(tokens)
    while tokens[:1] == ["OR"]:
        tokens.pop(0)
        met = both(tokens) or met
    return met


def both(tokens):
    """Factors joined by AND."""
    met = one(tokens)
    while tokens[:1] == ["AND"]:
        tokens.pop(0)
        met = one(tokens) and met
    return met


def one(tokens):
    """A licence, perhaps with an exception (which only permits more), or an expression in brackets."""
    token = tokens.pop(0)
    if token == "(":
        met = either(tokens)
        return tokens.pop(0) == ")" and met
    if tokens[:1] == ["WITH"]:
        tokens.pop(0), tokens.pop(0)
    return token in ALLOWED


def main():
    """Checks every package of the features that the gate and the project's own tests build; offenders decide the exit status."""
    tree = ["cargo", "tree", "--workspace", "--locked", "--features", "regard/wgpu", "--target", "all", "--edges", "all"]
    tree += ["--prefix", "none", "--format", "{p}\t{l}"]
    lines = subprocess.run(tree, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    pairs = sorted({tuple(line.removesuffix(" (*)").split("\t")) for line in lines if "\t" in line})
    packages = [{"name": pair[0].partition(" (")[0], "license": pair[1]} for pair in pairs]
    offenders = [package for package in packages if not allowed(package["license"] or "")]
    for package in offenders:
        print(f"{package['name']}: {package['license'] or 'states no licence'}")
    print(f"{len(packages)} packages, {len(offenders)} with a licence that is not on the list")
    print("not checked: security advisories, whose database is not fetched here")
    return 1 if offenders else 0


if __name__ == "__main__":
    sys.exit(main())
