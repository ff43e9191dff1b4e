//! The MCP registry and desktop clients.

mod support;

use portcullis_catalog::{Kind, Options, Packages, Run, Server, Transport};
use support::{found, noted, problems, secret, server};

#[test]
fn registry_server_is_read() {
    let mut options = Options::default();
    for set in ["maps=/srv/maps", "layer=[\"roads\", \"rivers\"]"] {
        portcullis_catalog::set(&mut options.values, "mapper", set).unwrap();
    }
    let found = found("server.json", &options);
    let mapper = server(&found, "com.example/mapper");
    assert_eq!(mapper.name, "mapper");
    let Run::Image { image, arguments } = &mapper.run else { panic!() };
    assert_eq!(image.to_string(), "registry.example.com/mapper:1.2.0");
    assert_eq!(arguments, &["serve", "alps", "--layer=roads", "--layer=rivers", "--verbose"]);
    assert_eq!((mapper.mounts[0].source.as_str(), mapper.mounts[0].writable), ("/srv/maps", false));
    assert_eq!(mapper.env["MODE"], "fast");
    assert_eq!(mapper.env["MAPPER_LEVEL"], "info");
    assert_eq!(mapper.env["MAPPER_URL"], "https://maps.example.com/v1");
    assert_eq!(mapper.secrets["MAPPER_KEY"].from, "env:MCP_MAPPER__MAPPER_KEY");
    noted(mapper, Kind::LeftOut, "4 ways");
    noted(mapper, Kind::LeftOut, "the network `host`");
}

#[test]
fn missing_registry_settings_are_requested() {
    let found = found("server.json", &Options::default());
    let problems = problems(&found, "com.example/mapper");
    assert!(problems.iter().any(|p| p.text.contains("--set maps=VALUE")), "{problems:?}");
    let mut options = Options::default();
    for set in ["maps=/srv/maps", "region=--evil"] {
        portcullis_catalog::set(&mut options.values, "mapper", set).unwrap();
    }
    let found = support::found("server.json", &options);
    let problems = support::problems(&found, "com.example/mapper");
    assert!(problems.iter().any(|p| p.text.contains("begins with `-`")), "{problems:?}");
}

#[test]
fn packages_become_programs_or_containers() {
    let one = |kind: &str, identifier: &str, packages| {
        let text = format!(
            r#"{{"name": "a.b/c", "version": "1", "packages": [{{"registryType": "{kind}",
            "identifier": "{identifier}", "version": "1.0.0", "transport": {{"type": "stdio"}}}}]}}"#
        );
        portcullis_catalog::read(&text, &Options { packages, ..Options::default() }).unwrap()
    };
    let found = one("npm", "@x/y", Packages::Process);
    let Run::Command { program, arguments } = &server(&found, "a.b/c").run else { panic!() };
    assert_eq!((program.as_str(), arguments.join(" ")), ("npx", "--yes @x/y@1.0.0".to_owned()));
    assert_eq!(server(&found, "a.b/c").egress, ["registry.npmjs.org:443"]);
    let found = one("pypi", "y", Packages::Container);
    let Run::Image { image, arguments } = &server(&found, "a.b/c").run else { panic!() };
    assert!(image.name.contains("uv"));
    assert_eq!(arguments, &["uvx", "y@1.0.0"]);
    assert!(server(&found, "a.b/c").fetches);
    for (kind, identifier) in
        [("mcpb", "https://e.example/x.mcpb"), ("npm", "--evil"), ("what", "x")]
    {
        problems(&one(kind, identifier, Packages::Process), "a.b/c");
    }
}

