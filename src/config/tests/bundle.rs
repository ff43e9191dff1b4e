use super::*;

fn key(name: &str) -> String {
    let key = crate::signing::Signer::of(name, &[1; 32]).unwrap();
    key.verifier().to_string()
}

#[test]
fn a_bundle_has_keys_and_stands_alone() {
    let (a, b) = (key("a"), key("b"));
    let text = format!("[policy]\nbundle = \"b\"\nbundle-keys = [\"{a}\", \"{b}\"]\n");
    let policy = parse(Path::new("/etc/p/portcullis.toml"), &text).unwrap().config.policy;
    assert_eq!(policy.bundle.as_deref(), Some(Path::new("b")));
    assert_eq!(policy.bundle_keys, [a.clone(), b]);

    let text = "[policy]\nbundle = \"b\"\npaths = [\"policies\"]\n";
    insta::assert_snapshot!(findings(text), @"");
    let text = "[policy]\nbundle-keys = [\"PRIVATE\"]\n";
    insta::assert_snapshot!(findings(text), @"");
    let text = format!("[policy]\nbundle = \"\"\nbundle-keys = [\"{a}\", \"{a}\"]\n");
    insta::assert_snapshot!(findings(&text), @"");
}
