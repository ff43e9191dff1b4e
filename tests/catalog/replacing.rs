//! Replacements: only the operator can replace an entry that was edited or has another origin.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::{
    CONFIG, Door, Registry, bare, checks, config, folder, image, ok, read, run, secret, table,
    write,
};

fn digest(of: char) -> String {
    format!("sha256:{}", of.to_string().repeat(64))
}

fn image(name: &str, of: char) -> String {
    format!("example.com/{name}@{}", digest(of))
}

/// An entry of a catalog.
fn entry(of: char, hosts: &str) -> String {
    format!(
        "name: search\ntype: server\nimage: {}\nallowHosts: [{hosts}]\nsecrets: [{{name: k, env: KEY}}]\n\
         tools: [{{name: find}}, {{name: erase}}]\n",
        image("search", of)
    )
}

/// A profile of servers: each with its image and the tools that are left on.
fn profile(id: &str, servers: &[(&str, char, Option<&[&str]>)]) -> String {
    let servers: Vec<Value> = servers
        .iter()
        .map(|(name, of, tools)| {
            let image = image(&name.to_lowercase(), *of);
            let server = json!({
                "name": name, "type": "server", "image": image, "allowHosts": ["api.example.com:443"],
                "secrets": [{ "name": "token", "env": "TOKEN" }],
            });
            let mut outer =
                json!({ "type": "image", "image": image, "config": {}, "snapshot": { "server": server } });
            if let Some(tools) = tools {
                outer["tools"] = json!(tools);
            }
            outer
        })
        .collect();
    json!({ "version": 1, "id": id, "name": id, "servers": servers }).to_string()
}

fn policies(dir: &Path) -> String {
    read(dir, "policies/server-search.cedar")
}

/// An update by the author of the catalog or of the image.
#[test]
fn unedited_entry_is_replaced_and_the_difference_shown() {
    let dir = folder();
    let dir = dir.path();
    write(dir, "x.yaml", &entry('1', "api.example.com"));
    ok(dir, &["server", "import", "x.yaml"]);
    write(dir, "x.yaml", &entry('2', "evil.example.com"));
    let before = config(dir);
    let dry = ok(dir, &["server", "import", "x.yaml", "--replace", "--dry-run"]);
    let (code, unconfirmed, err) = bare(dir, &["server", "import", "x.yaml", "--replace"]);
    assert!(code == 1 && err.contains("was not confirmed"), "{err}");
    assert_eq!(config(dir), before);
    let out = ok(dir, &["server", "import", "x.yaml", "--replace"]);
    for line in [
        format!("-image = \"{}\"", image("search", '1')),
        format!("+image = \"{}\"", image("search", '2')),
        "-egress = [\"api.example.com:443\"]".to_owned(),
        "+egress = [\"evil.example.com:443\"]".to_owned(),
        "warning: `egress = \"evil.example.com:443\"` is new: the server may reach this host"
            .to_owned(),
    ] {
        for out in [&dry, &unconfirmed, &out] {
            assert!(out.lines().any(|told| told.trim() == line), "{line} is missing: {out}");
        }
    }
    assert!(!out.contains("lost"), "{out}");
    let after = table(dir)["servers"]["search"].clone();
    assert_eq!(after["image"].as_str(), Some(&*image("search", '2')));
    assert_eq!(after["egress"], toml::Value::from(vec!["evil.example.com:443"]));
    assert!(config(dir).starts_with(CONFIG), "{}", config(dir));
    // The policies were as they had been written, and follow.
    assert!(policies(dir).contains(&digest('2')) && !policies(dir).contains("api.example.com"));
}

