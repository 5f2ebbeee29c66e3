# What the scripts share: each reads this from the repository's root.

# Incremental builds help nobody here and take gigabytes.
export CARGO_INCREMENTAL=0
target=${CARGO_TARGET_DIR:-target}

fail() { printf 'error: %s\n' "$*" >&2; exit 1; }
step() { printf '\n== %s (%ss)\n' "$*" "$SECONDS"; }

# A limit of 0 seconds, or of a word, is none to libFuzzer.
check_seconds() { [[ $1 =~ ^[1-9][0-9]*$ ]] || fail "--seconds wants a number, got $1"; }

# The comment at the top of the script that is run: what it does and how it is used.
usage() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "scripts/$(basename "$0")"; }

# Before anything is installed or built.
for word in "$@"; do
    case "$word" in
        -h | --help) usage; exit ;;
    esac
done

# An error of whoever calls a script.
wrong() { printf 'error: %s\n' "$*" >&2; exit 2; }

# Whether the first word is one of the others.
among() {
    local wanted=$1 name
    shift
    for name in "$@"; do [ "$name" = "$wanted" ] && return; done
    return 1
}

# Runs the functions run_NAME of the names after `--`, or of all that stand before it.
run_steps_of() {
    local known=() chosen=()
    while [ "$1" != -- ]; do known+=("$1"); shift; done
    shift
    for name in "$@"; do
        among "$name" "${known[@]}" || wrong "no step $name; there are: ${known[*]}"
    done
    chosen=("$@")
    [ $# -gt 0 ] || chosen=("${known[@]}")
    for name in "${chosen[@]}"; do
        step "$(basename "$0"): $name"
        "run_$name"
    done
}

host() { rustc -vV | sed -n 's/^host: //p'; }

install_packages() {
    local missing=() sudo=()
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    command -v apt-get >/dev/null || fail "missing, and there is no apt-get to install them: ${missing[*]}; cargo test needs none of them"
    echo "installing Debian packages: ${missing[*]}" >&2
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || fail "missing, and only root installs them, or sudo: ${missing[*]}"
        sudo=(sudo)
    fi
    "${sudo[@]}" apt-get update -q >/dev/null
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
}

need_rustup() { command -v rustup >/dev/null || fail "rustup is missing, which installs what of Rust is: https://rustup.rs"; }

add_targets() {
    local installed
    need_rustup
    installed=$(rustup target list --installed)
    for name in "$@"; do
        grep -qx "$name" <<<"$installed" && continue
        echo "installing with rustup: the target $name" >&2
        rustup target add "$name"
    done
}

# The nightly toolchain, with components.
add_nightly() {
    local installed
    need_rustup
    installed=$(rustup component list --toolchain nightly --installed 2>/dev/null) || installed=
    for component in rust-std "$@"; do
        grep -q "^$component" <<<"$installed" && continue
        echo "installing with rustup: the nightly toolchain with rust-std $*" >&2
        rustup toolchain install nightly --profile minimal "${@/#/--component=}"
        return
    done
}

add_cargo_tool() {
    command -v "$1" >/dev/null && return
    echo "installing with cargo: $1" >&2
    cargo install -q --locked "$1"
}

# Prints the interpreter of a virtual environment that has what a requirements file names, and all of that alone.
python_environment() {
    local place
    place=$target/venvs/$(dirname "$1" | tr / -)
    if ! cmp -s "$1" "$place/requirements.txt"; then
        echo "fetching from PyPI: $(tr '\n' ' ' <"$1")" >&2
        rm -rf "$place"
        "${PYTHON:-python3}" -m venv "$place" >&2
        "$place/bin/python" -m pip install -q --disable-pip-version-check --no-deps -r "$1" >&2
        # Last, so that what was interrupted is done again.
        cp "$1" "$place/requirements.txt"
    fi
    echo "$place/bin/python"
}

# The tests of a command must pass, and be at least so many: a filter that matches nothing passes too.
expect() {
    local least=$1 output passed
    shift
    output=$("$@" 2>&1) || { printf '%s\n' "$output" >&2; fail "failed: $*"; }
    # What tests say of what they ran, and their number.
    printf '%s\n' "$output" | grep -E '^(not run: |test result: ok|\.*[a-z0-9_]+: .*(passed|products|found))' | grep -v ' 0 passed' || true
    passed=$(printf '%s\n' "$output" | grep -oE '\b[0-9]+ passed' | awk '{ sum += $1 } END { print sum + 0 }')
    [ "$passed" -ge "$least" ] || fail "$passed tests ran, at least $least were expected: $*"
}

# The library's features that build everywhere.
library_features=evidence,half,ndarray,npy,profile,safetensors
# One set of packages and features for all that is built of the workspace: another set would build the library,
# which takes the longest, once more. `--lib`, `--test NAME` and the like choose among it.
features=ane-matmul/${library_features//,/,ane-matmul/}
[ "$(uname -s)" = Darwin ] || features+=,ane-matmul/blas,ane-matmul-cli/blas
all=(-p ane-matmul -p ane-matmul-cli -p ane-matmul-conformance -p ane-matmul-misuse --features "$features")
