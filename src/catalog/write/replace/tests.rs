use super::*;
use crate::{
    Image, Mount, Run, Secret, Transport,
    write::{add, entry::tests::server},
};

const OTHER: &str = "[servers.other]\ncommand = [\"other\"] # mine\n\n";

fn image(digest: char, change: impl FnOnce(&mut Server)) -> Server {
    let digest = Some(format!("sha256:{}", digest.to_string().repeat(64)));
    let image = Image { name: "a.example/s:1".into(), digest, id: None };
    let mut server = server("s");
    server.run = Run::Image { image, arguments: vec!["--quiet".into()] };
    (server.fetches, server.stays) = (false, false);
    (server.title, server.env) = (None, [("A".to_owned(), "1".to_owned())].into());
    change(&mut server);
    server
}

fn entry(config: &str) -> ExistingEntry {
    ExistingEntry::of(config, "s").unwrap().unwrap()
}

#[test]
fn only_the_whole_entry_is_replaced() {
    let mine = "signed-by = [\"acme\"] # always\nsharing = \"per-client\"\nresources = { memory-mib = 64 }\n\
                egress-limits = { connections = 2 }\n";
    let after = "\n# The next one\n[servers.z]\ncommand = [\"z\"]\n";
    let first = add(OTHER, &image('1', |_| {})).unwrap();
    let config = format!("{}{mine}{after}", first.replace("[servers.s]", "# Ours\n[servers.s]"));
    let second = image('2', |server| {
        server.egress = vec!["evil.example:443".into()];
        server.mounts =
            vec![Mount { source: "/srv".into(), target: "/data".into(), writable: true }];
        server.secrets = [("NEW".to_owned(), Secret::of("env:MCP_S__NEW".into()))].into();
    });
    let done = entry(&config).replace(&config, &second).unwrap().unwrap();
    assert!(done.text.starts_with(OTHER) && done.text.ends_with(after), "{}", done.text);
    assert!(done.text.contains("# Ours\n[servers.s]\nimage"), "{}", done.text);
    assert_eq!(entry(&done.text).values, entry(&add("", &second).unwrap()).values);
    // Lost lines are shown, with their comments.
    for line in mine.lines() {
        assert!(done.before.lines().any(|shown| shown == line), "{line}: {}", done.before);
    }
    assert_eq!(entry(&done.text).digest(), digest(done.after.as_bytes()));
    assert_eq!(
        done.warnings,
        [
            "`signed-by = \"acme\"` is lost: this signer is no longer required",
            "`sharing = \"per-client\"` is lost: clients share instances as by default",
            "`resources.memory-mib = 64` is lost: this limit no longer applies",
            "`egress-limits.connections = 2` is lost: this limit no longer applies",
            "`secrets.K.from = \"env:K\"` is lost: the secret is no longer delivered like this",
            "`egress = \"evil.example:443\"` is new: the server may reach this host",
            "`mounts = \"/srv:/data:rw\"` is new: the server sees this folder",
        ]
    );
    // The second time, there is nothing to replace, with any comments.
    let commented = done.text.replace("image =", "# mine\nimage =");
    assert!(entry(&commented).replace(&commented, &second).unwrap().is_none());
    assert_ne!(entry(&commented).digest(), entry(&done.text).digest());
}

#[test]
fn every_toml_form_of_an_entry_is_replaced() {
    let second = image('2', |server| server.env.clear());
    let expected = entry(&add("", &second).unwrap()).values;
    for before in [
        "# Mine\n[servers]\n# s\ns = { image = \"x\", signed-by = [\"acme\"] }\n\n[servers.other]\ncommand = [\"o\"]\n",
        "# Mine\nservers.s.image = \"x\"\nservers.s.signed-by = [\"acme\"]\nservers.other.command = [\"o\"]\n",
        "# Mine\nservers = { s = { image = \"x\", signed-by = [\"acme\"] }, other = { command = [\"o\"] } }\n",
        "# Mine\n[servers.s]\nimage = \"x\"\nsigned-by = [\"acme\"]\n[servers.s.secrets.OLD]\nfrom = \"env:OLD\"\n\
         [servers.other]\ncommand = [\"o\"]\n[servers.s.env]\nA = \"1\"\n",
    ] {
        let done = entry(before).replace(before, &second).unwrap().unwrap();
        assert_eq!(entry(&done.text).values, expected, "{}", done.text);
        // A comment above a dotted key belongs to the entry.
        let stays = !before.contains("servers.s.image");
        assert_eq!(done.text.starts_with("# Mine\n"), stays, "{}", done.text);
        assert_eq!(done.before.contains("# Mine\n"), !stays, "{}", done.before);
        assert_eq!(done.text.contains("# s\n"), before.contains("# s\n"), "{}", done.text);
        let all: toml::Table = done.text.parse().unwrap();
        assert_eq!(all["servers"]["other"]["command"][0].as_str(), Some("o"), "{}", done.text);
        assert!(done.warnings[0].contains("acme"), "{:?}", done.warnings);
    }
    assert!(ExistingEntry::of("[servers.x]\nurl = \"x\"\n", "s").unwrap().is_none());
    assert!(matches!(ExistingEntry::of("servers.s = 1\n", "s"), Err(EntryError::Shape)));
}

