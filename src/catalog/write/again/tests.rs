use super::*;
use crate::{
    Image, Mount, Secret,
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

fn key(name: &str) -> (String, Secret) {
    (name.to_owned(), Secret::of(format!("env:MCP_S__{name}")))
}

fn folder(source: &str, writable: bool) -> Mount {
    Mount { source: source.into(), target: "/data".into(), writable }
}

/// What becomes of the entry of a first description, with an operator's change, by a second.
fn becomes(
    first: &Server,
    operator: impl FnOnce(String) -> String,
    second: &Server,
    known: bool,
) -> MergedEntry {
    let text = operator(add(OTHER, first).unwrap());
    let before = said(first).unwrap();
    let done =
        again(&text, second, known.then_some(&before), &BTreeMap::new(), &BTreeSet::new()).unwrap();
    assert!(done.text.starts_with(OTHER), "{}", done.text);
    done
}

fn entry(done: &MergedEntry) -> toml::Table {
    let all: toml::Table = done.text.parse().unwrap();
    all["servers"]["s"].as_table().unwrap().clone()
}

#[test]
fn what_the_operator_wrote_stays() {
    let first = image('1', |_| {});
    let second = image('2', |server| {
        server.egress = vec!["a.example:443".into(), "evil.example:443".into()];
        server.env.insert("B".into(), "2".into());
        server.secrets.extend([key("NEW")]);
    });
    let mine = "# Ours\nsigned-by = [\"acme\"] # always\nsharing = \"per-client\"\nresources = { memory-mib = 64 }\n\
                egress-limits = { connections = 2 }\n";
    let operator = |text: String| {
        let text = text
            .replace("K = { from = \"env:K\" }", "K = { from = \"file:/k\", as = \"file\" }")
            .replace("\"a.example:443\"", "\"a.example:443\", \"own.example:443\"")
            .replace("A = \"1\"", "A = \"1\", OWN = \"x\"")
            .replace("hardening.user", "hardening.writable-root = true\nhardening.user");
        format!("{text}{mine}")
    };
    let done = becomes(&first, operator, &second, true);
    let entry = entry(&done);
    assert!(done.text.contains("# Ours\nsigned-by = [\"acme\"] # always\n"), "{}", done.text);
    assert!(entry["image"].as_str().unwrap().ends_with(&"2".repeat(64)));
    assert_eq!(entry["sharing"].as_str(), Some("per-client"));
    assert_eq!(entry["resources"]["memory-mib"].as_integer(), Some(64));
    assert_eq!(entry["egress-limits"]["connections"].as_integer(), Some(2));
    assert_eq!(entry["hardening"]["writable-root"].as_bool(), Some(true));
    assert_eq!(entry["secrets"]["K"]["from"].as_str(), Some("file:/k"));
    assert_eq!(entry["secrets"]["K"]["as"].as_str(), Some("file"));
    assert_eq!(entry["secrets"]["NEW"]["from"].as_str(), Some("env:MCP_S__NEW"));
    let hosts = ["a.example:443", "own.example:443", "evil.example:443"];
    assert_eq!(entry["egress"], Value::from(hosts.to_vec()));
    assert_eq!(entry["env"].as_table().unwrap().len(), 3);
    let told: Vec<&str> = done.changes.iter().map(|change| &*change.key).collect();
    assert_eq!(told, ["image", "env.B", "secrets.NEW", "egress"], "{:?}", done.changes);
    assert!(done.changes.iter().all(|change| change.taken));
    // Policies are made of what stands there.
    assert_eq!(done.server.egress, ["a.example:443", "evil.example:443"]);
    assert_eq!(done.server.secrets["K"].from, "file:/k");
    // Once more changes nothing.
    let (before, none) = (said(&second).unwrap(), BTreeSet::new());
    let once_more = again(&done.text, &second, Some(&before), &BTreeMap::new(), &none).unwrap();
    assert_eq!((&once_more.text, once_more.changes.len()), (&done.text, 0));
}

#[test]
fn what_is_not_asked_for_any_more_goes() {
    let first = image('1', |server| server.mounts = vec![folder("/srv/a", false)]);
    let second = image('2', |server| {
        (server.user, server.egress) = (None, vec![]);
        server.secrets.clear();
        server.env.clear();
        server.run = match &server.run {
            Run::Image { image, .. } => Run::Image { image: image.clone(), arguments: vec![] },
            other => other.clone(),
        };
    });
    for known in [true, false] {
        let done = becomes(&first, |text| text, &second, known);
        let entry = entry(&done);
        let mut left: Vec<&str> = entry.keys().map(String::as_str).collect();
        left.retain(|key| *key != "image");
        // Nobody knows whose a variable is.
        assert_eq!(left, if known { vec![] } else { vec!["env"] }, "{}", done.text);
        let gone = done.changes.iter().filter(|change| change.is.is_none()).count();
        assert_eq!(gone, if known { 6 } else { 5 }, "{:?}", done.changes);
    }
}

#[test]
fn what_the_operator_changed_is_theirs() {
    let first = image('1', |server| server.mounts = vec![folder("/srv/a", true)]);
    let as_first = image('2', |server| server.mounts = vec![folder("/srv/a", true)]);
    let other = image('2', |server| {
        server.user = Some("2000:2000".into());
        server.run = match &server.run {
            Run::Image { image, .. } => {
                Run::Image { image: image.clone(), arguments: vec!["--other".into()] }
            }
            other => other.clone(),
        };
        server.egress = vec!["a.example:443".into(), "b.example:443".into()];
        server.env.insert("A".into(), "3".into());
    });
    let operator = |text: String| {
        text.replace("hardening.user = \"1:1\"", "hardening.user = \"9:9\"")
            .replace("[\"--quiet\"]", "[\"--read-only\"]")
            .replace("A = \"1\"", "A = \"2\"")
            .replace("egress = [\"a.example:443\"]", "egress = []")
            .replace("/srv/a:/data:rw", "/srv/a:/data")
            .replace("secrets = { K = { from = \"env:K\" } }\n", "")
    };
    for (second, told) in [(&as_first, 0), (&other, 3)] {
        let done = becomes(&first, operator, second, true);
        let entry = entry(&done);
        assert_eq!(entry["hardening"]["user"].as_str(), Some("9:9"));
        assert_eq!(entry["command"], Value::from(vec!["--read-only"]));
        assert_eq!(entry["env"]["A"].as_str(), Some("2"));
        assert!(entry.get("secrets").is_none(), "{}", done.text);
        let hosts = if told == 0 { vec![] } else { vec!["b.example:443"] };
        assert_eq!(entry["egress"], Value::from(hosts.clone()));
        assert_eq!(done.server.egress, hosts);
        assert!(done.server.secrets.is_empty());
        let kept = done.changes.iter().filter(|change| !change.taken).count();
        assert_eq!(kept, told, "{:?}", done.changes);
    }
    let done = becomes(&first, operator, &as_first, true);
    assert_eq!(entry(&done)["mounts"], Value::from(vec!["/srv/a:/data"]), "{}", done.text);
    assert!(done.server.mounts.is_empty());
}

#[test]
fn what_the_operator_changed_is_theirs_whatever_comes_between() {
    let first = image('1', |server| {
        server.egress.push("b.example:443".into());
        server.mounts = vec![folder("/srv/a", true)];
    });
    let arguments = |server: &mut Server, word: &str| {
        if let Run::Image { arguments, .. } = &mut server.run {
            *arguments = vec![word.to_owned()];
        }
    };
    // What the operator wrote, or what they took out, for a version.
    let second = image('2', |server| {
        arguments(server, "--read-only");
        server.env = [("A".to_owned(), "1".to_owned()), ("OWN".to_owned(), "x".to_owned())].into();
        server.user = Some("9:9".into());
        server.egress = vec!["a.example:443".into(), "own.example:443".into()];
        server.secrets = [key("OWN")].into();
    });
    let third = image('3', |server| {
        arguments(server, "--write");
        server.env.insert("B".into(), "1".into());
        server.egress.push("b.example:443".into());
        server.mounts = vec![folder("/srv/a", true)];
    });
    let text = add(OTHER, &first).unwrap();
    let text = text
        .replace("[\"--quiet\"]", "[\"--read-only\"]")
        .replace("A = \"1\"", "OWN = \"x\"")
        .replace("hardening.user = \"1:1\"", "hardening.user = \"9:9\"")
        .replace("\"b.example:443\"", "\"own.example:443\"")
        .replace("mounts = [\"/srv/a:/data:rw\"]\n", "")
        .replace("K = { from = \"env:K\" }", "OWN = { from = \"env:MINE\" }");
    let none = BTreeSet::new();
    let two = again(&text, &second, Some(&said(&first).unwrap()), &BTreeMap::new(), &none).unwrap();
    assert_eq!(two.changes.len(), 1, "{:?}", two.changes);
    assert_eq!(two.said["env"]["A"].as_str(), Some(""));
    let three = again(&two.text, &third, Some(&two.said), &BTreeMap::new(), &none).unwrap();
    let entry = entry(&three);
    assert_eq!(entry["command"], Value::from(vec!["--read-only"]));
    assert_eq!(entry["env"]["OWN"].as_str(), Some("x"));
    assert_eq!(entry["env"]["B"].as_str(), Some("1"));
    assert_eq!(entry["env"].get("A"), None);
    assert_eq!(entry["hardening"]["user"].as_str(), Some("9:9"));
    assert_eq!(entry["egress"], Value::from(vec!["a.example:443", "own.example:443"]));
    assert!(entry.get("mounts").is_none(), "{}", three.text);
    let secrets: Vec<&String> = entry["secrets"].as_table().unwrap().keys().collect();
    assert_eq!(secrets, ["OWN"]);
    // What was the description's all along is still.
    let fourth = image('4', |server| server.egress = vec![]);
    let four = again(&three.text, &fourth, Some(&three.said), &BTreeMap::new(), &none).unwrap();
    assert!(!four.text.contains("B = ") && !four.text.contains("a.example:443"), "{}", four.text);
    assert!(four.text.contains("own.example:443"), "{}", four.text);
}

#[test]
fn what_comes_to_run_something_else_is_told() {
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
        let (url, transport) = (url.to_owned(), crate::Transport::Auto);
        with(Run::Remote { url, transport, headers: Default::default() })
    };
    let program =
        |program: &str| with(Run::Command { program: program.into(), arguments: vec!["x".into()] });
    for (one, other, moves) in [
        (of("a.example/s:1"), of("a.example/s:2"), false),
        (of("a.example/s:1"), of("a.example/t:1"), true),
        (of("a.example/s:1"), at("https://a.example"), true),
        (at("https://a.example/mcp"), at("https://a.example/v2"), false),
        (at("https://a.example/mcp"), at("https://evil.example/mcp"), true),
        (at("https://a.example/mcp"), at("https://a.example:444/mcp"), true),
        (program("s"), program("s"), false),
        (program("s"), program("t"), true),
    ] {
        let config = add(OTHER, &one).unwrap();
        assert_eq!(moved(&config, &other).unwrap().is_some(), moves, "{one:?} {other:?}");
    }
}

