//! Unmodified programs with egress: through the proxy that the environment names, and without proxy
//! settings.

use std::{os::unix::fs::PermissionsExt, path::Path, process::Command};

use serde_json::json;

use crate::support::{
    authority::Authority,
    engine::servers_image,
    gate::Setup,
    root,
    web::{Page, Web},
};

/// Runs the command that it is told to run, with the variables of its own environment or without those
/// that name a proxy.
const SERVER: &str = r#"
import json, os, subprocess, sys
for line in sys.stdin:
    m = json.loads(line)
    if 'id' not in m:
        continue
    out = {'jsonrpc': '2.0', 'id': m['id']}
    if m['method'] == 'initialize':
        out['result'] = {'protocolVersion': m['params']['protocolVersion'], 'capabilities': {'tools': {}},
            'serverInfo': {'name': 'runner', 'version': '1'}}
    elif m['method'] == 'tools/list':
        out['result'] = {'tools': [{'name': 'run', 'inputSchema': {'type': 'object'}}]}
    elif m['method'] == 'tools/call':
        a = m['params']['arguments']
        env = {n: v for n, v in os.environ.items() if a['proxy'] or not n.lower().endswith('_proxy')}
        ran = subprocess.run(a['command'], env=env, cwd='/tmp', stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
        text = f'{ran.returncode}\n{ran.stdout.decode()}'
        out['result'] = {'content': [{'type': 'text', 'text': text}]}
    else:
        out['error'] = {'code': -32601, 'message': 'unknown'}
    print(json.dumps(out), flush=True)
"#;

const FETCH: &str = "fetch(process.argv[1]).then(r => r.text()).then(console.log)";
const URLLIB: &str =
    "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode())";
const REQUESTS: &str = "import sys, requests; print(requests.get(sys.argv[1]).text)";

/// A repository in a form that any web server can hand out.
fn repository(folder: &Path) {
    let git = |at: &Path, args: &[&str]| {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=n", "-c", "user.email=n@example.com"]).args(args);
        assert!(git.current_dir(at).output().unwrap().status.success(), "git {args:?}");
    };
    let (work, bare) = (folder.join("work"), folder.join("repo.git"));
    std::fs::create_dir(&work).unwrap();
    git(&work, &["init", "--quiet", "--initial-branch=main"]);
    std::fs::write(work.join("hello"), "from the repository\n").unwrap();
    git(&work, &["add", "hello"]);
    git(&work, &["commit", "--quiet", "--message=first"]);
    git(folder, &["clone", "--quiet", "--bare", "work", "repo.git"]);
    git(&bare, &["update-server-info"]);
}

/// What has to come of a command: a line, and whether it can do without variables alone.
struct Case {
    name: &'static str,
    command: Vec<String>,
    said: &'static str,
    /// Whether it goes by variables at all.
    proxy: bool,
}

async fn check_programs(mark: &str, place: &str, python: &str, curl: bool) {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().to_owned();
    repository(&at);
    let authority = Authority::of(&["web.example"]);
    let page = move |_: &str, path: &str| -> Option<Page> {
        if path == "/hello" {
            return Some(("text/plain", b"hello from the web".to_vec()));
        }
        let file = at.join(path.strip_prefix("/")?);
        std::fs::read(file).ok().map(|bytes| ("application/octet-stream", bytes))
    };
    let web = Web::serve("127.0.0.1:0", Some(&authority), page).await;
    let port = web.address.port();
    let trusted = tempfile::tempdir().unwrap();
    std::fs::set_permissions(trusted.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    std::fs::write(trusted.path().join("ca.pem"), &authority.certificate).unwrap();
    let trust = ["SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS"];
    let trust: Vec<_> = trust
        .iter()
        .chain(&["REQUESTS_CA_BUNDLE"])
        .map(|name| format!("env.{name} = \"/ca/ca.pem\""))
        .collect();
    let mut gate = Setup::new(&format!(
        r#"
        [servers.runner]
        {place}
        era = "legacy"
        command = ["/usr/bin/python3", "-I", "-c", '''{SERVER}''']
        env.GATE = "{{mark}}"
        env.PYTHONPATH = "{python}"
        {}
        mounts = ["{}:/ca"]
        egress = ["web.example:{port}=127.0.0.1", "*.below.example:443"]
        "#,
        trust.join("\n"),
        trusted.path().display(),
    ))
    .start()
    .await;
    let agent = gate.modern();
    let url = |path: &str| format!("https://web.example:{port}{path}");
    let words = |all: &[&str]| all.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let script = "rm -rf clone && git clone --quiet \"$0\" clone && cat clone/hello";
    let cases = [
        Case {
            name: "git",
            command: words(&["sh", "-c", script, &url("/repo.git")]),
            said: "from the repository",
            proxy: true,
        },
        Case {
            name: "node",
            command: words(&["node", "-e", FETCH, &url("/hello")]),
            said: "hello from the web",
            proxy: false,
        },
        Case {
            name: "urllib",
            command: words(&["/usr/bin/python3", "-c", URLLIB, &url("/hello")]),
            said: "hello from the web",
            proxy: true,
        },
        Case {
            name: "requests",
            command: words(&["/usr/bin/python3", "-c", REQUESTS, &url("/hello")]),
            said: "hello from the web",
            proxy: true,
        },
        Case {
            name: "curl",
            command: words(&["curl", "-sS", &url("/hello")]),
            said: "hello from the web",
            proxy: true,
        },
    ];
    for Case { name, command, said, proxy } in cases {
        if name == "curl" && !curl {
            continue;
        }
        for proxied in [false, true].into_iter().filter(|proxied| !proxied || proxy) {
            let run = json!({ "command": command, "proxy": proxied });
            let text = agent.text("runner__run", run).await;
            assert_eq!(text.trim(), format!("0\n{said}"), "{mark} {name} {proxied}");
            let reached = gate.records(&["event = egress-connecting"]).await;
            let last = reached.iter().max_by_key(|record| record["seq"].as_u64());
            let protocol = last.map(|record| record["protocol"].clone());
            let expected = if proxied { "connect" } else { "direct" };
            assert_eq!(protocol, Some(json!(expected)), "{mark} {name}: {reached:#?}");
        }
    }
    let launched = gate.records(&["event = server-launched"]).await;
    assert_eq!(launched[0]["egress_tried"], true, "{:#}", launched[0]);
    let told =
        gate.logged("hosts behind the variable", |line| line.contains("only through HTTPS_PROXY"));
    let told = told.await;
    assert!(told.contains("*.below.example:443") && !told.contains("web.example"), "{told}");
    gate.stop().await;
}

#[tokio::test]
async fn local_programs_reach_only_listed_hosts() {
    let curl = Path::new("/usr/bin/curl").exists();
    check_programs("sandbox", "runtime = \"sandbox\"", "", curl).await;
}

#[tokio::test]
async fn programs_of_an_image_reach_only_listed_hosts() {
    let place = format!("image = \"{}\"", servers_image());
    check_programs("container", &place, "/opt/python", false).await;
}

/// As in docs/start/servers.md: its folder is mounted under its own name, and every user may read
/// its interpreter.
#[tokio::test]
async fn program_of_a_virtual_environment_runs() {
    // A folder below /tmp would not keep its name inside.
    let folder = tempfile::tempdir_in(root().join("target")).unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let venv = folder.path().join("venv");
    let make = ["-m", "venv", "--without-pip"];
    let made = Command::new("/usr/bin/python3").args(make).arg(&venv).status().unwrap();
    assert!(made.success(), "python3 -m venv");
    // What pip makes of an entry point.
    let program = venv.join("bin/runner");
    let script = format!("#!{}\n{SERVER}", venv.join("bin/python").display());
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let gate = Setup::new(&format!(
        "[servers.runner]\ncommand = [{program:?}]\nmounts = [\"{}:{}\"]\nruntime = \"sandbox\"\n\
         env = {{ GATE = \"{{mark}}\" }}\n",
        venv.display(),
        venv.display(),
    ))
    .start()
    .await;
    let python = "import sys; print(sys.prefix)";
    let command = [venv.join("bin/python").to_str().unwrap(), "-c", python].map(str::to_owned);
    let arguments = json!({ "command": command, "proxy": true });
    let said = gate.modern().text("runner__run", arguments).await;
    assert_eq!(said.trim(), format!("0\n{}", venv.display()));
    gate.stop().await;
}
