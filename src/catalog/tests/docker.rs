//! Docker's formats, with all of their fields.

mod support;

use std::collections::BTreeMap;

use portcullis_catalog::{
    Kind, Options, Run, Transport, describe, enabled, of_image, settings, tool_lists,
};
use support::{fixture, found, noted, problems, server};

fn set_up() -> Options {
    Options {
        values: settings(&fixture("settings.yaml")).expect("a fixture"),
        only: tool_lists(&fixture("tools.yaml")).expect("a fixture"),
        ..Options::default()
    }
}

#[test]
fn catalog_with_every_field_is_read() {
    let found = found("catalog.yaml", &set_up());
    assert_eq!((found.format, found.title.as_deref()), ("Docker catalog", Some("The Workshop")));
    assert_eq!(found.servers.len(), 7);

    let weather = server(&found, "weather");
    let Run::Image { image, arguments } = &weather.run else { panic!("{:?}", weather.run) };
    assert!(image.digest.is_some());
    assert_eq!(image.name, "registry.example.com/workshop/weather");
    assert_eq!(arguments, &["--transport=stdio", "--limit=3", "Bern", "Oslo"]);
    assert_eq!(weather.title.as_deref(), Some("Weather"));
    assert_eq!(weather.env["WEATHER_UNITS"], "metric", "by default");
    assert_eq!(weather.env["WEATHER_MODE"], "plain");
    assert!(!weather.env.contains_key("WEATHER_LANG"), "it is not set");
    assert_eq!(weather.secrets["WEATHER_API_KEY"].from, "env:MCP_WEATHER__WEATHER_API_KEY");
    assert_eq!(
        weather.egress,
        ["*.example.org:443", "api.example.com:443", "maps.example.com:443"]
    );
    assert_eq!(weather.user.as_deref(), Some("1000:1000"));
    assert!(weather.stays);
    let mounts: Vec<_> =
        weather.mounts.iter().map(|m| (&*m.source, &*m.target, m.writable)).collect();
    assert_eq!(mounts, [("/srv/weather", "/srv/weather", false), ("/srv/cache", "/cache", true)]);
    let tools: Vec<_> = weather.tools.iter().map(|tool| &*tool.name).collect();
    assert_eq!(tools, ["forecast", "erase"]);
    assert_eq!(weather.only.as_deref(), Some(&["forecast".to_owned()][..]));
    noted(weather, Kind::LeftOut, "docker.sock");
    noted(weather, Kind::LeftOut, "weather-state:/state");
    noted(weather, Kind::LeftOut, "/srv/shared:/shared");
    noted(weather, Kind::LeftOut, "[fe80::1%eth0]");
    noted(weather, Kind::LeftOut, "names of hosts that the catalog makes up");
    noted(weather, Kind::LeftOut, "`prefix`");
    noted(weather, Kind::Deviates, "user 1000");
    noted(weather, Kind::Deviates, "writes to `/srv/cache`");
    for host in &weather.egress {
        noted(weather, Kind::Deviates, &format!("it reaches `{host}`"));
    }

    let offline = server(&found, "offline");
    assert!(offline.notes.is_empty(), "{:?}", offline.notes);
    assert_eq!(offline.only, Some(vec![]));
}

#[test]
fn remote_servers_are_read() {
    let found = found("catalog.yaml", &set_up());
    let elsewhere = server(&found, "elsewhere");
    let Run::Remote { url, transport, headers } = &elsewhere.run else { panic!() };
    assert_eq!(
        (url.as_str(), *transport),
        ("https://mcp.example.com/mcp", Transport::StreamableHttp)
    );
    assert_eq!(headers["Authorization"].from, "env:MCP_ELSEWHERE__AUTHORIZATION");
    assert!(elsewhere.secrets.is_empty());
    noted(elsewhere, Kind::Must, "a token of example is not fetched");
    let Run::Remote { transport, .. } = &server(&found, "old").run else { panic!() };
    assert_eq!(*transport, Transport::Sse);
}

#[test]
fn refused_servers_have_a_reason_and_position() {
    let found = found("catalog.yaml", &Options::default());
    for (name, text) in [
        ("tools-in-images", "poci"),
        ("denied", "does not allow it: not here"),
        ("rooted", "`Image` could be taken for `image`"),
        // Its settings are missing.
        ("weather", "--set weather"),
    ] {
        let problems = problems(&found, name);
        assert!(problems.iter().any(|p| p.text.contains(text)), "{name}: {problems:?}");
        assert!(
            problems.iter().all(|p| p.place.is_some_and(|place| place.line > 4)),
            "{problems:?}"
        );
    }
    // Problems of one server do not affect others.
    server(&found, "offline");
}

#[test]
fn values_are_validated_against_their_schema() {
    for (key, value) in
        [("limit", "11"), ("limit", "\"x\""), ("units", "kelvin"), ("lang", "english")]
    {
        let mut options = set_up();
        portcullis_catalog::set(&mut options.values, "weather", &format!("{key}={value}")).unwrap();
        let found = found("catalog.yaml", &options);
        problems(&found, "weather");
    }
}