#[test]
fn every_form_of_an_entry_is_changed_in_its_place() {
    let second = image('2', |server| server.env.clear());
    for before in [
        "[servers]\ns = { image = \"x\", signed-by = [\"acme\"], egress = [\"b.example:443\"] }\n",
        "servers.s.image = \"x\"\nservers.s.signed-by = [\"acme\"]\nservers.s.egress = [\"b.example:443\"]\n",
        "[servers.s]\nimage = \"x\" # here\nsigned-by = [\"acme\"]\negress = [\n  \"b.example:443\", # b\n]\n\
         [servers.s.secrets.OLD]\nfrom = \"env:OLD\"\n[servers.s.secrets.K]\nfrom = \"file:/k\"\n",
    ] {
        let done = again(before, &second, None, &BTreeMap::new(), &BTreeSet::new()).unwrap();
        let entry = entry(&done);
        assert_eq!(entry["signed-by"], Value::from(vec!["acme"]), "{}", done.text);
        assert_eq!(entry["egress"], Value::from(vec!["a.example:443"]), "{}", done.text);
        assert_eq!(entry["hardening"]["user"].as_str(), Some("1:1"));
        assert_eq!(entry["secrets"].as_table().unwrap().len(), 1, "{}", done.text);
        assert_eq!(done.text.contains("# here"), before.contains("# here"), "{}", done.text);
    }
    let far =
        again("[servers.x]\nurl = \"x\"\n", &second, None, &BTreeMap::new(), &BTreeSet::new());
    assert!(matches!(far, Err(Unwritten::Shape)));
}

