/* Replaces /proc/self/exe by $BENCH_PROGRAM in the program to execute. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>

static const char *own(const char *path) {
    const char *program = getenv("BENCH_PROGRAM");
    return program && !strcmp(path, "/proc/self/exe") ? program : path;
}

int execvp(const char *path, char *const argv[]) {
    int (*next)(const char *, char *const *) = dlsym(RTLD_NEXT, "execvp");
    return next(own(path), argv);
}

int execve(const char *path, char *const argv[], char *const env[]) {
    int (*next)(const char *, char *const *, char *const *) = dlsym(RTLD_NEXT, "execve");
    return next(own(path), argv, env);
}

int posix_spawnp(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
                 const posix_spawnattr_t *attributes, char *const argv[], char *const env[]) {
    int (*next)(pid_t *, const char *, const posix_spawn_file_actions_t *,
                const posix_spawnattr_t *, char *const *, char *const *) =
        dlsym(RTLD_NEXT, "posix_spawnp");
    return next(pid, own(path), actions, attributes, argv, env);
}