#[test]
fn value_cannot_become_an_option_or_another_mount() {
    for set in [
        "cities=[\"--config=/etc/passwd\"]",
        "cities=[\"a\\nb\"]",
        "data=/srv:/etc",
        "data=relative",
        "data=/srv/../etc",
        "data=-v",
        "cache=/srv/c:/etc:rw",
    ] {
        let mut options = set_up();
        portcullis_catalog::set(&mut options.values, "weather", set).unwrap();
        let found = found("catalog.yaml", &options);
        problems(&found, "weather");
    }
}

#[test]
fn list_of_enabled_servers_is_not_a_catalog() {
    let (names, values) = enabled(&fixture("enabled.yaml")).unwrap();
    assert_eq!(names, ["weather", "offline"]);
    assert_eq!(values["offline"]["level"], 2);
    let error =
        portcullis_catalog::read(&fixture("enabled.yaml"), &Options::default()).unwrap_err();
    assert!(error.text.contains("--enabled"), "{error}");
}

#[test]
fn profile_is_read() {
    let found = found("profile.yaml", &Options::default());
    assert_eq!((found.format, found.title.as_deref()), ("Docker profile", Some("Development")));
    let weather = server(&found, "weather");
    let Run::Image { image, arguments } = &weather.run else { panic!() };
    assert!(image.digest.is_some(), "the profile's image counts, not its snapshot's");
    assert_eq!(arguments, &["--limit=2"]);
    assert_eq!(weather.only.as_deref(), Some(&["forecast".to_owned()][..]));
    assert_eq!(server(&found, "elsewhere").only, Some(vec![]));
    assert!(problems(&found, "(no name)")[0].text.contains("snapshot"));
    assert_eq!(found.values["weather"]["limit"], 2);
}

#[test]
fn catalog_of_an_artifact_is_read() {
    let found = found("artifact.json", &Options::default());
    assert_eq!(found.format, "Docker catalog artifact");
    let a = server(&found, "a");
    assert_eq!(a.only, None, "a catalog leaves nothing off");
    assert!(problems(&found, "b")[0].text.contains("another endpoint"));
}

#[test]
fn possible_profile_keeps_its_tool_lists() {
    let text = |head: &str| {
        format!(
            "{{{head}, \"servers\": [{{\"type\": \"image\", \"image\": \"i:1\", \"tools\": [\"find\"], \"snapshot\": \
             {{\"server\": {{\"name\": \"s\", \"type\": \"server\", \"image\": \"i:1\"}}}}}}]}}"
        )
    };
    for (head, held) in [
        ("\"title\": \"Team\"", false),
        ("\"title\": \"Team\", \"id\": \"team\"", true),
        ("\"version\": 1, \"name\": \"Team\"", true),
    ] {
        let found = portcullis_catalog::read(&text(head), &Options::default()).unwrap();
        let only = held.then(|| vec!["find".to_owned()]);
        assert_eq!(server(&found, "s").only, only, "{head}");
    }
}

#[test]
fn submission_is_read() {
    let mut options = Options::default();
    portcullis_catalog::set(&mut options.values, "archive", "path=/srv/archive/").unwrap();
    let found = found("submission.yaml", &options);
    let archive = server(&found, "archive");
    assert_eq!(found.format, "Docker catalog submission");
    assert_eq!(archive.description.as_deref(), Some("Keeps things"));
    assert_eq!(archive.env["ARCHIVE_FIXED"], "1");
    assert_eq!(archive.mounts[0].source, "/srv/archive");
    assert_eq!(archive.egress, ["archive.example.com:443"]);
    assert_eq!(archive.secrets.keys().collect::<Vec<_>>(), ["ARCHIVE_KEY", "ARCHIVE_TOKEN"]);
    let Run::Image { arguments, .. } = &archive.run else { panic!() };
    assert_eq!(arguments, &["--transport=stdio"]);
    // Its default names a folder too, which a submission may not.
    let found = support::found("submission.yaml", &Options::default());
    let archive = server(&found, "archive");
    assert!(archive.mounts.is_empty(), "{:?}", archive.mounts);
    noted(archive, Kind::LeftOut, "/srv/archive:/data");
}

#[test]
fn image_label_only_describes_the_server() {
    let label = "name: x\ntitle: X\ndescription: Does x\ncommand: [--evil]\nvolumes: ['/:/host']\nuser: '0'\n\
                 image: other/image:1\nallowHosts: [evil.example:443]\nsecrets: [{name: x.k, env: AWS_KEY}]\n\
                 env: [{name: MODE, value: evil}]\ntools: [{name: t, description: T, container: {image: y}}]\n";
    let described = describe(label).unwrap();
    assert_eq!(described.variables, ["MODE", "AWS_KEY"]);
    let image = "workshop/x:1".parse().unwrap();
    let entry = of_image(&image, None, Some(&described), &BTreeMap::new(), &BTreeMap::new());
    let server = entry.server.unwrap();
    assert_eq!(server.run, Run::Image { image, arguments: vec![] });
    assert!(server.env.is_empty() && server.secrets.is_empty() && server.mounts.is_empty());
    assert!(server.egress.is_empty() && server.user.is_none());
    assert_eq!(server.description.as_deref(), Some("Does x"));
    noted(&server, Kind::Advice, "`AWS_KEY`");
    assert!(describe("- a").is_err());
}
