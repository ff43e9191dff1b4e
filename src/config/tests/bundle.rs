use super::*;

fn key(name: &str) -> String {
    let key = portcullis_foundation::note_key::Signer::of(name, &[1; 32]).unwrap();
    key.verifier().to_string()
}

#[test]
fn bundle_needs_keys_and_excludes_paths() {
    let (a, b) = (key("a"), key("b"));
    let text = format!("[policy]\nbundle = \"b\"\nbundle-keys = [\"{a}\", \"{b}\"]\n");
    let policy = parse(Path::new("/etc/p/portcullis.toml"), &text).unwrap().config.policy;
    assert_eq!(policy.bundle.as_deref(), Some(Path::new("b")));
    assert_eq!(policy.bundle_keys, [a.clone(), b]);

    let text = "[policy]\nbundle = \"b\"\npaths = [\"policies\"]\n";
    insta::assert_snapshot!(findings(text), @r#"
    2:1 [config-conflict] no key is trusted to sign this bundle
        = set the verifier keys: `bundle-keys = ["NAME+HASH+BASE64"]`, as `portcullis policy bundle key` prints them
    3:1 [config-conflict] policies come from a bundle or from files, not from both
        = remove `paths`, or `bundle` and `bundle-keys`
    "#);
    let text = "[policy]\nbundle-keys = [\"PRIVATE\"]\n";
    insta::assert_snapshot!(findings(text), @r#"
    2:1 [config-conflict] these keys have no meaning without `bundle`
        = name the folder, `bundle = "policies.bundle"`, or remove them
    2:16 [config-bad-value] this is not a verifier key
        = write NAME+HASH+BASE64, as `portcullis policy bundle key` prints it
    "#);
    let text = format!("[policy]\nbundle = \"\"\nbundle-keys = [\"{a}\", \"{a}\"]\n");
    insta::assert_snapshot!(findings(&text), @r"
    2:10 [config-bad-value] this path is empty
        = name a folder
    3:75 [config-conflict] this key is named twice
        = remove one of the two
    ");
}