#[test]
fn edited_entry_has_another_digest() {
    let config = add(OTHER, &image('1', |_| {})).unwrap();
    let written = entry(&config).digest();
    for same in [
        format!("{config}\n[servers.z]\ncommand = [\"z\"]\n"),
        config.replace("[servers.s]", "# A comment above\n[servers.s]"),
        config.replace(OTHER, ""),
    ] {
        assert_eq!(entry(&same).digest(), written, "{same}");
    }
    for edited in [
        config.replace("\"1:1\"", "\"2:2\""),
        config.replace("egress = [\"a.example:443\"]", "egress = []"),
        config.replace("image = ", "signed-by = [\"acme\"]\nimage = "),
        config.replace("image = ", "# Never a.example\nimage = "),
    ] {
        assert_ne!(entry(&edited).digest(), written, "{edited}");
    }
}

#[test]
fn entry_with_another_program_is_reported() {
    let with = |run: Run| image('1', |server| server.run = run);
    let of = |name: &str| {
        let image = Image {
            name: name.into(),
            digest: Some(format!("sha256:{}", "0".repeat(64))),
            id: None,
        };
        with(Run::Image { image, arguments: vec![] })
    };
    let at = |url: &str| {
        let (url, transport) = (url.to_owned(), Transport::Auto);
        with(Run::Remote { url, transport, headers: Default::default() })
    };
    let program =
        |program: &str| with(Run::Command { program: program.into(), arguments: vec!["x".into()] });
    for (one, other, moves) in [
        (of("a.example/s:1"), of("a.example/s:2"), false),
        (of("a.example/s:1"), of("a.example/t:1"), true),
        (of("a.example:5000/s:1"), of("a.example:5000/s"), false),
        (of("a.example/s:1"), at("https://a.example"), true),
        (of("a.example/s:1"), program("s"), true),
        (at("https://a.example/mcp"), at("https://a.example/v2"), false),
        (at("https://a.example/mcp"), at("https://evil.example/mcp"), true),
        (at("https://a.example/mcp"), at("https://a.example:444/mcp"), true),
        (program("s"), program("s"), false),
        (program("s"), program("t"), true),
    ] {
        let config = add(OTHER, &one).unwrap();
        assert_eq!(entry(&config).moved(&other).unwrap().is_some(), moves, "{one:?} {other:?}");
    }
}

#[test]
fn references_of_secrets_and_headers_are_found() {
    let config = "[servers.s]\nurl = \"https://a.example\"\nsecrets.K.from = \"file:/k\"\n\
                  headers = { X = { by-client = { me = \"env:ME\" } }, Y = { from = \"env:Y\" } }\n";
    let entry = entry(config);
    for (name, from) in [("K", Some("file:/k")), ("X", None), ("Y", Some("env:Y")), ("Z", None)] {
        assert_eq!(entry.reference(name), from, "{name}");
    }
}

#[test]
fn differences_show_no_possible_secrets() {
    let word = ["AbC9", "dEf8", "GhI7", "jKl6", "MnO5"].concat();
    let first = add(OTHER, &image('1', |_| {})).unwrap();
    let config = first
        .replace("A = \"1\"", &format!("A = \"1\", B = \"{word}\", API_KEY = \"hunter-two\""))
        .replace("\"--quiet\"", &format!("\"--quiet\", \"--token\", \"{word}\""))
        .replace(
            "egress = ",
            &format!("# it was {word}\n# API_KEY = \"hunter-two\"\n# Hosts\negress = "),
        );
    let far = image('2', |server| {
        let (url, transport) = ("https://a.example/mcp".to_owned(), Transport::Auto);
        server.run = Run::Remote { url, transport, headers: Default::default() };
    });
    let shown = entry(&config).replace(&config, &far).unwrap().unwrap().before;
    assert_eq!(shown.matches("(not shown: it may be a secret)").count(), 5, "{shown}");
    assert!(!shown.contains(&word) && !shown.contains("hunter-two"), "{shown}");
    assert!(shown.contains("A = \"1\"") && shown.contains("\"--quiet\", "), "{shown}");
    assert!(shown.contains("# Hosts\n"), "{shown}");

    // A value that is also in the new entry is not a difference.
    let same = image('2', |server| {
        server.env.extend([("B".to_owned(), word.clone())]);
    });
    let shown = entry(&config).replace(&config, &same).unwrap().unwrap();
    assert!(shown.before.contains(&format!("B = \"{word}\"")), "{}", shown.before);

    let login = "[servers.s]\nurl = \"https://me:word@a.example/\"\n";
    let shown = entry(login).replace(login, &far).unwrap().unwrap().before;
    assert!(!shown.contains("word@"), "{shown}");
}