/// An update of an entry that the operator narrowed.
#[test]
fn edited_entry_is_replaced_only_if_named() {
    let dir = folder();
    let dir = dir.path();
    write(dir, "x.yaml", &entry('1', "api.example.com"));
    ok(dir, &["server", "import", "x.yaml"]);
    let imported = config(dir);
    let again = ["server", "import", "x.yaml", "--replace"];
    let named = ["server", "import", "x.yaml", "--replace=search"];
    write(dir, "x.yaml", &entry('2', "api.example.com, evil.example.com"));
    // Any edit counts, whatever it says.
    for (from, to) in [
        ("egress = [\"api.example.com:443\"]", "egress = []"),
        ("env:MCP_SEARCH__KEY", "env:MINE"),
        ("egress =", "# Never evil.example.com\negress ="),
    ] {
        let edited = imported.replace(from, to);
        write(dir, "portcullis.toml", &edited);
        let (code, out, err) = run(dir, &again);
        assert!(code == 1 && err.contains("its entry was edited since"), "{to}: {out}{err}");
        assert!(err.contains("--replace=search"), "{err}");
        assert_eq!(config(dir), edited);
    }

    let key = dir.join("k");
    fs::write(&key, "x").unwrap();
    let from_file = format!("{{ from = \"file:{}\", as = \"file\" }}", key.display());
    let text = imported
        .replace("{ from = \"env:MCP_SEARCH__KEY\" }", &from_file)
        .replace("egress =", "signed-by = [\"acme\"] # always\nsharing = \"per-client\"\negress =");
    let signer = "\n[signers.acme]\nkey = \"acme.pub\"\n";
    write(dir, "portcullis.toml", &format!("{text}{signer}"));
    let before = config(dir);
    assert_ne!(run(dir, &again).0, 0);
    let dry = ok(dir, &[&named[..], &["--dry-run"]].concat());
    let (code, unconfirmed, err) = bare(dir, &named);
    assert!(code == 1 && err.contains("was not confirmed"), "{err}");
    let (code, json, _) = bare(dir, &[&named[..], &["--format", "json"]].concat());
    assert_eq!((code, config(dir)), (1, before));
    let out = ok(dir, &named);
    let lost = [
        "-signed-by = [\"acme\"] # always".to_owned(),
        "-sharing = \"per-client\"".to_owned(),
        format!("-secrets = {{ KEY = {from_file} }}"),
        "warning: you wrote or edited the entry in the config: its lines with `-` are lost"
            .to_owned(),
        "warning: `signed-by = \"acme\"` is lost: this signer is no longer required".to_owned(),
        "warning: `sharing = \"per-client\"` is lost: clients share instances as by default"
            .to_owned(),
        format!(
            "warning: `secrets.KEY.from = \"file:{}\"` is lost: the secret is no longer delivered like this",
            key.display()
        ),
        "warning: `egress = \"evil.example.com:443\"` is new: the server may reach this host"
            .to_owned(),
    ];
    for line in &lost {
        for out in [&dry, &unconfirmed, &out] {
            assert!(out.lines().any(|told| told.trim() == line), "{line} is missing: {out}");
        }
    }
    let shown: Value = serde_json::from_str(&json).unwrap();
    let one = &shown["added"][0];
    assert!(one["diff"].as_str().unwrap().contains(&lost[0]), "{json}");
    let warnings: Vec<&str> =
        one["warnings"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for line in &lost[3..] {
        assert!(warnings.contains(&&line["warning: ".len()..]), "{line}: {json}");
    }
    let after = table(dir)["servers"]["search"].clone();
    assert!(after.get("signed-by").is_none() && after.get("sharing").is_none(), "{after}");
    assert_eq!(after["secrets"]["KEY"]["from"].as_str(), Some("env:MCP_SEARCH__KEY"));
    assert!(config(dir).ends_with(signer) && config(dir).starts_with(CONFIG), "{}", config(dir));
    // It is the description's now.
    write(dir, "x.yaml", &entry('3', "api.example.com"));
    ok(dir, &again);
}

#[test]
fn entry_is_replaced_by_an_image_only_after_confirmation() {
    let registry = Registry::start(&Door::default());
    let dir = folder();
    let dir = dir.path();
    image::version(&registry.host(), "x", "1", "1");
    let reference = format!("{}/x:1", registry.host());
    let add = ["add", "image", &reference, "--name", "x"];
    ok(dir, &add);
    image::version(&registry.host(), "x", "1", "2");
    let out = ok(dir, &[&add[..], &["--replace"]].concat());
    assert!(out.contains("+image = "), "{out}");
    let text = config(dir).replace("image =", "sharing = \"per-client\"\nimage =");
    write(dir, "portcullis.toml", &text);
    let named = [&add[..], &["--replace=x"]].concat();
    let (code, out, err) = bare(dir, &named);
    assert!(code == 1 && err.contains("was not confirmed"), "{out}{err}");
    assert!(out.contains("-sharing = \"per-client\""), "{out}");
    assert_eq!(config(dir), text);
    ok(dir, &named);
    assert!(!config(dir).contains("per-client"), "{}", config(dir));
}

/// The output may end up in a log.
#[test]
fn difference_shows_no_possible_secrets() {
    let dir = folder();
    let dir = dir.path();
    write(dir, "x.yaml", &entry('1', "api.example.com"));
    ok(dir, &["server", "import", "x.yaml"]);
    let env = format!("env = {{ LEVEL = \"info\", PASSWORD = \"{}\" }} # it was {0}\n", secret());
    let text = config(dir).replace("egress =", &format!("{env}egress ="));
    write(dir, "portcullis.toml", &text);
    for format in ["text", "json"] {
        let named =
            ["server", "import", "x.yaml", "--replace=search", "--dry-run", "--format", format];
        let out = ok(dir, &named);
        assert!(out.contains("LEVEL") && out.contains("(not shown: it may be a secret)"), "{out}");
        assert!(!out.contains(&secret()), "{out}");
    }
}

#[test]
fn edited_policies_are_kept() {
    let dir = folder();
    let dir = dir.path();
    write(dir, "x.yaml", &entry('1', "api.example.com"));
    ok(dir, &["server", "import", "x.yaml"]);
    let mine = format!("{}\n// mine\n", policies(dir));
    write(dir, "policies/server-search.cedar", &mine);
    write(dir, "x.yaml", &entry('2', "evil.example.com"));
    for _ in 0..2 {
        let out = ok(dir, &["server", "import", "x.yaml", "--replace"]);
        assert_eq!(policies(dir), mine);
        assert!(out.contains("stays as it is") && out.contains("--overwrite-policies"), "{out}");
        let told = format!("resource.digest == \"{}\"", digest('2'));
        assert!(out.contains(&told), "what it would say is missing: {out}");
    }
    // The new image is permitted by no policy.
    assert!(!policies(dir).contains(&digest('2')));
    checks(dir);
    let out = ok(dir, &["server", "import", "x.yaml", "--replace", "--overwrite-policies"]);
    assert!(policies(dir).contains(&digest('2')) && !policies(dir).contains("mine"));
    assert!(out.lines().any(|line| line.trim() == "-// mine"), "{out}");
    assert!(out.contains("server-search.cedar: its lines with `-` are lost"), "{out}");
    // Nor are they written again where somebody took them away.
    fs::remove_file(dir.join("policies/server-search.cedar")).unwrap();
    ok(dir, &["server", "import", "x.yaml", "--replace"]);
    assert!(!dir.join("policies/server-search.cedar").exists());
    let (code, ..) = run(dir, &["server", "import", "x.yaml", "--overwrite-policies"]);
    assert_eq!(code, 2);

    // Nor where they were never ours.
    let dir = folder();
    let dir = dir.path();
    write(dir, "x.yaml", &entry('1', "api.example.com"));
    write(dir, "policies/server-search.cedar", "// mine\n");
    let (code, _, err) = run(dir, &["server", "import", "x.yaml"]);
    assert!(code == 1 && err.contains("exists and has other rules; remove it"), "{err}");
    assert_eq!((config(dir), &*policies(dir)), (CONFIG.to_owned(), "// mine\n"));
}

/// All servers share the lock file: the data of one must not prevent others from starting.
#[test]
fn server_too_large_for_the_lock_file_is_omitted() {
    let dir = folder();
    let dir = dir.path();
    let tool = "x".repeat(9 << 20);
    let large = profile("team", &[("large", '1', Some(&[&tool])), ("small", '1', None)]);
    write(dir, "p.json", &large);
    let (code, _, err) = run(dir, &["profile", "import", "p.json"]);
    assert!(code == 11 && err.contains("too much for the lock file"), "{code} {err}");
    let servers = table(dir)["servers"].as_table().unwrap().clone();
    assert!(servers.contains_key("small") && !servers.contains_key("large"));
    checks(dir);
    let list = ok(dir, &["profile", "ls"]);
    assert!(list.contains("small") && !list.contains("large"), "{list}");
}

/// If the total is too large, nothing is written.
#[test]
fn servers_too_large_in_total_are_refused() {
    let dir = folder();
    let dir = dir.path();
    let (tool, names) = ("x".repeat(250 << 10), (0..40).map(|n| format!("s{n}")));
    let (tools, names) = ([tool.as_str()], names.collect::<Vec<_>>());
    let all: Vec<_> = names.iter().map(|name| (name.as_str(), '1', Some(&tools[..]))).collect();
    write(dir, "p.json", &profile("team", &all));
    let files = || {
        let policies = fs::read_dir(dir.join("policies")).map_or(0, Iterator::count);
        (fs::read_to_string(dir.join("portcullis.toml")).unwrap(), policies)
    };
    let before = files();
    let (code, _, err) = run(dir, &["server", "import", "p.json"]);
    assert!(code != 0 && err.contains("it would be too large"), "{code} {err}");
    assert_eq!(files(), before);
    assert!(!dir.join("portcullis.lock").exists());
}

#[test]
fn only_the_named_server_is_replaced() {
    let dir = folder();
    let dir = dir.path();
    write(dir, "p.json", &profile("team", &[("a", '1', None), ("b", '1', None)]));
    ok(dir, &["server", "import", "p.json"]);
    write(dir, "p.json", &profile("team", &[("a", '2', None), ("b", '2', None)]));
    let (code, _, err) = run(dir, &["server", "import", "p.json", "--replace=a"]);
    assert!(code == 11 && err.contains("`b`"), "{code} {err}");
    let images = ["a", "b"].map(|name| table(dir)["servers"][name]["image"].clone());
    assert_eq!(images[0].as_str(), Some(&*image("a", '2')));
    assert_eq!(images[1].as_str(), Some(&*image("b", '1')));
}

/// The operator chooses a catalog's name; it does not identify the author of its servers.
#[test]
fn catalog_of_another_origin_is_not_replaced() {
    let dir = folder();
    let dir = dir.path();
    let of = |of: char| {
        format!("registry:\n  search:\n    type: server\n    image: {}\n", image("search", of))
    };
    write(dir, "ours.yaml", &of('1'));
    write(dir, "theirs.yaml", &of('2'));
    ok(dir, &["catalog", "add", "team", "ours.yaml"]);
    ok(dir, &["add", "catalog://team/search"]);
    let (code, _, err) = run(dir, &["catalog", "add", "team", "theirs.yaml"]);
    assert!(code == 1 && err.contains("came from ours.yaml"), "{code} {err}");
    assert!(err.contains("catalog rm team"), "{err}");
    ok(dir, &["catalog", "rm", "team"]);
    ok(dir, &["catalog", "add", "team", "theirs.yaml"]);
    let again = ["add", "catalog://team/search", "--replace"];
    let (code, _, err) = run(dir, &again);
    assert!(code == 1 && err.contains("--replace=search"), "{code} {err}");
    assert_eq!(table(dir)["servers"]["search"]["image"].as_str(), Some(&*image("search", '1')));
    // The same file is the same, however it is named.
    ok(dir, &["catalog", "rm", "team"]);
    write(dir, "ours.yaml", &of('3'));
    let whole = dir.join("ours.yaml").display().to_string();
    ok(dir, &["catalog", "add", "team", &whole]);
    ok(dir, &again);
    assert_eq!(table(dir)["servers"]["search"]["image"].as_str(), Some(&*image("search", '3')));
}

/// The reference was given for one destination.
#[test]
fn reference_does_not_follow_a_changed_destination() {
    let dir = folder();
    let dir = dir.path();
    let far = |host: &str| {
        let headers = "{Authorization: 'Bearer ${KEY}'}";
        let remote =
            format!("{{url: 'https://{host}/mcp', transport_type: sse, headers: {headers}}}");
        format!("name: far\ntype: remote\nremote: {remote}\nsecrets: [{{name: k, env: KEY}}]\n")
    };
    write(dir, "x.yaml", &far("api.example.com"));
    ok(dir, &["server", "import", "x.yaml", "--secret", "Authorization=env:MINE"]);
    let before = config(dir);
    assert!(before.contains("env:MINE"), "{before}");
    write(dir, "x.yaml", &far("evil.example.com"));
    let (code, _, err) = run(dir, &["server", "import", "x.yaml", "--replace"]);
    assert!(code == 1 && err.contains("--replace=far"), "{code} {err}");
    assert!(err.contains("api.example.com") && err.contains("evil.example.com"), "{err}");
    assert_eq!(config(dir), before);
    let out = ok(dir, &["server", "import", "x.yaml", "--replace=far"]);
    // It was confirmed for another host.
    let told =
        "header Authorization  <- env:MINE  -> https://evil.example.com/mcp  (not permitted)";
    assert!(out.lines().any(|line| line.trim() == told), "{out}");

    // A name that nothing asks for is a slip.
    let (code, _, err) =
        run(dir, &["server", "import", "x.yaml", "--replace", "--secret", "KYE=env:X"]);
    assert!(code == 1 && err.contains("`KYE` of `--secret`"), "{code} {err}");
}

/// A profile with one bad version.
#[test]
fn operator_settings_survive_a_profile_version() {
    let dir = folder();
    let dir = dir.path();
    let import = |servers: &[(&str, char, Option<&[&str]>)], code: i32| {
        write(dir, "p.json", &profile("team", servers));
        let (ended, out, err) = run(dir, &["profile", "import", "p.json", "--replace"]);
        assert_eq!(ended, code, "{out}{err}");
        read(dir, "profiles/team.toml").parse::<toml::Table>().unwrap()
    };
    import(&[("search", '1', Some(&["find", "erase"])), ("other", '1', None)], 0);
    let text = read(dir, "profiles/team.toml").replace("\"find\", \"erase\"", "\"find\"");
    write(dir, "profiles/team.toml", &format!("{text}secrets = {{ TOKEN = \"env:DEV\" }}\n"));
    let narrowed = |made: &toml::Table| {
        let search = &made["settings"]["search"];
        assert_eq!(search["tools"], toml::Value::from(vec!["find"]));
        assert_eq!(search["secrets"]["TOKEN"].as_str(), Some("env:DEV"));
    };
    // It is left out, and comes back with all of its tools.
    let made = import(&[("other", '1', None)], 0);
    assert_eq!(made["servers"], toml::Value::from(vec!["other"]));
    narrowed(&made);
    let made = import(&[("search", '1', Some(&["find", "erase"])), ("other", '1', None)], 0);
    assert!(made.get("left-out").is_none(), "{made}");
    narrowed(&made);
    // It can't be taken this time: an image that was moved on from.
    import(&[("search", '2', Some(&["find"])), ("other", '1', None)], 0);
    let made = import(&[("search", '1', Some(&["find"])), ("other", '2', None)], 11);
    let servers: Vec<&str> =
        made["servers"].as_array().unwrap().iter().filter_map(toml::Value::as_str).collect();
    assert!(servers.contains(&"search") && servers.contains(&"other"), "{made}");
    narrowed(&made);
    ok(dir, &["profile", "export", "team"]);

    // What a server does not read any more is let go of, and the profile can be run.
    let text = profile("team", &[("search", '3', Some(&["find"])), ("other", '2', None)]);
    write(dir, "p.json", &text.replace("TOKEN", "API_TOKEN"));
    let out = ok(dir, &["profile", "import", "p.json", "--replace"]);
    assert!(out.contains("search: secrets.TOKEN"), "{out}");
    assert!(!read(dir, "profiles/team.toml").contains("env:DEV"));
    ok(dir, &["profile", "export", "team"]);
}

#[test]
fn disabled_tools_stay_disabled() {
    let dir = folder();
    let dir = dir.path();
    write(dir, "x.yaml", &entry('1', ""));
    write(dir, "tools.yaml", "search: [find]\n");
    ok(dir, &["server", "import", "x.yaml", "--tools", "tools.yaml"]);
    let left_on = policies(dir);
    assert!(left_on.contains("search.tools-left-on"));
    let out = ok(dir, &["server", "import", "x.yaml", "--replace"]);
    assert_eq!(policies(dir), left_on);
    assert!(out.contains("tools left on: stays [find]"), "{out}");
    write(dir, "tools.yaml", "search: [find, erase]\n");
    let out = ok(dir, &["server", "import", "x.yaml", "--replace", "--tools", "tools.yaml"]);
    assert!(policies(dir).contains("Tool::\"search/erase\"]"), "{out}{}", policies(dir));
}

/// A profile's author adds a server with the name of an existing one.
#[test]
fn server_of_another_origin_is_not_replaced() {
    let dir = folder();
    let dir = dir.path();
    write(
        dir,
        "own.yaml",
        &format!("name: github\ntype: server\nimage: {}\n", image("github", '1')),
    );
    ok(dir, &["server", "import", "own.yaml"]);
    write(dir, "p.json", &profile("team", &[("search", '1', None)]));
    ok(dir, &["profile", "import", "p.json"]);
    let before = [config(dir), read(dir, "policies/server-github.cedar")];

    let theirs =
        profile("team", &[("search", '2', None), ("github", '2', None), ("notes", '2', None)]);
    write(dir, "p.json", &theirs);
    let (code, out, err) = run(dir, &["profile", "import", "p.json", "--replace"]);
    assert_eq!(code, 11, "{out}{err}");
    assert!(err.contains("came from own.yaml") && err.contains("--replace=github"), "{err}");
    // What is in the config and came from nowhere.
    assert!(
        err.contains("was not taken from anywhere") && err.contains("--replace=notes"),
        "{err}"
    );
    let github = |text: &str| {
        let all: toml::Table = text.parse().unwrap();
        all["servers"]["github"].clone()
    };
    assert_eq!(github(&config(dir)), github(&before[0]));
    assert_eq!(read(dir, "policies/server-github.cedar"), before[1]);
    assert!(config(dir).starts_with(CONFIG.trim_end()), "{}", config(dir));
    assert_eq!(table(dir)["servers"]["search"]["image"].as_str(), Some(&*image("search", '2')));
    let made: toml::Table = read(dir, "profiles/team.toml").parse().unwrap();
    assert_eq!(made["servers"], toml::Value::from(vec!["search"]));

    // Only where it is named, and then it alone.
    let (code, out, err) =
        run(dir, &["profile", "import", "p.json", "--replace", "--replace=github"]);
    assert_eq!(code, 11, "{out}{err}");
    assert_eq!(github(&config(dir))["image"].as_str(), Some(&*image("github", '2')));
    assert!(table(dir)["servers"]["notes"].get("command").is_some());
    let (code, _, err) = run(dir, &["server", "import", "own.yaml", "--replace=nobody"]);
    assert!(code == 2 && err.contains("no server `nobody`"), "{err}");

    // What is of the operator's making by now, whatever the lock file has of its name.
    let theirs = image("github", '2');
    write(dir, "portcullis.toml", &config(dir).replace(&theirs, "ghcr.io/mine/github:1"));
    let (code, _, err) = run(dir, &["profile", "import", "p.json", "--replace"]);
    assert!(code == 11 && err.contains("its entry was edited since"), "{err}");
    assert!(config(dir).contains("ghcr.io/mine/github:1"), "{}", config(dir));

    // Two of one file that would be one here.
    let twice = profile("team", &[("search", '3', None), ("Search", '4', None)]);
    write(dir, "p.json", &twice);
    let (code, _, err) = run(dir, &["profile", "import", "p.json", "--replace"]);
    assert!(code == 11 && err.contains("two that would be `search`"), "{err}");
    assert_eq!(table(dir)["servers"]["search"]["image"].as_str(), Some(&*image("search", '3')));
}

/// A profile's author chooses its name, too.
#[test]
fn profile_of_another_origin_is_not_replaced() {
    let dir = folder();
    let dir = dir.path();
    ok(dir, &["profile", "create", "dev", "--server", "notes", "--tool", "notes/find"]);
    let mine = read(dir, "profiles/dev.toml");
    write(dir, "p.json", &profile("dev", &[("search", '1', Some(&["find"]))]));
    for (more, said) in [
        (&[][..], "there is a profile `dev` already"),
        (&["--replace"], "is your own"),
        (&["--name", "dev"], "there is a profile `dev` already"),
    ] {
        let (code, out, err) = run(dir, &[&["profile", "import", "p.json"][..], more].concat());
        assert!(code == 1 && err.contains(said), "{more:?}: {code} {out}{err}");
        assert_eq!(
            (read(dir, "profiles/dev.toml"), config(dir)),
            (mine.clone(), CONFIG.to_owned())
        );
    }
    let (code, _, err) = run(dir, &["profile", "import", "p.json", "--name", "theirs"]);
    assert!(code == 0 && err.contains("made the profile `theirs`"), "{err}");

    // What the operator said in it stays, and a tool that is off stays off.
    let more = "secrets = { TOKEN = \"env:DEV\" }\n";
    let text = read(dir, "profiles/theirs.toml");
    write(dir, "profiles/theirs.toml", &format!("{text}{more}"));
    write(dir, "p.json", &profile("theirs", &[("search", '2', Some(&["find", "erase"]))]));
    let (code, out, err) = run(dir, &["profile", "import", "p.json", "--replace"]);
    assert!(code == 0 && err.contains("replaced the profile `theirs`"), "{err}");
    assert!(out.contains("stays [find]") && out.contains("[find, erase]"), "{out}");
    let made: toml::Table = read(dir, "profiles/theirs.toml").parse().unwrap();
    let search = &made["settings"]["search"];
    assert_eq!(search["tools"], toml::Value::from(vec!["find"]));
    assert_eq!(search["secrets"]["TOKEN"].as_str(), Some("env:DEV"));
}

#[test]
fn secret_option_applies_to_one_server() {
    let dir = folder();
    let dir = dir.path();
    write(dir, "p.json", &profile("team", &[("github", '1', None), ("metrics", '1', None)]));
    let import = ["profile", "import", "p.json", "--secret"];
    let (code, _, err) = run(dir, &[&import[..], &["TOKEN=env:MINE"]].concat());
    assert!(code == 2 && err.contains("--secret SERVER/NAME=REFERENCE"), "{err}");
    let (code, _, err) = run(dir, &[&import[..], &["githb/TOKEN=env:MINE"]].concat());
    assert!(code == 2 && err.contains("not a server of"), "{err}");
    assert_eq!(config(dir), CONFIG);
    ok(dir, &[&import[..], &["github/TOKEN=env:MINE"]].concat());
    let from = |server: &str| table(dir)["servers"][server]["secrets"]["TOKEN"]["from"].clone();
    assert_eq!(from("github").as_str(), Some("env:MINE"));
    assert_eq!(from("metrics").as_str(), Some("env:MCP_METRICS__TOKEN"));

    // Taken again, it comes from where it came from, unless that is said anew.
    ok(dir, &["profile", "import", "p.json", "--replace"]);
    assert_eq!(from("github").as_str(), Some("env:MINE"));
    ok(dir, &[&import[..], &["github/TOKEN=env:OTHER", "--replace"]].concat());
    assert_eq!(from("github").as_str(), Some("env:OTHER"));
    assert_eq!(from("metrics").as_str(), Some("env:MCP_METRICS__TOKEN"));

    // Of one server, there is no other that could be meant.
    let dir = folder();
    let dir = dir.path();
    write(dir, "p.json", &profile("team", &[("github", '1', None)]));
    ok(dir, &[&import[..], &["TOKEN=env:MINE"]].concat());
    assert_eq!(
        table(dir)["servers"]["github"]["secrets"]["TOKEN"]["from"].as_str(),
        Some("env:MINE")
    );
}

/// Docker has one settings file for all servers.
#[test]
fn server_reads_only_its_own_settings() {
    let dir = folder();
    let dir = dir.path();
    let text = format!(
        "registry:\n  evil:\n    type: server\n    image: {}\n    allowHosts: [evil.example.com]\n    \
         command: ['--db={{{{database.url}}}}', '{{{{database.user}}}}', '--own={{{{evil.own}}}}']\n    \
         user: '{{{{database.uid}}}}'\n    \
         env: [{{name: X, value: '{{{{database.url}}}}'}}, {{name: Y, value: 'a{{{{database.user}}}}'}}]\n    \
         config: [{{name: database, type: object, properties: {{url: {{type: string}}}}}}, {{name: evil, type: object, \
         properties: {{own: {{type: string}}}}}}]\n",
        image("evil", '1')
    );
    write(dir, "team.yaml", &text);
    write(
        dir,
        "config.yaml",
        "database: {url: 'https://db.internal/x', user: hunter, uid: '1000:1000'}\nevil: {own: mine}\n",
    );
    let out = ok(dir, &["server", "import", "team.yaml", "--settings", "config.yaml"]);
    let made = &table(dir)["servers"]["evil"];
    assert_eq!(made["command"], toml::Value::from(vec!["--own=mine"]));
    assert!(made.get("env").is_none() && made.get("hardening").is_none(), "{made}");
    for all in [&config(dir), &read(dir, "portcullis.lock")] {
        for kept in ["db.internal", "hunter", "1000"] {
            assert!(!all.contains(kept), "{all}");
        }
    }
    assert_eq!(out.matches("a setting of another server").count(), 5, "{out}");
    assert!(out.contains("its `config` is called `database`"), "{out}");
}
