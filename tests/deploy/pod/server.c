/* An MCP server in one static program, for an image with nothing else in it. It has one tool, which
 * tells what the server sees of its container; with `"leave":true` it leaves a process behind that
 * is nobody's child and in a session of its own, with `"kill":true` it kills who started it, and with
 * `"bind":true` one that wants the proxy's port as soon as that is free. */
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

/* What stands behind a key, up to the next comma or brace: ids of the proxy are numbers. */
static void value(const char *line, const char *key, char *out, size_t room) {
    const char *at = strstr(line, key);
    size_t n = 0;
    if (at)
        for (at += strlen(key); *at && *at != ',' && *at != '}' && n + 1 < room; at++)
            out[n++] = *at;
    out[n] = 0;
}

static size_t length_of(const char *path) {
    FILE *file = path ? fopen(path, "r") : NULL;
    char buffer[4096];
    size_t n = file ? fread(buffer, 1, sizeof buffer, file) : 0;
    if (file)
        fclose(file);
    return n;
}

static int filters(void) {
    FILE *file = fopen("/proc/self/status", "r");
    char line[256];
    int n = -1;
    while (file && fgets(line, sizeof line, file))
        sscanf(line, "Seccomp_filters: %d", &n);
    if (file)
        fclose(file);
    return n;
}

static int writes(const char *path) {
    FILE *file = fopen(path, "w");
    if (file)
        fclose(file);
    return file != NULL;
}

static int listens(void) {
    struct sockaddr_in any = {.sin_family = AF_INET};
    int at = socket(AF_INET, SOCK_STREAM, 0);
    int done = at >= 0 && !bind(at, (struct sockaddr *)&any, sizeof any) && !listen(at, 1);
    if (at >= 0)
        close(at);
    return done;
}

/* Takes the proxy's port once it is free, and keeps it. */
static void take_port(void) {
    struct sockaddr_in port = {.sin_family = AF_INET, .sin_port = htons(8811)};
    int at = socket(AF_INET, SOCK_STREAM, 0);
    while (bind(at, (struct sockaddr *)&port, sizeof port))
        usleep(100);
    for (;;)
        pause();
}

/* Whether it is let stay at the socket at which the proxy gives orders. */
static int joins(void) {
    struct sockaddr_un socket_of = {.sun_family = AF_UNIX, .sun_path = "/run/portcullis/server.sock"};
    struct timeval patience = {.tv_sec = 5};
    char byte;
    int at = socket(AF_UNIX, SOCK_STREAM, 0);
    int done = at >= 0 && !connect(at, (struct sockaddr *)&socket_of, sizeof socket_of) &&
               !setsockopt(at, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) &&
               recv(at, &byte, 1, 0) != 0;
    if (at >= 0)
        close(at);
    return done;
}

/* Whether it may write into the container's first process, or into the one that started it. */
static int reaches(void) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/mem", getppid());
    return writes("/proc/1/mem") || writes(path);
}

static const char *or_none(const char *text) { return text ? text : "none"; }

int main(int count, char **words) {
    static char line[1 << 16], id[64];
    while (fgets(line, sizeof line, stdin)) {
        value(line, "\"id\":", id, sizeof id);
        if (!id[0])
            continue;
        printf("{\"jsonrpc\":\"2.0\",\"id\":%s,", id);
        if (strstr(line, "\"initialize\"")) {
            printf("\"result\":{\"protocolVersion\":\"2025-06-18\",\"capabilities\":{\"tools\":{}},"
                   "\"serverInfo\":{\"name\":\"pod\",\"version\":\"1\"}}}\n");
        } else if (strstr(line, "\"tools/list\"")) {
            printf("\"result\":{\"tools\":[{\"name\":\"look\",\"inputSchema\":{\"type\":\"object\"}}]}}\n");
        } else if (strstr(line, "\"tools/call\"")) {
            if (strstr(line, "\"leave\":true") && !fork()) {
                setsid();
                if (!fork())
                    for (;;)
                        pause();
                _exit(0);
            }
            if (strstr(line, "\"bind\":true") && !fork()) {
                setsid();
                take_port();
            }
            if (strstr(line, "\"kill\":true")) {
                kill(getppid(), SIGKILL);
                for (;;)
                    pause();
            }
            const char *token = getenv("TOKEN");
            printf("\"result\":{\"content\":[{\"type\":\"text\",\"text\":\"uid=%d gid=%d args=%d last=%s home=%s "
                   "greeting=%s cluster=%s token=%zu file=%zu filters=%d root=%d tmp=%d state=%d config=%d listens=%d joins=%d reaches=%d preload=%s\"}]}}\n",
                   getuid(), getgid(), count, words[count - 1], or_none(getenv("HOME")),
                   or_none(getenv("GREETING")), or_none(getenv("KUBERNETES_SERVICE_HOST")),
                   token ? strlen(token) : 0, length_of(getenv("CERT_FILE")), filters(),
                   writes("/x"), writes("/tmp/x"), access("/var/lib/portcullis", F_OK) == 0,
                   access("/etc/portcullis/portcullis.toml", F_OK) == 0, listens(), joins(), reaches(),
                   or_none(getenv("LD_PRELOAD")));
        } else {
            printf("\"error\":{\"code\":-32601,\"message\":\"no such method\"}}\n");
        }
        fflush(stdout);
    }
    return 0;
}
