use portcullis_upstream::config::Sharing;

use super::*;

fn load(text: &str) -> Loaded {
    parse(Path::new("/etc/p/portcullis.toml"), text).unwrap()
}

/// What is wrong with a server of this, in the words of the findings.
fn wrong(lines: &str) -> String {
    findings(&format!("[servers.a]\ncommand = [\"a\"]\n{lines}\n"))
}

#[test]
fn the_variable_that_names_a_file_is_the_proxys_to_set() {
    let file = "A = { from = \"env:A\", as = \"file\" }";
    let ours = "`A_FILE` is the proxy's to set";
    for (lines, finding) in [
        (format!("secrets = {{ {file} }}\nenv = {{ A_FILE = \"/x\" }}"), Some(ours)),
        (format!("secrets = {{ {file}, A_FILE = {{ from = \"env:B\" }} }}"), Some(ours)),
        (
            format!("secrets = {{ {file}, A_FILE = {{ from = \"env:B\", as = \"file\" }} }}"),
            Some(ours),
        ),
        // Another's, or none.
        (format!("secrets = {{ {file} }}\nenv = {{ B_FILE = \"/x\" }}"), None),
        ("secrets = { A = { from = \"env:A\" } }\nenv = { A_FILE = \"/x\" }".to_owned(), None),
    ] {
        let found = wrong(&lines);
        match finding {
            Some(finding) => {
                assert!(found.starts_with("3:13 [config-conflict]"), "{lines}: {found}");
                assert!(found.contains(finding), "{lines}: {found}");
            }
            None => assert_eq!(found, "", "{lines}"),
        }
    }
}

#[test]
fn an_entry_that_looks_at_less_than_the_default_is_warned_of() {
    let all = "[[interceptors]]\nuse = \"secrets\"\nname = \"all\"\nrules = { jwt = \"report\" }\n";
    let off = "[[interceptors]]\nuse = \"secrets\"\nmode = \"off\"\nevents = [\"tools/call\"]\n";
    let few = r#"
[[interceptors]]
use = "secrets"
events = ["tools/call"]
request = "off"
max-bytes = 1000
rules = { jwt = "off", vault = "off", github-token = "report" }
"#;
    assert_eq!(findings(all) + &findings(off), "");
    assert_eq!(findings(&format!("{few}{all}")), "");
    insta::assert_snapshot!(findings(few), @r#"
    4:1 warning [config-unsafe] no other method is looked through for secrets
        = remove the key to look through all
    5:1 warning [config-unsafe] secrets in requests are not looked for
        = write "report" to let them pass with a finding
    6:1 warning [config-unsafe] messages of more than 1000 bytes are refused
        = write `max-bytes = 67108864`, as many as `limits` lets in, or lower `limits.request-bytes` and `limits.response-bytes`
    7:11 warning [config-unsafe] secrets of the rule `jwt` are not looked for
        = write "report" to let them pass with a finding
    7:24 warning [config-unsafe] what servers are handed is not looked for
        = write "report" to let them pass with a finding
    "#);
    let open = "[limits]\nresponse-bytes = 70000000\n[[interceptors]]\nuse = \"secrets\"\nfail-open = true\n";
    insta::assert_snapshot!(findings(open), @"
    3:1 warning [config-unsafe] messages of more than 67108864 bytes pass unseen
        = write `max-bytes = 70000000`, as many as `limits` lets in, or lower `limits.request-bytes` and `limits.response-bytes`
    ");
}

#[test]
fn nothing_is_mounted_where_a_server_finds_its_secrets() {
    for (how, target, is_wrong) in [
        ("file", "/run/secrets", true),
        ("file", "/run/secrets/deeper/still", true),
        ("file", "/run/secrets-of-others", false),
        ("file", "/run", false),
        ("env", "/run/secrets", false),
    ] {
        let lines = format!(
            "secrets = {{ A = {{ from = \"env:A\", as = \"{how}\" }} }}\nmounts = [\"/srv:{target}\"]"
        );
        let found = wrong(&lines);
        if is_wrong {
            assert!(found.starts_with("4:11 [config-conflict] `/run/secrets` is where"), "{found}");
        } else {
            assert_eq!(found, "", "{how} {target}");
        }
    }
}

#[test]
fn secrets_by_client_keep_clients_apart() {
    let text = r#"
[servers.a]
command = ["a"]
sharing = "shared"
replicas = 2
secrets.TOKEN = { by-client = { alice = "file:a" } }
[servers.b]
url = "https://example.com/mcp"
sharing = "shared"
headers.Authorization = { from = "env:ALL", by-client = { alice = "file:a" } }
[servers.c]
command = ["c"]
secrets.NOWHERE = { as = "file" }
secrets.SOME = { by-client = { alice = "HIDDEN", "No Client" = "env:X", "local:" = "env:X" } }
[servers.d]
command = ["d"]
sharing = "per-session"
secrets.TOKEN = { by-client = { "local:joe" = "keyctl:x" } }
"#;
    insta::assert_snapshot!(findings(text), @r#"
    4:1 [config-conflict] `TOKEN` differs by client, so that clients may not share an instance
        = remove it: each client then has an instance of its own
    5:1 [config-conflict] `TOKEN` differs by client, so that clients share nothing that could have replicas
        = remove it: each client has an instance of its own
    9:1 [config-conflict] `Authorization` differs by client, so that clients may not share an instance
        = remove it: each client then has an instance of its own
    13:9 [config-missing-key] this comes from nowhere
        = write `from = "env:NAME"`, or references for single clients: `by-client = { NAME = "file:PATH" }`
    14:40 [config-bad-value] a secret comes `from` a reference: write `env:NAME`, `file:PATH` or another kind that docs/concepts/secrets.md lists, never the value
    14:59 [config-bad-value] `No Client` is no client
        = write the name of a client, or `"local:USER"` for the user who runs the proxy
    14:82 [config-bad-value] `local:` is no client
        = write the name of a client, or `"local:USER"` for the user who runs the proxy
    "#);
}

#[test]
fn who_has_secrets_of_his_own_has_an_instance_of_his_own() {
    let own = "secrets = { T = { by-client = { alice = \"file:a\" } } }";
    let header = "headers = { T = { from = \"env:T\", by-client = { alice = \"file:a\" } } }";
    for (lines, sharing) in [
        (format!("command = [\"a\"]\n{own}"), Sharing::PerClient),
        (format!("url = \"https://example.com\"\n{header}"), Sharing::PerClient),
        (format!("command = [\"a\"]\nsharing = \"per-session\"\n{own}"), Sharing::PerSession),
        ("command = [\"a\"]\nsecrets = { T = { from = \"env:T\" } }".to_owned(), Sharing::Auto),
    ] {
        let loaded = load(&format!("[servers.a]\n{lines}\n"));
        assert_eq!(loaded.config.servers[0].sharing, sharing, "{lines}");
    }
    let loaded = load(&format!("[servers.a]\ncommand = [\"a\"]\n{own}\n"));
    let secret = &loaded.config.servers[0].secrets["T"];
    assert_eq!(secret.by_client["alice"], "file:/etc/p/a");
}
