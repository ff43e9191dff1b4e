use super::*;

#[test]
fn server_has_exactly_one_kind() {
    let text = r#"
[servers.none]
[servers.two]
image = "a@sha256:0000000000000000000000000000000000000000000000000000000000000000"
url = "https://example.com/mcp"
[servers.remote]
url = "https://example.com/mcp"
env = { A = "b" }
secrets = { A = { from = "env:A" } }
[servers.local]
command = ["notes"]
headers = { Authorization = { from = "env:A" } }
"#;
    insta::assert_snapshot!(findings(text), @r#"
    2:10 [config-missing-key] this server has no `image`, `command` or `url`
        = add `image = "NAME@sha256:…"`, `command = ["PROGRAM", …]` or `url = "https://…"`
    5:1 [config-conflict] this server has both `image` and `url`
        = keep one: a server is an image, a command or a url
    8:1 [config-conflict] `env` has no meaning for a `url`
        = remove it
    8:9 [config-conflict] `A` is in both `env` and `secrets`
        = remove it from `env`
    9:1 [config-conflict] `secrets` has no meaning for a `url`
        = to send a secret to a url, use `headers`
    12:1 [config-conflict] `headers` has no meaning for a `command`
        = remove it
    "#);
}

#[test]
fn image_names_are_checked() {
    let text = r#"
[servers.a]
image = "ghcr.io/owner/name:latest"
[servers.b]
image = "name@sha256:12"
[servers.c]
image = "-v"
[servers.d]
image = "name:tag"
[servers.e]
image = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
"#;
    insta::assert_snapshot!(findings(text), @r#"
    5:9 [config-bad-value] `name@sha256:12` is not an image name: a digest is `sha256:` and 64 digits of lower-case hex
        = such as `ghcr.io/owner/name:1.2` or `ghcr.io/owner/name@sha256:…`
    7:9 [config-bad-value] `-v` is not an image name: it begins with `-`
        = such as `ghcr.io/owner/name:1.2` or `ghcr.io/owner/name@sha256:…`
    "#);
}

#[test]
fn urls_are_https_or_loopback() {
    let text = r#"
[servers.a]
url = "http://example.com/mcp"
[servers.b]
url = "http://[::1]:80/mcp"
[servers.c]
url = "ftp://example.com"
[servers.d]
url = "https://me@example.com/#top"
[servers.e]
url = "example.com"
headers = { Host = { from = "env:A" }, "b d" = { from = "env:A" } }
"#;
    insta::assert_snapshot!(findings(text), @r#"
    3:7 [config-unsafe] plain HTTP exposes every call on the network
        = use https; plain http is accepted for loopback addresses only
    7:7 [config-bad-value] the scheme `ftp` is not supported for a server
        = use https
    9:1 [config-literal-secret] this URL contains credentials
        = send them with `headers = { Authorization = { from = "env:NAME" } }`
    9:7 [config-bad-value] a server's URL cannot have a fragment
        = remove `#` and the text after it
    11:7 [config-bad-value] this is not a URL: relative URL without a base
        = such as `https://mcp.example.com/mcp`
    12:13 [config-conflict] the proxy sets `host` itself
        = remove it
    12:40 [config-bad-value] `b d` is not a header name
    "#);
}

#[test]
fn confusable_prefixes_are_refused() {
    let text = r#"
[servers.a]
command = ["x"]
[servers.b]
command = ["x"]
prefix = "a"
[servers.a__b]
command = ["x"]
[servers.c]
command = ["x"]
prefix = ""
[servers.d]
command = ["x"]
prefix = ""
[servers.a_b]
command = ["x"]
[servers.a_]
command = ["x"]
[servers.git1]
command = ["x"]
[servers.gitl]
command = ["x"]
[servers.e]
command = ["x"]
prefix = "GIT1"
[servers.a-name-that-leaves-no-room-for-others]
command = ["x"]
[servers.a-name-that-leaves-no-room-for-more]
command = ["x"]
prefix = "more"
"#;
    insta::assert_snapshot!(findings(text), @r#"
    6:1 [config-conflict] names of `b` could be confused with names of `a` (line 2)
        = give one of them another `prefix`
    7:10 [config-conflict] names of `a__b` could be confused with names of `a` (line 2)
        = give one of them another `prefix`
    14:1 [config-conflict] names of `d` could be confused with names of `c` (line 9)
        = give one of them another `prefix`
    17:10 [config-conflict] names of `a_` could be confused with names of `a` (line 2)
        = give one of them another `prefix`
    21:10 [config-conflict] names of `gitl` could be confused with names of `git1` (line 19)
        = give one of them another `prefix`
    25:1 [config-conflict] names of `e` could be confused with names of `git1` (line 19)
        = give one of them another `prefix`
    26:10 [config-conflict] names with the prefix `a-name-that-leaves-no-room-for-others` would be too long for some clients
        = give it a `prefix` of at most 32 characters
    "#);
}

#[test]
fn hardening_is_checked() {
    let text = r#"
[servers.a]
command = ["x"]
mounts = ["/a:/b", "/c:/b"]
env = { LD_PRELOAD = "x" }
[servers.a.hardening]
cap-add = ["net_raw", "CAP_SYS_ADMIN", "nonsense"]
user = "root"
"#;
    insta::assert_snapshot!(findings(text), @r#"
    4:20 [config-conflict] two mounts have the target `/b`
        = give each its own target
    5:9 warning [config-unsafe] `LD_PRELOAD` changes which code a program loads
        = build the code into the image or the program
    7:12 [config-bad-value] `net_raw` is not a capability
        ^ did you mean `CAP_NET_RAW`?
    7:40 [config-bad-value] `nonsense` is not a capability
        = capabilities(7) lists them
    8:8 [config-bad-value] `root` is not a user
        = write `UID:GID` in numbers, such as `1000:1000`
    "#);
}

#[test]
fn duplicate_hosts_and_egress_with_a_network_are_refused() {
    let text = r#"
[servers.a]
command = ["a"]
egress = ["api.example.com:443", "example.com:80", "*:443", "http://b:8080", "tcp://b:8080"]
"#;
    let found = findings(text);
    assert!(found.contains("write `http://HOST:80` for plain HTTP"), "{found}");
    assert!(found.contains("such as `*.example.com`"), "{found}");
    let text = text.replace("\"example.com:80\", \"*:443\", ", "");
    let found = findings(&text);
    assert!(found.contains("match the same host and port"), "{found}");
    let text = text.replace(", \"tcp://b:8080\"", "");
    assert_eq!(findings(&text), "");
    let found = findings(&format!("{text}hardening = {{ network = true }}"));
    assert!(found.contains("`hardening.network` bypasses `egress`"), "{found}");
    let found = findings("[servers.a]\nurl = \"https://a.example/mcp\"\negress = [\"b:443\"]");
    assert!(found.contains("`egress` has no meaning for a `url`"), "{found}");
}

#[test]
fn servers_above_a_ceiling_are_refused() {
    let text = r#"
[limits.servers]
memory-mib = 1024
tmp-mib = 32
warm = 2
deviations = ["mounts", "hardening.exec-tmp"]
[servers.big]
command = ["a"]
mounts = ["/srv:/srv"]
warm = 3
resources = { memory-mib = 2048, tmp-mib = 16 }
hardening = { network = true, exec-tmp = true }
[servers.default]
command = ["b"]
[servers.remote]
url = "https://example.com/mcp"
"#;
    insta::assert_snapshot!(findings(text), @r#"
    10:1 [config-above-ceiling] `warm` is 3, above the operator's ceiling for servers, 2 (line 5)
        = lower it, or raise `limits.servers.warm`
    11:15 [config-above-ceiling] `memory-mib` is 2048, above the operator's ceiling for servers, 1024 (line 3)
        = lower it, or raise `limits.servers.memory-mib`
    12:15 [config-above-ceiling] `hardening.network` is not one of the deviations that a server may have (line 6)
        = remove it, or add "hardening.network" to `limits.servers.deviations`
    13:10 [config-above-ceiling] `tmp-mib` is 64 by default, above the operator's ceiling for servers, 32 (line 4)
        = write `resources.tmp-mib = 32` for this server, or raise `limits.servers.tmp-mib`
    "#);
    let none = "[limits.servers]\ndeviations = []\n[servers.a]\ncommand = [\"a\"]\n";
    assert_eq!(findings(none), "");
    let unknown = "[limits.servers]\ndeviations = [\"mount\"]\n";
    assert!(findings(unknown).contains("config-bad-value"), "{}", findings(unknown));
}

#[test]
fn gvisor_excludes_egress() {
    let text = r#"
[servers.a]
command = ["a"]
runtime = "runsc"
egress = ["example.com:443"]
[servers.b]
image = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
runtime = "runsc"
[servers.c]
image = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
runtime = "sandbox"
[servers.d]
command = ["d"]
resources = { memory-mib = 64, tmp-mib = 128 }
[servers.e]
command = ["e"]
resources = { memory-mib = 32 }
"#;
    insta::assert_snapshot!(findings(text), @r#"
    4:1 [config-conflict] `egress` is not available under gVisor, whose kernel has its own network stack
        = remove `egress`, or run it in an ordinary container
    11:1 [config-conflict] an image always runs in a container
        = remove it, or set `runtime = "runsc"` to run it under gVisor
    14:32 [config-conflict] /tmp is in memory, and the limit is 64 MiB: this size can never be used
        = raise `resources.memory-mib`, or lower this
    "#);
}
