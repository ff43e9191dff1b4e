use super::*;

/// Findings by line: code and message.
fn lines(text: &str) -> Vec<String> {
    let found = findings(text);
    let first = found.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit()));
    let mut all: Vec<(u32, String)> = first
        .map(|line| {
            let (place, rest) = line.split_once(" [").unwrap();
            let at = place.split(':').next().unwrap().parse().unwrap();
            (at, format!("{at} {}", rest.replacen(']', "", 1)))
        })
        .collect();
    all.sort();
    all.into_iter().map(|(_, line)| line).collect()
}

#[test]
fn signer_is_a_key_or_an_identity() {
    let text = r#"
[signers.key]
key = "a.pub"
[signers.logged]
key = "a.pub"
trusted-root = "root.json"
[signers.identity]
issuer = "https://login.example.com"
subject = "*@example.com"
trusted-root = "root.json"
[signers.none]
trusted-root = "root.json"
[signers.both]
key = "a.pub"
issuer = "https://login.example.com"
subject = "a@example.com"
[signers.half]
issuer = "https://login.example.com"
[signers.anybody]
issuer = "login.example.com"
subject = "**"
trusted-root = "root.json"
"#;
    assert_eq!(
        lines(text),
        [
            "11 config-missing-key this signer is neither a key nor an identity",
            "15 config-conflict `issuer` has no meaning with a `key`",
            "16 config-conflict `subject` has no meaning with a `key`",
            "17 config-missing-key an identity needs `subject`",
            "17 config-missing-key an identity needs `trusted-root`",
            "20 config-bad-value an issuer must be a URL, as in its certificates",
            "21 config-bad-value this would match everybody",
        ]
    );
}

#[test]
fn signed_by_names_signers_of_the_config() {
    let text = r#"
[signers.acme]
key = "a.pub"
[servers.a]
image = "a.example/x@sha256:0000000000000000000000000000000000000000000000000000000000000000"
signed-by = ["acme", "amce", "acme", "someone-else"]
[servers.b]
image = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
signed-by = ["acme"]
[servers.c]
command = ["notes"]
signed-by = ["acme"]
[servers.d]
url = "https://example.com/mcp"
signed-by = []
"#;
    assert_eq!(
        lines(text),
        [
            "6 config-bad-value `[signers.amce]` does not exist",
            "6 config-bad-value `[signers.someone-else]` does not exist",
            "6 config-conflict this signer is named twice",
            "9 config-conflict a local image has no registry with signatures",
            "12 config-conflict `signed-by` has no meaning for a `command`",
            "15 config-conflict `signed-by` has no meaning for a `url`",
        ]
    );
    assert!(findings(text).contains("did you mean `acme`?"));
}

#[test]
fn files_of_a_signer_are_resolved_against_the_config() {
    let text = "[signers.a]\nkey = \"a.pub\"\ntrusted-root = \"/b/root.json\"\n";
    let loaded = parse(Path::new("/etc/p/portcullis.toml"), text).unwrap();
    let signer = &loaded.config.signers[&"a".parse().unwrap()];
    assert_eq!(signer.key.as_deref(), Some(Path::new("/etc/p/a.pub")));
    assert_eq!(signer.trusted_root.as_deref(), Some(Path::new("/b/root.json")));
}