#[test]
fn a_reference_that_is_named_now_takes_the_place_of_the_one_that_was() {
    let mut second = image('2', |_| {});
    let from = "vault:kv/s#k";
    second.secrets.insert("K".into(), Secret::of(from.into()));
    let text = add(OTHER, &image('1', |_| {})).unwrap();
    let text = text.replace("from = \"env:K\"", "from = \"file:/k\", as = \"file\"");
    for (named, expected) in [(None, "file:/k"), (Some(from), from)] {
        let named = named.into_iter().map(str::to_owned).collect();
        let done = again(&text, &second, None, &BTreeMap::new(), &named).unwrap();
        let key = &entry(&done)["secrets"]["K"];
        assert_eq!(key["from"].as_str(), Some(expected));
        assert_eq!(key["as"].as_str(), Some("file"));
    }
}

#[test]
fn a_reference_that_a_description_chose_and_nobody_confirmed_does_not_stay() {
    let first = image('1', |server| {
        server.secrets = [("K".to_owned(), Secret::of("env:HOME".into()))].into();
    });
    let second = image('2', |server| server.secrets = [key("K")].into());
    let (text, before) = (add(OTHER, &first).unwrap(), said(&first).unwrap());
    let chosen = || BTreeMap::from([("K".to_owned(), "env:HOME".to_owned())]);
    let other = || BTreeMap::from([("K".to_owned(), "env:OTHER".to_owned())]);
    for (confirmed, config, expected) in [
        (BTreeMap::new(), text.clone(), "env:MCP_S__K"),
        (other(), text.clone(), "env:MCP_S__K"),
        (chosen(), text.clone(), "env:HOME"),
        (BTreeMap::new(), text.replace("env:HOME", "file:/k"), "file:/k"),
    ] {
        let by_operator = written_by_operator(&config, "s", &before).unwrap();
        assert_eq!(by_operator.contains("K"), config.contains("file:/k"));
        let done = again(&config, &second, Some(&before), &confirmed, &BTreeSet::new()).unwrap();
        assert_eq!(entry(&done)["secrets"]["K"]["from"].as_str(), Some(expected));
        let told = done.changes.iter().any(|change| change.key == "secrets.K");
        assert_eq!(told, expected == "env:MCP_S__K", "{:?}", done.changes);
    }
}

