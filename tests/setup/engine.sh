# Sourced: finds a container engine or starts one that ends with this shell.
# Sets DOCKER_HOST where the engine is not at the usual place.

engine_dir=
engine_pid=

engine_stop() {
    [[ -n $engine_pid ]] || return 0
    kill -TERM "$engine_pid" 2>/dev/null || true
    wait "$engine_pid" 2>/dev/null || true
    engine_pid=
    # The engine leaves its own namespace mounted once a container shared its network, and a mount
    # can't be removed. What stays all the same is told of, and says nothing of the tests.
    local mount
    while read -r mount; do
        umount --lazy "$mount" || true
    done < <(awk -v dir="$engine_dir/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | tac)
    rm -rf "$engine_dir" || true
}

engine_start() {
    if docker version >/dev/null 2>&1; then
        return
    fi
    if ((EUID != 0)); then
        echo "no container engine answers, and only root can start one" >&2
        return 1
    fi
    # A short path: a unix socket's may have 107 characters.
    engine_dir=$(mktemp -d /tmp/portcullis-engine.XXXXXX)
    dockerd --data-root "$engine_dir/data" --exec-root "$engine_dir/exec" \
        --pidfile "$engine_dir/pid" --host "unix://$engine_dir/docker.sock" \
        >"$engine_dir/log" 2>&1 &
    engine_pid=$!
    export DOCKER_HOST="unix://$engine_dir/docker.sock"
    local tries
    for ((tries = 0; tries < 120; tries++)); do
        docker version >/dev/null 2>&1 && return
        if ! kill -0 "$engine_pid" 2>/dev/null; then
            break
        fi
        sleep 0.5
    done
    echo "the container engine did not start:" >&2
    tail -20 "$engine_dir/log" >&2
    return 1
}