#[test]
fn desktop_client_file_is_read() {
    let found = found("claude.json", &Options::default());
    let files = server(&found, "files");
    let Run::Command { program, arguments } = &files.run else { panic!() };
    assert_eq!(program, "npx");
    assert_eq!(
        arguments,
        &["--yes", "@modelcontextprotocol/server-filesystem@2026.1.0", "/srv/work"]
    );
    assert!(!files.notes.iter().any(|note| note.text.contains("says no version")));
    // A folder in a person's arguments is visible to the server.
    let seen = |server: &Server| {
        let mounts = server.mounts.iter();
        mounts.map(|m| (m.source.clone(), m.target.clone(), m.writable)).collect::<Vec<_>>()
    };
    assert_eq!(seen(files), [("/srv/work".to_owned(), "/srv/work".to_owned(), false)]);
    noted(files, Kind::Deviates, "reads `/srv/work`");
    noted(files, Kind::Advice, "`:rw` behind that mount");
    let git = server(&found, "Git Tools");
    assert_eq!(seen(git), [("/srv/repo".to_owned(), "/srv/repo".to_owned(), false)]);
    assert_eq!(git.name, "git-tools");
    noted(git, Kind::Advice, "says no version");

    let boxed = server(&found, "boxed");
    let Run::Image { image, arguments } = &boxed.run else { panic!() };
    assert_eq!(
        (image.to_string().as_str(), arguments.join(" ")),
        ("workshop/boxed:3", "--quiet".to_owned())
    );
    assert_eq!(boxed.env["LEVEL"], "2");
    assert!(boxed.secrets.contains_key("BOXED_TOKEN"));
    let targets: Vec<_> = boxed.mounts.iter().map(|mount| mount.target.as_str()).collect();
    assert_eq!(targets, ["/box", "/ro"]);
    for text in ["--privileged", "the network `host`", "docker.sock", "`-p 80:80`"] {
        noted(boxed, Kind::LeftOut, text);
    }

    let local = server(&found, "local");
    assert_eq!(local.env.keys().collect::<Vec<_>>(), ["DEBUG"]);
    assert_eq!(local.secrets["API_KEY"].from, "env:MCP_LOCAL__API_KEY");
    assert_eq!(local.secrets["FROM_ENV"].from, "env:MCP_LOCAL__HOME_TOKEN");
    noted(local, Kind::Must, "is not written");
    noted(local, Kind::LeftOut, "`LD_PRELOAD`");

    let Run::Remote { headers, .. } = &server(&found, "remote").run else { panic!() };
    assert_eq!(headers["Authorization"].from, "env:MCP_REMOTE__AUTHORIZATION");
    noted(server(&found, "remote"), Kind::Must, "X-Mode");
    let stream = server(&found, "stream");
    assert_eq!(stream.only.as_deref(), Some(&["a".to_owned()][..]));
    let Run::Remote { transport, .. } = &stream.run else { panic!() };
    assert_eq!(*transport, Transport::StreamableHttp);
    let Run::Remote { url, transport, headers } = &server(&found, "bridged").run else { panic!() };
    assert_eq!((url.as_str(), *transport), ("https://far.example.com/sse", Transport::Sse));
    assert_eq!(headers["Authorization"].from, "env:MCP_BRIDGED__AUTH");
    let Run::Command { program, .. } = &server(&found, "windows").run else { panic!() };
    assert_eq!(program, "npx");

    for (name, text) in [
        ("leaky", "argument 2 looks like a secret"),
        ("shell", "`bash` runs what stands behind it"),
        ("off", "switched off"),
        ("gateway", "another gateway"),
        ("g\u{456}thub", "others can be taken for"),
    ] {
        let problems = problems(&found, name);
        assert!(problems.iter().any(|p| p.text.contains(text)), "{name}: {problems:?}");
    }
}

#[test]
fn unsuitable_folders_are_reported() {
    let text = r#"{"mcpServers": {
        "a": {"command": "npx", "args": ["x@1.0.0", "/tmp/work", "--root=/", "~/mine", "/etc"]},
        "b": {"command": "uvx", "args": ["--from", "/srv/own", "y", "--db=/srv/data"]}
    }}"#;
    let found = portcullis_catalog::read(text, &Options::default()).unwrap();
    let a = server(&found, "a");
    assert!(a.mounts.is_empty(), "{:?}", a.mounts);
    for path in ["/tmp/work", "/", "~/mine", "/etc"] {
        noted(a, Kind::Must, &format!("does not see `{path}`"));
    }
    let b = server(&found, "b");
    let targets: Vec<_> = b.mounts.iter().map(|mount| mount.target.as_str()).collect();
    assert_eq!(targets, ["/srv/data"]);
}