#[test]
fn an_entry_that_runs_something_else_strayed() {
    let said: toml::Table = "image = \"a.example:5000/s:1@sha256:00\"\n".parse().unwrap();
    for (entry, expected) in [
        ("image = \"a.example:5000/s:2\"", false),
        ("image = \"a.example:5000/s@sha256:11\"\ncommand = [\"x\"]", false),
        ("image = \"a.example:5000/t:1@sha256:00\"", true),
        ("command = [\"s\"]", true),
        ("url = \"https://a.example\"", true),
    ] {
        let config = format!("[servers.s]\n{entry}\n");
        assert_eq!(strayed(&config, "s", &said), Ok(expected), "{entry}");
        assert_eq!(strayed(&config, "t", &said), Ok(true));
    }
    let said: toml::Table = "command = [\"s\", \"-a\"]\n".parse().unwrap();
    for (program, expected) in [("s", false), ("t", true)] {
        let config = format!("[servers.s]\ncommand = [\"{program}\"]\n");
        assert_eq!(strayed(&config, "s", &said), Ok(expected));
    }
}

#[test]
fn what_may_be_a_secret_is_not_told() {
    let word = ["AbC9", "dEf8", "GhI7", "jKl6", "MnO5"].concat();
    let operator = |text: String| {
        text.replace("A = \"1\"", &format!("A = \"{word}\""))
            .replace("\"--quiet\"", &format!("\"--token\", \"{word}\""))
    };
    let second = image('2', |server| {
        server.env.clear();
        server.run = Run::Remote {
            url: "https://a.example/mcp".into(),
            transport: crate::Transport::Auto,
            headers: Default::default(),
        };
    });
    let done = becomes(&image('1', |_| {}), operator, &second, true);
    let told = format!("{:?}", done.changes);
    assert!(told.contains("not shown") && !told.contains(&word), "{told}");
}
