use portcullis_upstream::config::Sharing;

use super::*;

fn load(text: &str) -> Loaded {
    parse(Path::new("/etc/p/portcullis.toml"), text).unwrap()
}

/// Findings about a server with these lines.
fn wrong(lines: &str) -> String {
    findings(&format!("[servers.a]\ncommand = [\"a\"]\n{lines}\n"))
}

#[test]
fn variable_with_the_path_of_a_file_is_reserved() {
    let file = "A = { from = \"env:A\", as = \"file\" }";
    let ours = "the proxy sets `A_FILE`";
    for (lines, finding) in [
        (format!("secrets = {{ {file} }}\nenv = {{ A_FILE = \"/x\" }}"), Some(ours)),
        (format!("secrets = {{ {file}, A_FILE = {{ from = \"env:B\" }} }}"), Some(ours)),
        (
            format!("secrets = {{ {file}, A_FILE = {{ from = \"env:B\", as = \"file\" }} }}"),
            Some(ours),
        ),
        // Another variable, or none.
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
fn entry_that_scans_less_than_the_default_causes_a_warning() {
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
    4:1 warning [config-unsafe] other methods are not scanned for secrets
        = remove the key to scan all methods
    5:1 warning [config-unsafe] requests are not scanned for secrets
        = set "report" to let them pass with a finding
    6:1 warning [config-unsafe] messages of more than 1000 bytes are refused
        = set `max-bytes = 67108864`, the largest size that `limits` permits, or lower `limits.request-bytes` and `limits.response-bytes`
    7:11 warning [config-unsafe] secrets of the rule `jwt` are not searched
        = set "report" to let them pass with a finding
    7:24 warning [config-unsafe] secrets delivered to servers are not searched
        = set "report" to let them pass with a finding
    "#);
    let open = "[limits]\nresponse-bytes = 70000000\n[[interceptors]]\nuse = \"secrets\"\nfail-open = true\n";
    insta::assert_snapshot!(findings(open), @"
    3:1 warning [config-unsafe] messages of more than 67108864 bytes pass unseen
        = set `max-bytes = 70000000`, the largest size that `limits` permits, or lower `limits.request-bytes` and `limits.response-bytes`
    ");
}

#[test]
fn mount_over_the_secrets_folder_is_refused() {
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
            assert!(found.starts_with("4:11 [config-conflict] `/run/secrets` contains"), "{found}");
        } else {
            assert_eq!(found, "", "{how} {target}");
        }
    }
}

#[test]
fn secrets_by_client_exclude_shared_instances() {
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
    4:1 [config-conflict] `TOKEN` differs by client, so clients must not share an instance
        = remove it: each client then has its own instance
    5:1 [config-conflict] `TOKEN` differs by client, so there is no shared instance to replicate
        = remove it: each client has its own instance
    9:1 [config-conflict] `Authorization` differs by client, so clients must not share an instance
        = remove it: each client then has its own instance
    13:9 [config-missing-key] the source is missing
        = write `from = "env:NAME"`, or references for single clients: `by-client = { NAME = "file:PATH" }`
    14:40 [config-bad-value] a secret comes `from` a reference: write `env:NAME`, `file:PATH` or another kind that docs/concepts/secrets.md lists, never the value
    14:59 [config-bad-value] `No Client` is not a client
        = write the name of a client, or `"local:USER"` for the user who runs the proxy
    14:82 [config-bad-value] `local:` is not a client
        = write the name of a client, or `"local:USER"` for the user who runs the proxy
    "#);
}

#[test]
fn client_with_its_own_secrets_has_its_own_instance() {
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
