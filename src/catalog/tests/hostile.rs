//! Hostile and malformed files.

mod support;

use portcullis_catalog::{
    Kind, MAX_BYTES, Options, describe, enabled, parse, read, set, settings, tool_lists,
};
use proptest::prelude::*;
use support::{fixture, noted, problems, server};

fn refused(text: &str) -> String {
    match parse(text) {
        Ok(node) => panic!("taken: {node:?}"),
        Err(problem) => {
            assert!(problem.place.is_some() || text.len() > MAX_BYTES, "{problem:?}");
            problem.text
        }
    }
}

#[test]
fn excessive_or_duplicate_content_is_refused() {
    assert!(refused(&" ".repeat(MAX_BYTES + 1)).contains("MiB"));
    assert!(refused(&format!("{}{}", "[".repeat(100_000), "]".repeat(100_000))).contains("JSON"));
    assert!(refused(&format!("a: {}{}", "[".repeat(1000), "]".repeat(1000))).contains("YAML"));
    assert!(refused(&format!("{}1{}", "[".repeat(70), "]".repeat(70))).contains("deeper"));
    assert!(refused("a: 1\na: 2\n").contains("stands twice"));
    assert!(refused(r#"{"a": 1, "\u0061": 2}"#).contains("stands twice"));
    assert!(refused("a: &x 1\nb: *x\n").contains("aliases"));
    assert!(refused("a: !!python/object x\n").contains("tag"));
    assert!(refused("a: 1\n---\nb: 2\n").contains("second document"));
    assert!(refused("? [a]\n: 1\n").contains("plain text"));
    assert!(refused("").contains("empty"));
    assert!(refused("{'a': 1}").contains("JSON"));
    assert!(refused("[a]\nb = = 1\n").contains("TOML"));
    let many = format!("[{}]", "1,".repeat(1_100_000));
    assert!(refused(&many).contains("values"));
}

#[test]
fn alias_bomb_is_refused_at_its_first_alias() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..30 {
        text +=
            &format!("a{level}: &a{level} [{}]\n", vec![format!("*a{}", level - 1); 9].join(", "));
    }
    assert!(refused(&text).contains("aliases"));
}

#[test]
fn positions_are_those_of_the_file() {
    let problem = parse("a:\n  b: 1\n  b: 2\n").unwrap_err();
    assert_eq!(problem.place.map(|p| (p.line, p.column)), Some((3, 3)));
    let problem = parse("{\n  \"é\": 1, \"é\": 2\n}").unwrap_err();
    assert_eq!(problem.place.map(|p| (p.line, p.column)), Some((2, 11)));
}

/// A server of a catalog with these lines.
fn catalog(lines: &str) -> String {
    format!(
        "name: c\nregistry:\n  s:\n    type: server\n    image: i:1\n    disableNetwork: true\n{lines}"
    )
}

#[test]
fn only_the_operator_names_folders() {
    let config = "    config:\n      - name: s\n        type: object\n        properties:\n          \
                  dir: { type: string, default: /srv/payroll }\n          dirs: { type: array, default: [/srv/payroll] }\n";
    let mounts = |volume: &str, sets: &[&str]| {
        let mut options = Options::default();
        sets.iter().for_each(|text| set(&mut options.values, "s", text).unwrap());
        options.values.insert("other".into(), serde_json::json!({ "dir": "/srv/others" }));
        let text = catalog(&format!("    volumes: ['{volume}']\n{config}"));
        let found = read(&text, &options).unwrap();
        let server = server(&found, "s").clone();
        let noted_left_out = server.notes.iter().any(|note| note.kind == Kind::LeftOut);
        assert_eq!(server.mounts.is_empty(), noted_left_out, "{volume}: {:#?}", server.notes);
        server.mounts.iter().map(|mount| mount.source.clone()).collect::<Vec<_>>()
    };
    for (volume, set, taken) in [
        ("{{s.dir}}:/a:rw", &["dir=/srv/mine"][..], &["/srv/mine"][..]),
        ("{{s.dir|mount_as:/a}}", &["dir=/srv/mine/"], &["/srv/mine"]),
        ("{{s.dirs|volume|into}}", &["dirs=[\"/srv/a\", \"/srv/b\"]"], &["/srv/a", "/srv/b"]),
        // Defaults, constants, settings of another server, and text before or after the value.
        ("{{s.dir}}:/a:rw", &[], &[]),
        ("{{s.dirs|volume|into}}", &[], &[]),
        ("{{s.none|or:/srv/payroll}}:/a", &[], &[]),
        ("{{s.none|or:/srv/payroll}}:/a", &["dir=/srv/mine"], &[]),
        ("/srv/payroll:/a", &[], &[]),
        ("{{other.dir}}:/a", &[], &[]),
        ("/srv{{s.dir}}:/a", &["dir=/mine"], &[]),
        ("{{s.dir}}/private:/a", &["dir=/srv/mine"], &[]),
    ] {
        assert_eq!(mounts(volume, set), taken, "{volume} {set:?}");
    }
}

#[test]
fn settings_of_a_profile_cannot_name_folders() {
    let image = "image: workshop/weather:1\n";
    let volumes = format!("{image}        volumes: ['{{{{weather.data}}}}:/data']\n");
    let text = fixture("profile.yaml").replace(image, &volumes);
    assert!(text.contains("data: /srv/w }") && text.contains(&volumes));
    let mut options = Options::default();
    for set in [None, Some("/srv/mine")] {
        if let Some(folder) = set {
            options
                .values
                .insert("weather".into(), serde_json::json!({ "data": folder, "limit": 2 }));
        }
        let found = read(&text, &options).unwrap();
        let weather = server(&found, "weather");
        let sources: Vec<&str> = weather.mounts.iter().map(|mount| &*mount.source).collect();
        assert_eq!(sources, set.into_iter().collect::<Vec<_>>(), "{:#?}", weather.notes);
    }
}

#[test]
fn registry_entry_cannot_set_mounts_or_users() {
    let arguments = |list: &[&str]| {
        let list: Vec<_> = list
            .iter()
            .map(|value| serde_json::json!({ "type": "positional", "value": value }))
            .collect();
        serde_json::json!({ "name": "a.b/c", "version": "1", "packages": [{
            "registryType": "oci", "identifier": "i:1", "transport": { "type": "stdio" },
            "runtimeArguments": list,
        }] })
        .to_string()
    };
    for list in [
        &["-v", "/srv/payroll:/a:rw"][..],
        &["--volume=/srv/payroll:/a"],
        &["--mount", "type=bind,src=/srv/payroll,dst=/a"],
        &["-u", "1000:1000"],
        &["--user=1000:1000"],
        &["--network", "host"],
        &["--privileged"],
        &["--cap-add", "SYS_ADMIN"],
        &["--device", "/dev/kvm"],
        &["--add-host", "api.example.com:127.0.0.1"],
        &["--security-opt", "seccomp=unconfined"],
    ] {
        let found = read(&arguments(list), &Options::default()).unwrap();
        let c = server(&found, "a.b/c");
        assert!(c.mounts.is_empty() && c.user.is_none() && c.egress.is_empty(), "{c:#?}");
        assert!(!c.notes.iter().any(|note| note.kind == Kind::Deviates), "{:#?}", c.notes);
        let left_out = c.notes.iter().filter(|note| note.kind == Kind::LeftOut).count();
        assert_eq!(left_out, 1, "{list:?}: {:#?}", c.notes);
    }
}

#[test]
fn foreign_entries_cannot_list_local_or_private_hosts() {
    let text = catalog(
        "    allowHosts: ['169.254.169.254:80', '127.0.0.1:2375', 'localhost:2375', '10.0.0.1:443', \
         '[::ffff:127.0.0.1]:2375', '[fd00:ec2::254]:80', 'api.example.com:443', '1.1.1.1:443']\n",
    )
    .replace("    disableNetwork: true\n", "");
    let found = read(&text, &Options::default()).unwrap();
    let s = server(&found, "s");
    assert_eq!(s.egress, ["1.1.1.1:443", "api.example.com:443"]);
    for host in
        ["169.254.169.254", "tcp://127.0.0.1:2375", "localhost", "10.0.0.1", "fd00:ec2::254"]
    {
        noted(s, Kind::LeftOut, host);
    }
    for host in &s.egress {
        noted(s, Kind::Deviates, &format!("it reaches `{host}`"));
    }

    for url in [
        "https://169.254.169.254/mcp",
        "http://localhost:2375/mcp",
        "https://10.1:443/mcp",
        "https://[::1]/",
    ] {
        let text = format!("registry:\n  r:\n    type: remote\n    remote: {{url: '{url}'}}\n");
        let found = read(&text, &Options::default()).unwrap();
        let text = &problems(&found, "r")[0].text;
        assert!(text.contains("a network around it"), "{url}: {text}");
        // A client's own file is written by the person.
        let text = format!(r#"{{"mcpServers": {{"r": {{"url": "{url}"}}}}}}"#);
        server(&read(&text, &Options::default()).unwrap(), "r");
        problems(&read(&text, &Options { foreign: true, ..Options::default() }).unwrap(), "r");
    }
}

#[test]
fn deviations_are_never_displaced_by_other_notes() {
    let hosts: Vec<String> = (0..201).map(|nth| format!("h{nth}.example.com")).collect();
    let text = |most: usize| {
        let hosts = hosts[..most].join(", ");
        catalog(&format!("    allowHosts: [{hosts}]\n")).replace("    disableNetwork: true\n", "")
    };
    let noted_left_out = |text: &str| {
        let found = read(text, &Options::default()).unwrap();
        let notes = &server(&found, "s").notes;
        notes.iter().filter(|note| note.kind == Kind::Deviates).count()
    };
    assert_eq!(noted_left_out(&text(200)), 200);
    // Other notes never displace deviations.
    let keys: String = (0..300).map(|nth| format!("    junk{nth}: 1\n")).collect();
    assert_eq!(noted_left_out(&format!("{}{keys}", text(100))), 100);
    let found = read(&text(201), &Options::default()).unwrap();
    assert!(problems(&found, "s")[0].text.contains("more than 200 ways"));
}

#[test]
fn foreign_client_file_gets_no_local_access() {
    let text = r#"{"mcpServers": {"s": {"command": "docker", "args": ["run", "-v", "/srv/payroll:/a", "-u", "1000",
        "i:1"], "env": {"TOKEN": "${AWS_SECRET_ACCESS_KEY}"}}}}"#;
    let own = read(text, &Options::default()).unwrap();
    let own = server(&own, "s");
    assert_eq!((own.mounts.len(), own.user.as_deref()), (1, Some("1000:1000")));
    assert_eq!(own.secrets["TOKEN"].from, "env:MCP_S__AWS_SECRET_ACCESS_KEY");
    let found = read(text, &Options { foreign: true, ..Options::default() }).unwrap();
    let foreign = server(&found, "s");
    assert!(foreign.mounts.is_empty() && foreign.user.is_none(), "{foreign:#?}");
    assert_eq!(foreign.secrets["TOKEN"].from, "env:MCP_S__AWS_SECRET_ACCESS_KEY");
}

