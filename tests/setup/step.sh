# Sourced: steps that are done again only when what they read, or what they made, has changed.

# step NAME FUNCTION FILE…
step() {
    local name=$1 function=$2 stamp=target/tests/stamps/$1 begun=$SECONDS
    shift 2
    mkdir -p "${stamp%/*}"
    # A file that does not exist (yet, or any more) is a change too.
    if [[ -e $stamp && $(sha256sum -- "$@" 2>&1) == "$(<"$stamp")" ]]; then
        return
    fi
    echo "tests: setting up $name" >&2
    rm -f "$stamp"
    "$function"
    sha256sum -- "$@" >"$stamp"
    echo "tests: $name set up in $((SECONDS - begun)) s" >&2
}