/// A variable can name a path: `server-memory` stores its graph in `MEMORY_FILE_PATH`.
#[test]
fn unmounted_paths_in_variables_are_reported() {
    let text = r#"{"mcpServers": {
        "memory": {"command": "npx", "args": ["-y", "@modelcontextprotocol/server-memory@2026.1.0"],
            "env": {"MEMORY_FILE_PATH": "/home/me/memory.json", "CERT": "/usr/share/ca.pem", "API": "https://a.example/v1",
                "DIRS": "/srv/data/a:/srv/other"}},
        "shown": {"command": "npx", "args": ["x@1.0.0", "/srv/data"], "env": {"DATA_DIR": "/srv/data/a"}},
        "boxed": {"command": "docker", "args": ["run", "-e", "DATA_DIR=/data", "example.com/boxed:1"]}
    }}"#;
    let found = portcullis_catalog::read(text, &Options::default()).unwrap();
    let unseen = |name: &str| {
        let notes = server(&found, name).notes.iter();
        notes
            .filter(|note| note.text.contains("does not see"))
            .map(|note| note.text.clone())
            .collect::<Vec<_>>()
    };
    let memory = unseen("memory");
    assert_eq!(memory.len(), 3, "{memory:?}");
    for place in [
        "`/home/me/memory.json` (`MEMORY_FILE_PATH`)",
        "`/srv/data/a` (`DIRS`)",
        "`/srv/other` (`DIRS`)",
    ] {
        noted(server(&found, "memory"), Kind::Must, place);
    }
    assert!(unseen("shown").is_empty() && unseen("boxed").is_empty());
}

#[test]
fn different_secrets_get_different_variables() {
    let text = format!(
        r#"{{"mcpServers": {{ "a": {{"command": "x", "env": {{"API_KEY": "{0}"}}}},
        "b": {{"command": "x", "env": {{"API_KEY": "{0}2"}}}} }}}}"#,
        secret()
    );
    let found = portcullis_catalog::read(&text, &Options::default()).unwrap();
    assert_eq!(server(&found, "a").secrets["API_KEY"].from, "env:MCP_A__API_KEY");
    assert_eq!(server(&found, "b").secrets["API_KEY"].from, "env:MCP_B__API_KEY");
}

#[test]
fn other_client_files_are_read() {
    let vscode = found("vscode.json", &Options::default());
    let one = server(&vscode, "one");
    assert_eq!(one.secrets["ONE_KEY"].from, "env:MCP_ONE__ONE_KEY");
    assert_eq!(one.secrets["ONE_KEY"].about.as_deref(), Some("The key"));
    noted(one, Kind::Must, "variables of a file");
    assert!(matches!(server(&vscode, "two").run, Run::Remote { .. }));
    assert!(problems(&vscode, "three")[0].text.contains("put into this argument"));

    let zed = found("zed.json", &Options::default());
    let Run::Command { program, arguments } = &server(&zed, "old").run else { panic!() };
    assert_eq!((program.as_str(), arguments.join(" ")), ("/opt/old", "a".to_owned()));
    server(&zed, "new");

    let codex = found("codex.toml", &Options::default());
    let docs = server(&codex, "docs");
    assert_eq!(docs.only.as_deref(), Some(&["find".to_owned()][..]));
    let Run::Remote { headers, .. } = &server(&codex, "far").run else { panic!() };
    assert_eq!(headers.len(), 3);
    assert_eq!(headers["X-Key"].from, "env:MCP_FAR__FAR_KEY");

    let goose = found("goose.yaml", &Options::default());
    assert_eq!(server(&goose, "fetch").secrets["FETCH_KEY"].from, "env:MCP_FETCH__FETCH_KEY");

    let opencode = found("opencode.json", &Options::default());
    assert_eq!(server(&opencode, "local").secrets["A_KEY"].from, "env:MCP_LOCAL__OTHER");
    let Run::Remote { headers, .. } = &server(&opencode, "far").run else { panic!() };
    assert_eq!(headers["Authorization"].from, "env:MCP_FAR__AUTH");
}