/// Runs all readers.
fn all(text: &str) {
    let options = Options::default();
    if let Ok(found) = read(text, &options) {
        for entry in &found.servers {
            if let Ok(server) = &entry.server {
                assert!(portcullis_catalog::is_legal(&server.name), "{:?}", server.name);
            }
        }
    }
    let _ = (enabled(text), settings(text), tool_lists(text), describe(text));
}

/// Fixtures with parts removed, repeated and moved.
fn mangled() -> impl Strategy<Value = String> {
    let names = [
        "catalog.yaml",
        "profile.yaml",
        "artifact.json",
        "server.json",
        "claude.json",
        "vscode.json",
        "codex.toml",
        "submission.yaml",
        "goose.yaml",
        "opencode.json",
        "zed.json",
        "tools.yaml",
    ];
    let texts: Vec<String> = names.iter().map(|name| fixture(name)).collect();
    let cut = (any::<prop::sample::Index>(), 0usize..40, any::<prop::sample::Index>(), 0u8..4);
    (prop::sample::select(texts), prop::collection::vec(cut, 1..6)).prop_map(|(mut text, cuts)| {
        for (at, length, to, kind) in cuts {
            let bounds: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
            if bounds.is_empty() {
                break;
            }
            let start = bounds[at.index(bounds.len())];
            let end = bounds.iter().copied().find(|b| *b >= start + length).unwrap_or(text.len());
            let piece = text[start..end].to_owned();
            match kind {
                0 => text.replace_range(start..end, ""),
                1 => text.insert_str(bounds[to.index(bounds.len())], &piece),
                2 => text.replace_range(start..end, "null"),
                _ => text.replace_range(start..end, "{{x|or:[-v,\u{202e}]}}"),
            }
        }
        text
    })
}

proptest! {
    #[test]
    fn arbitrary_text_causes_no_panic(text in ".{0,200}") {
        all(&text);
    }

    #[test]
    fn arbitrary_structure_causes_no_panic(text in "([{}\\[\\]:,\"'&*!|>%@`#?=\n -]|a|b|1|registry|servers|name|type){0,80}") {
        all(&text);
    }

    #[test]
    fn mangled_files_cause_no_panic(text in mangled()) {
        all(&text);
    }
}
